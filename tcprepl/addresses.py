"""Where servers listen and clients connect, and where logs are: as written, and as meant.

Commands that only talk to a server need no more of a configuration than this.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_REPLICATION = "127.0.0.1:9092"
DEFAULT_HTTP = "127.0.0.1:9093"
#: How the URL of a database begins, which is no directory.
DATABASE_URLS = ("postgresql://", "postgres://")
#: How the URL of an HTTP server on a Unix socket begins; the rest of its path follows.
UNIX_URL = "http://unix:/"
#: How an address of the line protocol may begin, where a URL may stand, too.
LINES_URL = "tcprepl://"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})")
_BARE_IPV6 = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
#: A word of an endpoint string: what stands before the first = in it, that, and what is behind it.
_WORD = re.compile(r"((?:[^:=\\]|\\.)*)(?:(=)((?:[^:\\]|\\.)*))?(:|\\?\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ENDPOINT = re.compile(r"[a-z][a-z0-9]*:\S")
#: Of these endpoint strings an @ may be part.
_MAY_HAVE_AT = ("haproxy:", "ssl:", "tls:", "unix:")
#: What is said to who writes a secret into an address; the address is not to be shown then.
NO_USER = "a user or a secret stands before an @, where others can see it"
#: The parameters of a listener by their places, which may be given without their names.
_PLACES = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
}
#: Those that name a file.
_FILES = ("privateKey", "certKey", "extraCertChain", "dhParameters")
#: What an endpoint string begins with whose connections say first where they come from.
HAPROXY = "haproxy:"


def is_database_url(text: str) -> bool:
    """Return whether *text*, which says where the logs are, is no directory."""
    return text.startswith(DATABASE_URLS)


@dataclass(frozen=True, slots=True)
class EndpointString:
    """A Twisted endpoint string, taken apart.

    Attributes:
        kind: What it begins with: ``tcp``, ``ssl``, ``unix``.
        words: What it says without a name, in order.
        named: What it says by name.
    """

    kind: str
    words: tuple[str, ...]
    named: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> EndpointString:
        """Return what *text* says; a backslash takes from ``:`` and ``=`` what they mean."""
        words: list[str] = []
        named: dict[str, str] = {}
        for found in _WORD.finditer(text):
            name, equals, value, end = (_ESCAPED.sub(r"\1", part or "") for part in found.groups())
            if equals:
                named[name] = value
            else:
                words.append(name)
            if end != ":":
                break
        return cls(words[0] if words else "", tuple(words[1:]), named)

    def of_listener(self) -> dict[str, str]:
        """Return every parameter by its name, as who listens reads it."""
        places = _PLACES.get(self.kind, ())
        return {**dict(zip(places, self.words, strict=False)), **self.named}

    def files(self) -> dict[str, Path]:
        """Return the files that a listener with TLS reads, by the names of their parameters.

        The certificate is in the file with the key, unless it is named.
        """
        if self.kind != "ssl":
            return {}
        given = {"privateKey": "server.pem", **self.of_listener()}  # as Twisted has it
        return {name: Path(given[name]) for name in _FILES if name in given}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or to connect: HOST:PORT, or a Twisted endpoint string.

    Attributes:
        text: As it was written.
        host: The host, without brackets; None for an endpoint string.
        port: The port; None for an endpoint string.
        token: What to say to who listens there; read again for each connection.
        others: Where else the same can be had, in the order in which they are tried.
        server_name: The homeserver that has to be there; None for any.
        ca: A PEM file with the authorities to trust in the place of the system's.
    """

    text: str
    host: str | None = None
    port: int | None = None
    token: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    others: tuple[Address, ...] = ()
    server_name: str | None = field(default=None, compare=False)
    ca: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def all(self) -> tuple[Address, ...]:
        """This one, and the others."""
        return (self, *self.others)

    @property
    def endpoint(self) -> EndpointString | None:
        """The endpoint string, without what says that a proxy stands before it; or None."""
        return (
            None if self.host is not None else EndpointString.parse(self.text.removeprefix(HAPROXY))
        )

    @property
    def is_encrypted(self) -> bool:
        """Whether the endpoint string itself asks for TLS."""
        return self.endpoint is not None and self.endpoint.kind in {"ssl", "tls"}

    def is_encrypted_by(self, tls: object) -> bool:
        """Whether connections are encrypted, given the listener's section tls, if it has one.

        An endpoint string has TLS of its own, or none.
        """
        return self.is_encrypted or (bool(tls) and self.host is not None)

    @property
    def is_overheard(self) -> bool:
        """Whether others can read what is said to who listens here, other machines at that."""
        if self.host is not None:
            return not _is_loopback(self.host)
        given = EndpointString.parse(self.text)
        host = given.named.get("host") or next(iter(given.words), "")
        return given.kind == "tcp" and not _is_loopback(host)

    @property
    def is_exposed(self) -> bool:
        """Whether a listener here can be reached from other machines."""
        if self.endpoint is None:
            return not _is_loopback(self.host or "")
        if self.endpoint.kind not in {"tcp", "tcp6", "ssl", "tls"}:
            return False
        return not _is_loopback(self.endpoint.of_listener().get("interface", ""))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_address(text: str) -> Address:
    """Return what an ADDR means.

    Raises:
        ValueError: it is neither HOST:PORT, with or without `LINES_URL`, nor an endpoint string.
    """
    text = text.removeprefix(LINES_URL)
    if "@" in text and not text.startswith(_MAY_HAVE_AT):
        raise ValueError(NO_USER)
    found = _HOST_PORT.fullmatch(text)
    if found and int(found["port"]) < 65_536:
        return Address(text, found["host"].strip("[]"), int(found["port"]))
    if text.startswith(("http://", "https://")):
        raise ValueError("a URL of HTTP: expected HOST:PORT or a Twisted endpoint string")
    if not found and _ENDPOINT.match(text):
        return Address(text)
    if found or _BARE_IPV6.fullmatch(text):
        raise ValueError("expected HOST:PORT, PORT up to 65535, and an IPv6 host in brackets")
    raise ValueError("expected HOST:PORT or a Twisted endpoint string")
