"""A small HTTP client for the commands: one connection, answers in JSON, errors in words.

It blocks, which a command that does one thing after the other may do.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click

from tcprepl.addresses import UNIX_URL
from tcprepl.cli import contexts
from tcprepl.errors import ConfigError, TcpreplError

#: How long one request may take.
TIMEOUT_S = 60.0
#: The pauses between two tries of a request grow from the first to the second.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
#: How long a server may be away before that is said: a restart is shorter.
SILENT_S = 3.0
#: Names the incarnation of a log (protocol.md section 13).
INCARNATION_HEADER = "Tcprepl-Incarnation"


class ApiFailed(TcpreplError):
    """A request that was refused, or that nobody answered.

    Attributes:
        status: The status of the refusal; None when nobody answered.
        refusal: Its members, as far as it has any.
        lines_at: Where the line protocol was spoken in the place of HTTP; empty elsewhere.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        refusal: Mapping[str, Any] | None = None,
        lines_at: str = "",
    ) -> None:
        super().__init__(message)
        self.lines_at = lines_at
        self.status = status
        self.refusal = refusal or {}


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect (http.client calls this)."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """The HTTP side of a server; of a context's, its authorities are trusted, if it names any.

    Args:
        url: Its base, without a slash at the end.
        token: The bearer token, where it wants one, or what reads it: again when the server does
            not take any more the one that it took.
        retry_s: For how long a request is repeated while the server is away or busy.
        timeout_s: How long one request may take.

    Attributes:
        incarnation: In which incarnation of its log the positions were got that are asked with;
            None where that is not known.
        heard: The incarnation that the last answer named.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str] | None = None,
        retry_s: float = 0.0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self.retry_s = retry_s
        self.incarnation: str | None = None
        self.heard: str | None = None
        parts = urlsplit(url)
        self._base = "" if url.startswith(UNIX_URL) else parts.path
        self._headers: dict[str, str | bytes] = {
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        self._token = token
        #: Whether a token that may be another by now was taken.
        self._taken = False
        self._say_token()
        self._connection: http.client.HTTPConnection
        if url.startswith(UNIX_URL):
            self._connection = UnixConnection("/" + url.removeprefix(UNIX_URL), timeout_s)
        elif parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout_s, context=_trusting(contexts.authorities())
            )
        else:
            self._connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        self._pause = threading.Event()
        #: What was said already.
        self._warnings: set[str] = set()

    def _say_token(self) -> None:
        """Show the token, as it is now, from now on."""
        token = self._token() if callable(self._token) else self._token
        if token:
            self._headers = {**self._headers, "Authorization": f"Bearer {token}".encode()}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON answer of a GET."""
        return self.request("GET", path, query)

    def post_rows(
        self,
        stream: str,
        rows: list[bytes],
        *,
        batch: bool,
        instance: str | None,
        transaction_id: str,
    ) -> tuple[str, list[int]]:
        """Publish rows that are JSON; safe to repeat with the same transaction id.

        Returns:
            The instance that they went to, and the token of each.
        """
        query = {"txn_id": transaction_id}
        if batch:
            query["batch"] = "1"
        if instance is not None:
            query["instance"] = instance
        answer = self.request(
            "POST",
            f"/_tcprepl/v1/streams/{quote(stream, safe='')}/rows",
            query,
            b"[" + b",".join(rows) + b"]",
        )
        warning = answer.get("warning")
        if warning and warning not in self._warnings:
            self._warnings.add(warning)
            click.echo(f"warning: {warning}", err=True)
        first, last = answer["first"], answer["last"]
        tokens = [last] * len(rows) if batch else list(range(first, last + 1))
        return answer["instance"], tokens

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Any:
        """Make a request and return the JSON of its answer.

        Raises:
            ApiFailed: refused, or not answered within *retry_s*.
            ConfigError: it has no such stream.
        """
        target = self._base + path + (f"?{urlencode(query)}" if query else "")
        begun = time.monotonic()
        deadline = begun + self.retry_s
        silent_until = begun + SILENT_S
        pause = FIRST_PAUSE_S
        while True:
            wait = pause
            headers = self._headers
            if self.incarnation is not None:
                headers = {**headers, INCARNATION_HEADER: self.incarnation}
            try:
                self._connection.request(method, target, body, headers)
                with contextlib.closing(self._connection.getresponse()) as response:
                    text = response.read()
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, TimeoutError) and self._connection.sock is not None:
                    within = f"within {self._timeout_s:g} s"
                    why = f"does not answer {within}; it hangs, or has too much to do"
                else:
                    why = f"does not answer: {_reason(error)}"
                self._connection.close()
                lines_at = urlsplit(self.url).netloc if _is_line_protocol(error) else ""
                failure = ApiFailed(f"{self.url} {why}", lines_at=lines_at)
            else:
                self.heard = response.getheader(INCARNATION_HEADER)
                if response.status == 401 and self._taken:
                    self._taken = False
                    self._say_token()
                    continue
                if response.status == 200:
                    self._taken = callable(self._token)
                    return json.loads(text)
                refusal = _refusal(text)
                if refusal.get("errcode") == "TCPREPL_UNKNOWN_STREAM":
                    raise ConfigError(f"{self.url}: {refusal['error']}")
                failure = ApiFailed(
                    f"{self.url} answered {response.status}: {_words(refusal, text)}",
                    response.status,
                    refusal,
                )
                if response.status not in {429, 503}:
                    raise failure
                wait = max(wait, _seconds(response.getheader("Retry-After")))
            now = time.monotonic()
            if now + wait > deadline:
                raise failure from None
            if now > silent_until:
                silent_until = deadline
                click.echo(f"{failure}; trying again for {deadline - now:.0f} s", err=True)
            self._pause.wait(wait)
            pause = min(pause * 2, LONGEST_PAUSE_S)


def _trusting(ca: str | None) -> ssl.SSLContext:
    """Return what to speak TLS with to whom an authority in *ca*, else one of the system's, knows.

    Raises:
        ConfigError: The file is no good.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ConfigError(f"{ca}: expected PEM with certificates of authorities") from None
    except OSError as error:
        raise ConfigError(f"{ca}: cannot be read: {error.strerror}") from None


def _seconds(value: str | None) -> float:
    try:
        return float(value or 0)
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
        what = "the line protocol, " if _is_line_protocol(error) else ""
        return f"that is {what}no HTTP server; it says {str(error).strip()[:60]!r}"
    from tcprepl.replication.failures import reason_of  # and Twisted, which HTTP does without

    return reason_of(error)


def _is_line_protocol(error: Exception) -> bool:
    return isinstance(error, http.client.BadStatusLine) and str(error).startswith("SERVER ")


def _refusal(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _words(refusal: Mapping[str, Any], text: bytes) -> str:
    if "error" in refusal:
        return str(refusal["error"])
    return text.decode("utf-8", "replace")[:200].strip() or "nothing more"
