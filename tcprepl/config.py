"""The configuration: YAML in, typed and validated settings out.

`load` reads a file and reports *all* its faults at once, each with the path of the key, the
value found and what was expected. Synapse's names are understood where they mean the same
thing; a warning shows our spelling. Defaults are safe: everything listens on loopback, and a
listener that other machines can reach has to have TLS or a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tcprepl import limits
from tcprepl.access import NONE
from tcprepl.errors import ConfigError, did_you_mean
from tcprepl.protocol.grammar import PATTERNS, SECRET_SHAPE
from tcprepl.replication.redis.url import parse_redis_url
from tcprepl.streams.releases import Release, parse_release
from tcprepl.synapse_names import excerpt, put, translate_synapse
from tcprepl.values import (
    Address,
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
    parse_address,
)

DEFAULT_REPLICATION = "127.0.0.1:9092"
DEFAULT_HTTP = "127.0.0.1:9093"
DEFAULT_DATA = "./tcprepl-data"
#: How the URL of a database begins, which is no directory.
DATABASE_URLS = ("postgresql://", "postgres://")
DEFAULT_BUS = "127.0.0.1:6379"

_NAME_IS = f"a name without spaces, at most {limits.MAX_NAME_CHARS} characters"
_ADDRESS_IS = "HOST:PORT or a Twisted endpoint string, or a list of them"
_AGE_IS = "a number of seconds above 0, or a text such as 30s, 10m, 12h, 7d"
_SIZE_IS = "a number of bytes above 0, or a text such as 64M or 2G"
_TEXT_IS = "a text; better read from a file that only the server may read"
_HELD_IN_IS = "the path of a file that holds it"
_STREAMS_ARE = "all, or a list of stream names"


def is_database_url(text: str) -> bool:
    """Return whether *text*, which says where the logs are, is no directory."""
    return text.startswith(DATABASE_URLS)


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
        if not PATTERNS["secret"].fullmatch(value.get_secret_value()):
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
        description="null, or a section with read, inspect, write, operate: what needs no token",
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
        if "tls" not in info.data or "tokens" not in info.data:
            return value  # which is told already
        tls = info.data["tls"]
        for address in value:
            known = info.data["tokens"] or is_vouched(address, tls)
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

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.standby and self.data is None:
            raise ValueError("standby: found true; expected data to be the URL of a database")
        return self


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and what should be written differently in its file."""

    config: Config
    warnings: tuple[str, ...] = ()


class BadConfig(ConfigError):
    """A configuration that is not valid.

    Attributes:
        faults: One line each: key path, value found, expectation.
    """

    def __init__(self, source: str, faults: list[str]) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n  ".join([f"{source}: {count}", *faults]))
        self.faults = faults


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read a file; see `build` for *overrides*.

    Raises:
        BadConfig: the file cannot be read, is not YAML, or has faults; all are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadConfig(str(path), [f"cannot be read: {reason}"]) from None
    return parse(text, str(path), overrides)


def loader(path: Path | None, overrides: Mapping[str, Any]) -> Callable[[], Loaded]:
    """Return what reads the settings of a process, again and again.

    Args:
        path: The file; None if there are only *overrides*.
        overrides: What its command line says; see `build`.
    """
    if path is None:
        return lambda: build({}, "command line", overrides)
    return lambda: load(path, overrides)


