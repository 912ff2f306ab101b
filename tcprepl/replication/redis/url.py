"""Where a Redis server is, as one URL: ``redis://``, ``rediss://`` or ``unix:``.

A URL may hold a password, so it never prints itself with one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from tcprepl import limits
from tcprepl.clocks import Reactor
from tcprepl.errors import ConfigError

DEFAULT_PORT: Final = 6379
EXPECTED: Final = (
    "redis://[[USER]:PASSWORD@]HOST[:PORT], rediss://... or unix:/PATH; parameters: "
    "password, password_file, user, and for rediss ca, certificate, private_key"
)
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PLAIN: Final = frozenset({"password", "password_file", "user"})
_TLS: Final = frozenset({"ca", "certificate", "private_key"})


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A Redis server, and how to be let in.

    Attributes:
        host: Name or address; None for a Unix socket.
        port: TCP port.
        path: Path of a Unix socket; None for TCP.
        user: For AUTH with a user (Redis 6); None for the default one.
        password: For AUTH; None for none.
        tls: Whether the connection is encrypted.
        ca: PEM file with what to trust instead of the system's authorities.
        certificate: PEM file with our own certificate.
        private_key: PEM file with its key.
    """

    host: str | None = None
    port: int = DEFAULT_PORT
    path: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"


def is_redis_url(text: str) -> bool:
    """Return whether *text* means a Redis server rather than HOST:PORT of the line protocol."""
    return text.startswith(("redis:", "rediss:", "unix:"))


def parse_redis_url(text: str) -> RedisUrl:
    """Return what *text* means.

    A database number is taken and not used: pub/sub knows no databases.

    Raises:
        ValueError: It is no such URL; the text quotes nothing that may be secret.
    """
    if not is_redis_url(text):
        raise ValueError(f"expected {EXPECTED}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("the host or the port is none") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = parts.scheme == "rediss"
    if options.keys() - _PLAIN - (_TLS if tls else frozenset()):
        raise ValueError(f"an unknown parameter; expected {EXPECTED}")
    password = options.get("password")
    if parts.password is not None:
        password = unquote(parts.password)
    if "password_file" in options:
        password = _secret(options["password_file"])
    user = options.get("user") or (unquote(parts.username) if parts.username else None)
    if parts.scheme == "unix":
        if not parts.path.startswith("/"):
            raise ValueError(f"expected the path of a socket; {EXPECTED}")
        return RedisUrl(path=unquote(parts.path), user=user, password=password)
    database = parts.path.removeprefix("/")
    if not parts.hostname or port == 0 or (database and not database.isdigit()):
        raise ValueError(f"expected {EXPECTED}")
    return RedisUrl(
        host=parts.hostname,
        port=port or DEFAULT_PORT,
        user=user,
        password=password,
        tls=tls,
        ca=_path(options, "ca"),
        certificate=_path(options, "certificate"),
        private_key=_path(options, "private_key"),
    )


def _path(options: dict[str, str], name: str) -> Path | None:
    return Path(options[name]) if options.get(name) else None


def _secret(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"password_file {path} cannot be read: {reason}") from None


def redis_endpoint(reactor: Reactor, url: RedisUrl) -> IStreamClientEndpoint:
    """Return how to connect to *url*.

    Raises:
        ConfigError: A certificate cannot be read.
    """
    timeout = limits.HANDSHAKE_TIMEOUT_S
    if url.path is not None:
        return UNIXClientEndpoint(reactor, url.path, timeout=timeout)
    assert url.host is not None
    endpoint = HostnameEndpoint(reactor, url.host.encode(), url.port, timeout=timeout)
    if not url.tls:
        return endpoint
    try:
        trust = None if url.ca is None else _trust(url.ca)
        own = None if url.certificate is None else _own(url)
        options = ssl.optionsForClientTLS(url.host, trustRoot=trust, clientCertificate=own)
    except (OSError, ValueError, SSL.Error, crypto.Error) as error:
        raise ConfigError(f"{url}: expected PEM files: {error}") from None
    wrapped: IStreamClientEndpoint = wrapClientTLS(options, endpoint)
    return wrapped


def _trust(path: Path) -> Any:
    parts = path.read_bytes().split(_BEGIN)[1:] or [b""]
    return ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(_BEGIN + part) for part in parts])


def _own(url: RedisUrl) -> Any:
    assert url.certificate is not None
    key = url.private_key or url.certificate
    return ssl.PrivateCertificate.loadPEM(key.read_bytes() + b"\n" + url.certificate.read_bytes())
