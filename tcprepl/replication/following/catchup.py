"""Fetching missed rows over HTTP, where the wire cannot resume (protocol.md section 13).

From Synapse 1.13 on a server sends no missed rows in band: a reader that sees a gap asks
the instance that wrote the stream. What is asked and what the answer means is here; who asks is
`http_catchup.HttpCatchUp` under Twisted and `tcprepl.aio.HttpCatchUp` under asyncio.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, urlencode

import msgspec

from tcprepl.addresses import UNIX_URL
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.ids import InstanceName, StreamName, Token

#: How long one request may take.
REQUEST_TIMEOUT_S = 30.0
#: Longest answer that is read.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CatchUpPage:
    """What one request answered.

    Attributes:
        updates: (token, row as JSON bytes), ascending; equal tokens are a batch.
        upto: The token reached; ask on from here.
        limited: Whether more remain.
        missing: Tokens (after, upto] whose rows are past retention there; None for none.
            Only tcprepl says so.
    """

    updates: list[tuple[Token, bytes]]
    upto: Token
    limited: bool
    missing: tuple[Token, Token] | None = None


class CatchUp(Protocol):
    """Where missed rows can be had."""

    def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> Awaitable[CatchUpPage]:
        """Return rows of *stream* by *instance* in ``(after, upto]``, a page of them."""
        ...


class _Answer(msgspec.Struct):
    updates: list[tuple[int, msgspec.Raw]]
    upto_token: int
    limited: bool
    missing: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A request for rows of *stream* by *instance* in ``(after, upto]``.

    Attributes:
        url: Where to GET it; with *socket* its host does not count.
        socket: Path of the Unix socket to connect to; None for the host of the URL.
        headers: What to send besides.
    """

    stream: StreamName
    instance: InstanceName
    after: Token
    upto: Token
    url: str
    socket: str | None
    headers: dict[str, str]

    def page(self, status: int, body: bytes) -> CatchUpPage:
        """Return what an answer means.

        Args:
            status: Its HTTP status.
            body: Its first `MAX_ANSWER_BYTES`, and one more byte if there are more.

        Raises:
            ConnectionFailed: It is not 200, or not what it should be.
        """
        if len(body) > MAX_ANSWER_BYTES:
            raise self._failed(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        if status != 200:
            raise self._failed(
                f"{self.instance} answered {status} when asked for {self.stream} "
                f"({self.after}, {self.upto}]: {body[:200].decode('utf-8', 'replace')}",
                transient=status in (408, 429) or status >= 500,
            )
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._failed(
                f"{self.instance} answered something else than updates of {self.stream}: {error}"
            ) from error
        updates = [(token, bytes(row)) for token, row in answer.updates]
        return CatchUpPage(updates, answer.upto_token, answer.limited, answer.missing)

    def _failed(self, text: str, *, transient: bool = False) -> ConnectionFailed:
        return ConnectionFailed(text, reason=CloseReason.CONNECTION_LOST, transient=transient)


class Archive:
    """Where ``get_repl_stream_updates`` of each instance is asked for.

    Args:
        urls: Base URL of each instance's HTTP replication listener, or ``http://unix:/PATH`` of
            its socket; ``"*"`` stands for every instance that is not named.
        secret: The shared replication secret, if there is one.
    """

    def __init__(self, urls: Mapping[InstanceName, str], secret: str | None = None) -> None:
        self.change(urls, secret)

    def change(self, urls: Mapping[InstanceName, str], secret: str | None) -> None:
        """Ask there, with that secret, from now on; the arguments are as for the class."""
        self._urls = dict(urls)
        self._secret = secret

    def question(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> Question:
        """Return the request for ``(after, upto]``.

        Raises:
            ConnectionFailed: Nobody said where *instance* listens.
        """
        base = self._urls.get(instance) or self._urls.get("*")
        if base is None:
            raise ConnectionFailed(
                f"no URL is configured for instance {instance}, so rows of {stream} after "
                f"{after} cannot be fetched",
                reason=CloseReason.CONNECTION_LOST,
                transient=False,
            )
        socket = None
        if base.startswith(UNIX_URL):
            base, socket = "http://localhost", "/" + base.removeprefix(UNIX_URL)
        query = urlencode({"from_token": after, "upto_token": upto, "instance": instance})
        url = (
            f"{base.rstrip('/')}/_synapse/replication/get_repl_stream_updates/"
            f"{quote(stream, safe='')}/{secrets.token_hex(8)}?{query}"
        )
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        return Question(stream, instance, after, upto, url, socket, headers)
