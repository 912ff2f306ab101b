"""The operator's handles on a sender: a socket in its data directory.

One request a line, one answer a line, both JSON. ``tcprepl fed`` is the client; when no sender
runs it opens the outbox itself and does the same there.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

from tcprepl.background import run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import FederationError
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: The name of the socket in the data directory.
SOCKET_FILE = "control.sock"
#: How long the command line waits for an answer.
ANSWER_TIMEOUT_S = 30.0
#: Longest path of a Unix socket that every system takes.
_MAX_PATH_BYTES = 100
#: Where Linux shows the open files of a process by name.
_DESCRIPTORS = "/proc/self/fd"


class ControlError(FederationError):
    """A handle that could not be used; the text says why."""


class Handles:
    """What an operator may ask of a sender, by name."""

    def __init__(
        self, sender: FederationSender, forget_discovery: Callable[[str], bool] | None = None
    ) -> None:
        """Make the handles.

        Args:
            sender: The sender.
            forget_discovery: Forgets where a destination is.
        """
        self._sender = sender
        self._forget_discovery = forget_discovery or (lambda name: False)

    async def do(self, operation: str, destination: str | None) -> Any:
        """Do *operation* and return what there is to tell.

        Raises:
            ControlError: There is no such operation, or no such destination can be.
        """
        if operation == "ls":
            return await self._sender.describe()
        if destination is None or not is_server_name(destination):
            raise ControlError(f"{destination!r:.64}: expected the name of a server")
        if operation == "show":
            return await self._sender.describe_one(destination)
        if operation in ("retry", "retry-quarantined"):
            if not (await self._sender.describe_one(destination))["queued_edus"]:
                raise ControlError(
                    f"{destination}: nothing waits for it, so there is nothing to try; "
                    "`tcprepl fed ls` lists for whom something does"
                )
            count = await self._sender.retry(
                destination, quarantined=operation == "retry-quarantined"
            )
            return {"destination": destination, "taken_up_again": count}
        if operation == "drop":
            return {"destination": destination, "dropped": await self._sender.drop(destination)}
        if operation == "pause":
            await self._sender.pause(destination)
            return {"destination": destination, "paused": True}
        if operation == "resume":
            await self._sender.resume(destination)
            return {"destination": destination, "paused": False}
        if operation == "purge":
            return {"destination": destination, "purged": await self._sender.purge(destination)}
        if operation == "forget-discovery":
            known = self._forget_discovery(destination)
            return {"destination": destination, "forgotten": known}
        raise ControlError(f"{operation!r:.32}: expected {', '.join(OPERATIONS)}")


class StandingBy:
    """What a sender answers that waits until another lets go of its outbox.

    Args:
        name: The sender.
        held_by: Returns which process holds the outbox; empty if it is not known.
    """

    def __init__(self, name: str, held_by: Callable[[], str]) -> None:
        self._name = name
        self._held_by = held_by

    def why(self) -> str:
        """Return why nothing is sent, in words."""
        holder = self._held_by()
        return (
            f"this sender stands by, and sends nothing: the outbox of {self._name} is held by "
            f"{holder or 'another process'} (HOST:PROCESS)"
        )

    async def do(self, operation: str, destination: str | None) -> Any:
        """Say who could do it.

        Raises:
            ControlError: Always.
        """
        raise ControlError(f"{self.why()}; ask there")


class _Handling(Protocol):
    """What answers an operator."""

    async def do(self, operation: str, destination: str | None) -> Any:
        """Do *operation* and return what there is to tell."""
        ...


OPERATIONS = (
    "ls",
    "show",
    "retry",
    "retry-quarantined",
    "drop",
    "pause",
    "resume",
    "purge",
    "forget-discovery",
)


class _Connection(LineOnlyReceiver):
    """One operator."""

    delimiter = b"\n"
    MAX_LENGTH = 4_096

    def __init__(self, handles: _Handling) -> None:
        self._handles = handles

    def lineReceived(self, line: bytes) -> None:
        """Answer one request (Twisted calls this)."""
        run_in_background(self._answer, line)

    async def _answer(self, line: bytes) -> None:
        answer: dict[str, Any]
        try:
            asked = json.loads(line)
            found = await self._handles.do(str(asked["op"]), asked.get("destination"))
            answer = {"ok": found}
        except (FederationError, ValueError, KeyError, TypeError, AttributeError) as error:
            answer = {"error": str(error)}
        if self.transport is not None:
            self.transport.write(json.dumps(answer).encode() + b"\n")


class ControlSocket:
    """The listening socket in a data directory, whatever the length of its path."""

    def __init__(self, reactor: Reactor, data: Path, handles: _Handling) -> None:
        """Listen in the directory *data*; only we may connect.

        Raises:
            ControlError: The path is too long for a socket, and the system knows no shorter one.
        """
        path = data / SOCKET_FILE
        with suppress(FileNotFoundError):
            path.unlink()
        factory: Any = Factory.forProtocol(lambda: _Connection(handles))
        # The name is kept while the socket is there: Twisted removes the file by it at the end.
        with ExitStack() as stack:
            name = stack.enter_context(socket_name(path))
            self._port: IListeningPort = reactor.listenUNIX(name, factory, mode=0o600)
            self._name = stack.pop_all()

    async def close(self) -> None:
        """Listen no more and remove the socket."""
        stopped = self._port.stopListening()
        if stopped is not None:
            await stopped
        self._name.close()


@contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """Yield a name of the socket *path* that fits in a Unix address while the context lasts.

    The address of a Unix socket holds about 100 bytes. A longer path is named from here, or by
    way of a descriptor of its directory (``/proc/self/fd``, Linux).

    Raises:
        ControlError: The system knows no name that is short enough.
        OSError: The directory is not there.
    """
    for name in (str(path), os.path.relpath(path)):
        if len(os.fsencode(name)) <= _MAX_PATH_BYTES:
            yield name
            return
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        name = f"{_DESCRIPTORS}/{descriptor}/{path.name}"
        if not os.path.isdir(_DESCRIPTORS) or len(os.fsencode(name)) > _MAX_PATH_BYTES:
            raise ControlError(
                f"{path}: the path is too long for a socket; choose a shorter directory"
            )
        yield name
    finally:
        os.close(descriptor)


def answers(data: Path) -> bool:
    """Return whether a sender answers in the data directory *data*."""
    with socket.socket(socket.AF_UNIX) as connection, socket_name(data / SOCKET_FILE) as name:
        return connection.connect_ex(name) == 0


def ask(data: Path, operation: str, destination: str | None = None) -> Any:
    """Ask the sender that has the data directory *data*; blocking, for the command line.

    Raises:
        ConnectionError: No sender runs there.
        ControlError: It would not.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            with socket_name(data / SOCKET_FILE) as name:
                connection.connect(name)
        except FileNotFoundError as error:
            raise ConnectionRefusedError(str(error)) from error
        request = {"op": operation, "destination": destination}
        connection.sendall(json.dumps(request).encode() + b"\n")
        line = connection.makefile("rb").readline()
    if not line:
        raise ControlError("the sender ended without an answer")
    answer = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer["ok"]


def ask_offline(handles: Handles, operation: str, destination: str | None = None) -> Any:
    """Use *handles* whose outbox answers at once, without a reactor.

    Raises:
        ControlError: It cannot be done.
    """
    found: list[Any] = []
    failed: list[Any] = []
    done: Deferred[Any] = Deferred.fromCoroutine(handles.do(operation, destination))
    _ = done.addCallbacks(found.append, failed.append)
    if failed:
        failed[0].raiseException()
    return found[0]
