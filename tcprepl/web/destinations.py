"""What the federation senders of this machine have to send, for the status page.

A sender is a process of its own, with a control socket in its data directory
(`tcprepl.federation.sending.control`). Each is asked every few seconds while the site listens; one
that does not run, or does not answer, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.clocks import Reactor
from tcprepl.errors import FederationError
from tcprepl.federation.sending.control import SOCKET_FILE, ControlError, socket_name
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: Time between two questions to a sender.
ASK_INTERVAL_S = 2.0
#: How long a sender may take to answer.
ANSWER_TIMEOUT_S = 1.5
#: Longest answer that is read: some ten thousand destinations.
MAX_ANSWER_BYTES = 16 * 2**20


class SenderDestinations:
    """Knows the destinations of the senders with these data directories; call it for them.

    Args:
        reactor: The reactor.
        directories: The data directory of each sender.
    """

    def __init__(self, reactor: Reactor, directories: Sequence[Path]) -> None:
        self._reactor = reactor
        self._directories = tuple(directories)
        self._known: dict[Path, list[Mapping[str, Any]]] = {}
        self._loop: LoopingProcess | None = None
        self._asking: Deferred[list[Mapping[str, Any]]] | None = None

    def start(self) -> None:
        """Ask from now on."""
        self._loop = looping_background_process(
            self._reactor, "web_destinations", ASK_INTERVAL_S, self.ask, now=True
        )

    def stop(self) -> Deferred[None]:
        """Ask no more, not even to the end."""
        loop, self._loop = self._loop, None
        stopped = succeed(None) if loop is None else loop.stop()
        if self._asking is not None:
            self._asking.cancel()
        return stopped

    def __call__(self) -> list[Mapping[str, Any]]:
        """Return what is known of each destination."""
        return [found for known in self._known.values() for found in known]

    async def ask(self) -> None:
        """Ask every sender once."""
        for directory in self._directories:
            path = directory / SOCKET_FILE
            known = None
            if path.exists():
                self._asking = Deferred.fromCoroutine(self._ask(path))
                try:
                    known = await self._asking
                except (CancelledError, ConnectingCancelledError):
                    return
                except (FederationError, ConnectError, ConnectTimeout, OSError) as error:
                    logger.debug("http.destinations.unknown", sender=str(path), error=str(error))
                finally:
                    self._asking = None
            if known is None:
                # Most often there is no sender; what it last said would be a lie by now.
                self._known.pop(directory, None)
            else:
                self._known[directory] = known

    async def _ask(self, path: Path) -> list[Mapping[str, Any]]:
        question = _Question()
        with socket_name(path) as name:
            endpoint = UNIXClientEndpoint(self._reactor, name, ANSWER_TIMEOUT_S)
            _ = await connectProtocol(endpoint, question)
        return await question.answer.addTimeout(ANSWER_TIMEOUT_S, self._reactor, question.give_up)


class _Question(Protocol):
    """One question and its answer, a line each."""

    def __init__(self) -> None:
        self.answer: Deferred[list[Mapping[str, Any]]] = Deferred()
        self._received = bytearray()

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self.transport.write(b'{"op": "ls"}\n')

    def dataReceived(self, data: bytes) -> None:
        """Take a piece of the answer."""
        assert self.transport is not None
        self._received += data
        if data.endswith(b"\n") or len(self._received) > MAX_ANSWER_BYTES:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Read what has come."""
        if self.answer.called:
            return
        try:
            found = json.loads(self._received)["ok"]
            if not isinstance(found, list):
                raise TypeError("no list")
        except (ValueError, KeyError, TypeError):
            self.answer.errback(ControlError("the sender did not answer with its destinations"))
        else:
            self.answer.callback(found)

    def give_up(self, _: object, timeout: float) -> list[Mapping[str, Any]]:
        """Time is up."""
        if self.transport is not None:
            self.transport.loseConnection()
        raise ControlError(f"the sender did not answer within {timeout:g} s")
