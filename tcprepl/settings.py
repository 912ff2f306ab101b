"""The settings, typed and validated, section by section.

Defaults are safe: everything listens on loopback, and a listener that other machines can reach has
to have TLS or a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from tcprepl import limits
from tcprepl.access import NONE
from tcprepl.addresses import (
    DEFAULT_HTTP,
    DEFAULT_REPLICATION,
    Address,
    is_database_url,
    parse_address,
)
from tcprepl.protocol.grammar import SECRET_SHAPE, is_secret
from tcprepl.replication.redis.url import parse_redis_url
from tcprepl.streams.registry import BUILT_IN
from tcprepl.streams.releases import Release, parse_release
from tcprepl.values import (
    Addresses,
    AddressRange,
    DialectName,
    Directory,
    HostPort,
    Name,
    NameOrAny,
    Seconds,
    Size,
    StreamNames,
    TokenName,
)

DEFAULT_DATA = "./tcprepl-data"
DEFAULT_BUS = "127.0.0.1:6379"
_NAME_IS = f"a name without spaces, at most {limits.MAX_NAME_CHARS} characters"
_ADDRESS_IS = "HOST:PORT or a Twisted endpoint string, or a list of them"
_AGE_IS = "a number of seconds above 0, or a text such as 30s, 10m, 12h, 7d"
_SIZE_IS = "a number of bytes above 0, or a text such as 64M or 2G"
_TEXT_IS = "a text; better read from a file that only the server may read"
_HELD_IN_IS = "the path of a file that holds it"
_STREAMS_ARE = "all, or a list of stream names"


class Settings(BaseModel):
    """A section: immutable, and without room for misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class TlsSettings(Settings):
    """Certificates of a listener."""

    certificate: Path = Field(description="the path of a PEM file with the certificate chain")
    private_key: Path = Field(description="the path of a PEM file with the private key")
    client_ca: Path | None = Field(
        default=None, description="the path of a PEM file; only clients it vouches for may connect"
    )


class Rights(Settings):
    """What somebody may do."""

    read: StreamNames = Field(default=NONE, description=_STREAMS_ARE)
    inspect: StreamNames = Field(default=NONE, description=_STREAMS_ARE)
    write: StreamNames = Field(default=NONE, description=_STREAMS_ARE)
    operate: bool = Field(default=False, description="true or false")


class TokenSettings(Rights):
    """Somebody who says a token, and what that allows."""

    name: TokenName = Field(description=_NAME_IS + "; whom it is given to")
    token: SecretStr = Field(
        min_length=limits.MIN_SECRET_CHARS,
        description=f"{SECRET_SHAPE}, and {limits.MIN_SECRET_CHARS} at least; better read from a "
        "file that only the server may read",
    )
    token_file: Path | None = Field(default=None, description=_HELD_IN_IS)

    @field_validator("token")
    @classmethod
    def _fits_a_line(cls, value: SecretStr) -> SecretStr:
        if not is_secret(value.get_secret_value()):
            raise ValueError("not a word")
        return value


def is_vouched(address: Address, tls: TlsSettings | None) -> bool:
    """Return whether a listener lets in only this machine, or who shows a certificate."""
    shown = address.host is not None and tls is not None and tls.client_ca is not None
    return shown or not address.is_exposed