def parse(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Validate YAML text; *source* names it in errors; see `build` for *overrides*.

    Raises:
        BadConfig: it is not YAML, or has faults; all are named.
    """
    twice: list[str] = []
    try:
        loader = _UniqueKeys(text)
        try:
            raw = loader.get_single_data()
        finally:
            loader.dispose()
        twice = [fault for _, fault in sorted(loader.faults.items())]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadConfig(source, [f"{place}not YAML: {error.problem}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # numbers and times that are none, or what is nested too deeply
        raise BadConfig(source, [f"not YAML: {error}"]) from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise BadConfig(source, [f"found {_shown(raw)}; expected a section with keys"])
    return build(raw, source, overrides, faults=twice)


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML; a key that stands twice in a section is a fault, not a silent last word.

    Attributes:
        faults: Where keys stand twice: the line and the column, and the fault in words.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: dict[tuple[int, int], str] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a section (yaml calls this)."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in first:
                    before = f"it is on line {first[key.value]} already"
                    fault = f"line {line}: {key.value} stands twice; {before}"
                    self.faults[line, key.start_mark.column] = fault
                first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def build(
    raw: Mapping[str, Any],
    source: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    faults: Sequence[str] = (),
) -> Loaded:
    """Validate settings that are already in memory.

    Args:
        raw: The settings, as YAML gives them.
        source: What to call them in errors.
        overrides: Dotted key -> value, stronger than *raw*; None values do not count.
        faults: Faults that are known already, to be told with the others.

    Raises:
        BadConfig: there are faults; all are named.
    """
    settings, warnings, more = translate_synapse(raw)
    faults = [*faults, *more]
    for path, value in (overrides or {}).items():
        if value is not None:
            put(settings, path, value)
    faults += _read_secrets(settings)
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        faults += [_fault(detail) for detail in error.errors(include_url=False)]
        raise BadConfig(source, faults) from None
    if faults:
        raise BadConfig(source, faults)
    return Loaded(config, tuple(warnings))


def revalidated(settings: Mapping[str, Any]) -> Config:
    """Return settings that were validated before, put together in another way.

    Raises:
        BadConfig: They do not go together; every fault is named.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors(include_url=False)]
        raise BadConfig("the settings as they would be", faults) from None


def _read_secrets(settings: dict[str, Any]) -> list[str]:
    """Put in place what files like ``token_file`` hold, and return the faults."""
    faults: list[str] = []

    def read(section: Any, key: str, path: str) -> Any:
        if not isinstance(section, Mapping) or section.get(f"{key}_file") is None:
            return section
        found = dict(section)
        if found.get(key) is not None:
            faults.append(f"{path}_file: {path} is set as well; expected one of the two")
            return found
        try:
            found[key] = read_secret(Path(str(found[f"{key}_file"])))
        except ConfigError as error:
            faults.append(f"{path}_file: {error}")
            found[key] = f"unknown-{path}"  # one fault is enough
        return found

    http = settings.get("http")
    if isinstance(http, Mapping):
        http = read(http, "token", "http.token")
        http = dict(read(http, "replication_secret", "http.replication_secret"))
        if isinstance(http.get("client_tokens"), list):
            http["client_tokens"] = [
                read(section, "token", f"http.client_tokens.{number}.token")
                for number, section in enumerate(http["client_tokens"])
            ]
        settings["http"] = http
    replication = settings.get("replication")
    if isinstance(replication, Mapping) and isinstance(replication.get("tokens"), list):
        tokens = [
            read(section, "token", f"replication.tokens.{number}.token")
            for number, section in enumerate(replication["tokens"])
        ]
        settings["replication"] = {**replication, "tokens": tokens}
    return faults


def read_secret(path: Path) -> str:
    """Return the secret that a file holds; white space around it does not count.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if not secret:
        raise ConfigError(f"{path}: is empty; expected a secret")
    return secret


# Faults, in plain words.


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _expectation(loc: tuple[int | str, ...]) -> tuple[str, list[str], bool]:
    """Return (what is expected at *loc*, the keys known beside it, whether it is a secret)."""
    model: type[BaseModel] | None = Config
    expected, beside, secret = "a section with keys", list(Config.model_fields), False
    for part in loc:
        field = model.model_fields.get(str(part)) if model is not None else None
        if model is not None:
            beside = list(model.model_fields)
        if field is None:
            continue
        expected = field.description or expected
        secret = SecretStr in (field.annotation, *get_args(field.annotation))
        model = next(_models(field.annotation), None)
    return expected, beside, secret


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(map(str, value))
    return excerpt(str(value) if isinstance(value, Path | Address) else value)


def _has_keys(value: object) -> bool:
    """Whether there are sections in *value*, of which some keys may be secret."""
    inner = value if isinstance(value, list | tuple) else ()
    return isinstance(value, Mapping) or any(map(_has_keys, inner))


def _fault(detail: ErrorDetails) -> str:
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    path = ".".join(str(part) for part in loc)
    expected, beside, secret = _expectation(loc)
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(str(loc[-1]), beside, shown=0)}"
    if detail["type"] == "missing":
        return f"{path}: is missing; expected {expected}"
    hidden = secret or _has_keys(detail["input"])
    found = "a value that is not shown" if hidden else _shown(detail["input"])
    reason = str(detail.get("ctx", {}).get("error", ""))
    if "; expected " in reason:
        return f"{path}: found {found}; {reason}"
    return f"{path}: found {found}; expected {expected}"
