"""What values of a configuration may look like: addresses, durations, sizes, names, streams.

Each is read from what YAML or a command line gives; what does not fit is a `ValueError`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf

from tcprepl import limits
from tcprepl.access import ALL, Streams

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})")
#: A word of an endpoint string: what stands before the first = in it, that, and what is behind it.
_WORD = re.compile(r"((?:[^:=\\]|\\.)*)(?:(=)((?:[^:\\]|\\.)*))?(:|\\?\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ENDPOINT = re.compile(r"[a-z][a-z0-9]*:\S")
#: Of these endpoint strings an @ may be part.
_MAY_HAVE_AT = ("haproxy:", "ssl:", "tls:", "unix:")
#: What is said to who writes a secret into an address; the address is not to be shown then.
NO_USER = "a user or a secret stands before an @, where others can see it"
_NAME = re.compile(r"[^\s\x00-\x1f\x7f*]+")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNITS_BYTES = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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


#: How an address of the line protocol may begin, where a URL may stand, too.
LINES_URL = "tcprepl://"


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
    raise ValueError("expected HOST:PORT or a Twisted endpoint string")


def _addresses(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(parse_address(item) if isinstance(item, str) else item for item in value)
    return value


def _host_port(value: str) -> str:
    if parse_address(value).port is None:
        raise ValueError("no port")
    return value


def _range(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)", value)
        if not found:
            raise ValueError("no unit")
        return float(found[1]) * _UNITS_S[found[2]]
    return value


def _size(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+)\s*([BKMGT]?)(?:i?B)?", value)
        if not found:
            raise ValueError("no size")
        return int(found[1]) * _UNITS_BYTES[found[2]]
    return value


def _version(value: object) -> object:
    """Let 1.13 be written without quotes."""
    return str(value) if isinstance(value, float) else value


def _or_none(value: object) -> object:
    """Let a command line say null."""
    return None if str(value) == "none" else value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value) > limits.MAX_NAME_CHARS:
        raise ValueError("not a name")
    return value


def _token_name(value: str) -> str:
    if value == "anonymous":
        raise ValueError("it stands for who says no token; expected another name")
    return _name(value)


def _streams(value: object) -> object:
    if value == "all":
        return ALL
    if isinstance(value, list | tuple):
        return Streams(frozenset(_name(str(item)) for item in value))
    return value


def _name_or_any(value: str) -> str:
    return value if value == "*" else _name(value)


Addresses: TypeAlias = Annotated[tuple[Address, ...], BeforeValidator(_addresses)]
AddressRange: TypeAlias = Annotated[str, AfterValidator(_range)]
HostPort: TypeAlias = Annotated[str, AfterValidator(_host_port)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Size: TypeAlias = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Name: TypeAlias = Annotated[str, AfterValidator(_name)]
NameOrAny: TypeAlias = Annotated[str, AfterValidator(_name_or_any)]
TokenName: TypeAlias = Annotated[str, AfterValidator(_token_name)]
StreamNames: TypeAlias = Annotated[InstanceOf[Streams], BeforeValidator(_streams)]
DialectName: TypeAlias = Annotated[Literal["auto", "1.13", "1.22"], BeforeValidator(_version)]
Directory: TypeAlias = Annotated[Path | None, BeforeValidator(_or_none)]