class ReplicationSettings(Settings):
    """The line protocol's listener."""

    tls: TlsSettings | None = Field(
        default=None, description="a section with certificate and private_key"
    )
    tokens: tuple[TokenSettings, ...] = Field(
        default=(), description="a list of sections with name, token_file and rights"
    )
    anonymous: Rights | None = Field(
        default=None,
        description="null, or a section with read, inspect, write, operate: what needs no token "
        "on the line",
    )
    listen: Addresses = Field(
        default=(parse_address(DEFAULT_REPLICATION),), description=_ADDRESS_IS
    )
    dialect: DialectName = Field(default="auto", description="auto, 1.13 or 1.22")
    max_connections: int = Field(
        default=limits.MAX_CONNECTIONS, ge=1, description="a whole number above 0"
    )
    publish: bool | None = Field(
        default=None, description="true, false, or null: unless only HTTP asks for a token"
    )

    @field_validator("tokens")
    @classmethod
    def _different(cls, value: tuple[TokenSettings, ...]) -> tuple[TokenSettings, ...]:
        named: dict[str, str] = {}
        for settings in value:
            other = named.setdefault(settings.token.get_secret_value(), settings.name)
            if other is not settings.name:
                raise ValueError(
                    f"one stands twice, with {other} and {settings.name}; expected different ones"
                )
        return value

    @field_validator("listen")
    @classmethod
    def _guarded(cls, value: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
        # what has faults of its own counts as there: they are told already
        tls, tokens = info.data.get("tls", True), info.data.get("tokens", True)
        for address in value:
            known = tokens or "tls" not in info.data or is_vouched(address, tls)
            if address.is_exposed and not (address.is_encrypted_by(tls) and known):
                raise ValueError(
                    "other machines can reach it; expected a loopback address or a unix: endpoint, "
                    "or TLS (replication.tls for HOST:PORT, else an ssl: endpoint) and beside it "
                    "replication.tokens or replication.tls.client_ca"
                )
        return value


class ClientToken(Settings):
    """Somebody who may use the Matrix client paths."""

    token: SecretStr = Field(min_length=1, description=_TEXT_IS)
    token_file: Path | None = Field(default=None, description=_HELD_IN_IS)
    user_id: str | None = Field(
        default=None,
        pattern="^@[^:]*:.+$",
        description="@user:server, or null for one that says on each request for whom it speaks",
    )


class HttpSettings(Settings):
    """The HTTP listener."""

    tls: TlsSettings | None = Field(
        default=None, description="a section with certificate and private_key"
    )
    token: SecretStr | None = Field(default=None, min_length=1, description=_TEXT_IS)
    token_file: Path | None = Field(default=None, description=_HELD_IN_IS)
    replication_secret: SecretStr | None = Field(default=None, min_length=1, description=_TEXT_IS)
    replication_secret_file: Path | None = Field(default=None, description=_HELD_IN_IS)
    listen: Addresses = Field(default=(parse_address(DEFAULT_HTTP),), description=_ADDRESS_IS)
    client_tokens: tuple[ClientToken, ...] = Field(
        default=(), description="a list of sections with token and user_id"
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="a list of host names under which browsers reach the server"
    )
    max_body_bytes: Size = Field(default=limits.MAX_HTTP_BODY_BYTES, description=_SIZE_IS)

    @field_validator("listen")
    @classmethod
    def _guarded(cls, value: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
        tls, token = info.data.get("tls", True), info.data.get("token", True)
        for address in value:
            if address.is_exposed and not (address.is_encrypted_by(tls) or token):
                raise ValueError(
                    "other machines can reach it; "
                    "expected a loopback address, a unix: or ssl: endpoint, http.tls or http.token"
                )
        return value


class RetentionSettings(Settings):
    """How much of a stream is kept; what is reached first counts, what is left out is default."""

    age: Seconds | None = Field(default=None, description=_AGE_IS)
    bytes: Size | None = Field(default=None, description=_SIZE_IS)
    rows: int | None = Field(default=None, gt=0, description="a whole number above 0")


class ExtraStream(Settings):
    """A stream of opaque JSON rows that is not built in."""

    name: Name = Field(description=_NAME_IS)
    durable: bool = Field(default=True, description="true (kept on disk) or false (kept in memory)")

    @field_validator("name")
    @classmethod
    def _own(cls, value: str) -> str:
        # those of the federation are opaque as well, and named by files of earlier releases
        if any(value == stream.name for stream in BUILT_IN):
            raise ValueError("this stream is built in; expected another name")
        return value


def _extra_streams(value: object) -> object:
    if isinstance(value, list):
        return tuple({"name": item} if isinstance(item, str) else item for item in value)
    return value


class StreamSettings(Settings):
    """What is replicated and for how long it is kept."""

    retention: RetentionSettings = Field(
        default=RetentionSettings(), description="a section with age, bytes, rows"
    )
    retention_ephemeral: RetentionSettings = Field(
        default=RetentionSettings(), description="a section with age, bytes, rows"
    )
    retention_of: Mapping[Name, RetentionSettings] = Field(
        default_factory=dict, description="a section per stream with age, bytes, rows"
    )
    extra: Annotated[tuple[ExtraStream, ...], BeforeValidator(_extra_streams)] = Field(
        default=(), description="a list of stream names, or of sections with name and durable"
    )

    @field_validator("extra")
    @classmethod
    def _different(cls, value: tuple[ExtraStream, ...]) -> tuple[ExtraStream, ...]:
        first: dict[str, int] = {}
        for number, stream in enumerate(value):
            before = first.setdefault(stream.name, number)
            if before != number:
                raise ValueError(
                    f"{stream.name} stands twice, as extra.{before} and extra.{number}; expected "
                    "each name once"
                )
        return value


class FederationSettings(Settings):
    """Who sends EDUs to other servers, and with which key."""

    senders: tuple[Name, ...] = Field(
        default=(), description="a list with the name of each federation sender"
    )
    sender_data: tuple[Path, ...] = Field(
        default=(Path("./tcprepl-sender"),),
        description="a list with the data directory of each sender on this machine",
    )
    signing_key: Path | None = Field(default=None, description="the path of a signedjson key file")
    ca: Path | None = Field(
        default=None, description="the path of a PEM file to trust besides the system"
    )
    resolve: Mapping[str, HostPort] = Field(
        default_factory=dict, description="HOST:PORT for each server name that is not looked up"
    )
    allowed_addresses: tuple[AddressRange, ...] = Field(
        default=(), description="a list of address ranges such as 10.0.0.0/8"
    )
    allow_private_addresses: bool = Field(default=False, description="true or false")


class _OfSynapse(Settings):
    """A place where Synapse processes are."""

    synapse: str | None = Field(
        default=None,
        description='null, or the release of the Synapse processes there, in quotes: "1.163"',
    )

    @property
    def release(self) -> Release | None:
        """The release of Synapse that is there; None when it was not said."""
        return None if self.synapse is None else parse_release(self.synapse)

    @field_validator("synapse")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            parse_release(value)
        return value


class RedisSettings(_OfSynapse):
    """The Redis server whose channels carry the streams as well."""

    url: SecretStr = Field(description="redis://[:PASSWORD@]HOST:PORT[/DB], rediss:// or unix:")

    @field_validator("url")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value


class BusSettings(_OfSynapse):
    """The listener in Redis's place."""

    tls: TlsSettings | None = Field(
        default=None, description="a section with certificate and private_key"
    )
    password_file: Path | None = Field(
        default=None, description="null, or the path of a file with a password"
    )
    users: Mapping[Name, Path] = Field(
        default_factory=dict, description="for each name the path of a file with its password"
    )
    listen: Addresses = Field(default=(parse_address(DEFAULT_BUS),), description=_ADDRESS_IS)
    replay_seconds: Annotated[int, Field(ge=0)] = Field(
        default=600, description="a number of seconds; 0 replays nothing"
    )
    replay_rows: Annotated[int, Field(ge=0)] = Field(
        default=100_000, description="a number of rows"
    )

    @field_validator("listen")
    @classmethod
    def _guarded(cls, value: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
        named = info.data.get("password_file", True) or info.data.get("users", True)
        for address in value:
            encrypted = address.is_encrypted_by(info.data.get("tls", True))
            if address.is_exposed and not (encrypted and named):
                raise ValueError(
                    "other machines can reach it; expected a loopback address or a unix: "
                    "endpoint, or both TLS and bus.password_file or bus.users"
                )
        return value


class LogSettings(Settings):
    """What is logged on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    format: Literal["auto", "console", "logfmt", "json"] = Field(
        default="auto", description="auto, console, logfmt or json"
    )


class Config(Settings):
    """Everything that can be set; each default is what ``tcprepl serve`` uses without a file."""

    server_name: Name = Field(default="localhost", description=_NAME_IS + "; the homeserver's")
    instance: Name = Field(default="master", description=_NAME_IS)
    data_directory: Directory = Field(
        default=Path(DEFAULT_DATA), description="a path, or null to keep everything in memory only"
    )
    data: SecretStr | None = Field(
        default=None,
        description="null, or postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE for the logs",
    )
    lease: Seconds = Field(default=10.0, description=_AGE_IS)
    standby: bool = Field(
        default=False, description="true (wait until nobody writes as this instance) or false"
    )
    replication: ReplicationSettings = Field(
        default=ReplicationSettings(),
        description="a section with listen, tls, tokens, anonymous, dialect, max_connections",
    )
    http: HttpSettings = Field(
        default=HttpSettings(), description="a section with listen, tls, token, replication_secret"
    )
    streams: StreamSettings = Field(
        default=StreamSettings(), description="a section with retention, retention_of, extra"
    )
    federation: FederationSettings = Field(
        default=FederationSettings(), description="a section with senders, signing_key, ca, resolve"
    )
    redis: RedisSettings | None = Field(default=None, description="a section with url")
    bus: BusSettings = Field(
        default_factory=BusSettings, description="a section with listen, tls, password_file, users"
    )
    instances: Mapping[NameOrAny, str] = Field(
        default_factory=dict, description="the HTTP URL of each writer (* for all others)"
    )
    log: LogSettings = Field(default=LogSettings(), description="a section with level and format")

    @field_validator("data")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_database_url(value.get_secret_value()):
            raise ValueError("no URL of PostgreSQL")
        return value

    @field_validator("standby")
    @classmethod
    def _shared(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("data", True) is None:
            raise ValueError("nothing to wait for; expected data to be the URL of a database")
        return value
