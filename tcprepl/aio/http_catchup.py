"""Fetching missed rows over HTTP under asyncio (protocol.md section 13)."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.replication.failures import reason_of
from tcprepl.replication.following import catchup
from tcprepl.replication.following.catchup import (
    REQUEST_TIMEOUT_S,
    Archive,
    CatchUpPage,
    Question,
)

#: How much of an answer is read at a time.
_PIECE_BYTES = 262_144


class HttpCatchUp(Archive):
    """Asks the instance that wrote the stream: for the option ``catch_up``.

    Each request has a thread of the loop's pool for as long as it takes, and a connection of its
    own: they are few, made only where the wire cannot resume.

    Args:
        urls: Base URL of each instance's HTTP replication listener, or ``http://unix:/PATH`` of
            its socket; ``"*"`` stands for every instance that is not named.
        secret: The shared replication secret, if there is one.
        tls: What to speak TLS with; for ``https:`` the system's certificates are trusted, or those
            of the file that ``SSL_CERT_FILE`` names, if nothing is given.
    """

    def __init__(
        self,
        urls: Mapping[InstanceName, str],
        secret: str | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(urls, secret)
        self._tls = tls

    async def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> CatchUpPage:
        """Return a page of ``(after, upto]``.

        Raises:
            ConnectionFailed: Nobody answered, the answer was not 200, or not what it should be.
        """
        question = self.question(stream, instance, after, upto)
        status, body = await asyncio.to_thread(_get, question, self._tls)
        return question.page(status, body)


def _get(question: Question, tls: ssl.SSLContext | None) -> tuple[int, bytes]:
    """Return status and body of the answer, no more of it than is taken."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    parts = urlsplit(question.url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = tls or ssl.create_default_context()
        connection = http.client.HTTPSConnection(
            parts.netloc, timeout=REQUEST_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=REQUEST_TIMEOUT_S)
    body = bytearray()
    try:
        if question.socket is not None:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(REQUEST_TIMEOUT_S)
            connection.sock.connect(question.socket)
        connection.request("GET", f"{parts.path}?{parts.query}", headers=question.headers)
        # of a server that closes behind its answer the connection belongs to the answer
        with contextlib.closing(connection.getresponse()) as response:
            while len(body) <= catchup.MAX_ANSWER_BYTES and (piece := response.read1(_PIECE_BYTES)):
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
            if response.length and len(body) <= catchup.MAX_ANSWER_BYTES:
                raise http.client.IncompleteRead(b"", response.length)
            return response.status, bytes(body)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionFailed(
            f"{question.instance} at {question.socket or parts.netloc} does not answer when asked "
            f"for {question.stream}: {reason_of(error)}",
            reason=CloseReason.CONNECTION_LOST,
        ) from error
    finally:
        connection.close()
