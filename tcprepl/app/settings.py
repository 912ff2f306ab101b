"""What the settings of a configuration mean to the parts that are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from OpenSSL import crypto

from tcprepl.access import EVERYTHING, NOTHING, Grant, Guesses, Tokens
from tcprepl.addresses import parse_address
from tcprepl.errors import ConfigError
from tcprepl.federation.service import OWN_STREAMS
from tcprepl.federation.wire.addresses import AddressPolicy
from tcprepl.federation.wire.connections import SystemAndFile
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.settings import Config, RetentionSettings, Rights
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention


def retention_of(config: Config) -> Retention:
    """Return what the logs keep; what is not set is as the logs have it."""
    default = Retention()
    streams = config.streams
    durable = _bounds(default.durable, streams.retention)
    ephemeral = _bounds(default.ephemeral, streams.retention_ephemeral)
    registry = registry_of(config)
    return replace(
        default,
        durable=durable,
        ephemeral=ephemeral,
        streams={
            stream: _bounds(
                durable if stream not in registry or registry.get(stream).durable else ephemeral,
                settings,
            )
            for stream, settings in streams.retention_of.items()
        },
    )


def _bounds(default: Bounds, settings: RetentionSettings) -> Bounds:
    return Bounds(
        max_age_s=default.max_age_s if settings.age is None else settings.age,
        max_bytes=default.max_bytes if settings.bytes is None else settings.bytes,
        max_rows=default.max_rows if settings.rows is None else settings.rows,
    )


def registry_of(config: Config) -> Registry:
    """Return the built-in streams, those of federation and those of the configuration."""
    extra = (StreamDef(s.name, durable=s.durable) for s in config.streams.extra)
    return Registry((*map(StreamDef, OWN_STREAMS), *extra))


def placed_servers(resolve: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Return where servers are that ``federation.resolve`` places.

    Raises:
        ConfigError: A name or an address is none.
    """
    placed: dict[str, tuple[str, int]] = {}
    for name, text in resolve.items():
        try:
            address = parse_address(text)
        except ValueError:
            address = None
        if address is None or address.host is None or not address.port or not is_server_name(name):
            raise ConfigError(f"federation.resolve: {name}: {text!r}; expected HOST:PORT")
        placed[name] = address.host, address.port
    return placed


def trust_of(path: Path | None) -> SystemAndFile | None:
    """Return trust in the system's authorities and those of a file; None is the former alone.

    Raises:
        ConfigError: The file cannot be read, or holds no certificate.
    """
    if path is None:
        return None
    try:
        return SystemAndFile(path)
    except (OSError, ValueError, crypto.Error) as error:
        raise ConfigError(f"federation.ca: {error}; expected a PEM file") from None


def http_secrets(config: Config) -> list[str]:
    """Return the secrets of which a request has to show one."""
    http = config.http
    return [s.get_secret_value() for s in (http.token, http.replication_secret) if s]


def client_tokens(config: Config) -> dict[str, str | None]:
    """Return the tokens of the Matrix client paths, each with the user that it speaks for."""
    return {t.token.get_secret_value(): t.user_id for t in config.http.client_tokens}


def policy_of(config: Config) -> AddressPolicy:
    """Return which addresses of other servers are connected to."""
    settings = config.federation
    return AddressPolicy(settings.allowed_addresses, allow_private=settings.allow_private_addresses)


def grants_of(config: Config) -> list[tuple[str, Grant]]:
    """Return the tokens of ``replication.tokens``, each with what it grants."""
    return [
        (settings.token.get_secret_value(), _grant(settings.name, settings))
        for settings in config.replication.tokens
    ]


def tokens_of(config: Config, guesses: Guesses) -> Tokens:
    """Return what the line protocol asks for."""
    return Tokens(grants_of(config), guesses)


def anonymous_of(config: Config) -> Grant:
    """Return what who says no token may do on the line, where the listener vouches for them.

    Unless the configuration says so, everything where there are no tokens, and nothing where
    there are.
    """
    anonymous = config.replication.anonymous
    if anonymous is not None:
        return _grant("", anonymous)
    return NOTHING if config.replication.tokens else EVERYTHING


def _grant(name: str, rights: Rights) -> Grant:
    return Grant(name, rights.read, rights.inspect, rights.write, operate=rights.operate)


def publishes(config: Config) -> bool:
    """Return whether rows may be published over the line protocol, by who may write them.

    Unless the configuration says so, not where HTTP asks for a token and the line does not.
    """
    replication = config.replication
    if replication.publish is not None:
        return replication.publish
    asks = replication.tokens or replication.anonymous is not None
    return bool(asks) or config.http.token is None
