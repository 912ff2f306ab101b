"""What a configuration names and may not be there: files, and streams.

What is looked at is the settings before they are validated, so that it is told with all other
faults; what has another form than it should is passed over, as validation tells that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tcprepl.addresses import parse_address
from tcprepl.app.listening import context_of
from tcprepl.app.settings import registry_of
from tcprepl.app.tls import tls_context
from tcprepl.errors import ConfigError, did_you_mean
from tcprepl.secret_files import read_secret
from tcprepl.settings import Config, StreamSettings, TlsSettings

#: What an endpoint string describes is looked at, and not listened on.
_NO_REACTOR: Any = None


def missing_files(settings: Mapping[str, Any]) -> list[str]:
    """Return the faults of certificates, of their keys, and of the passwords of the bus."""
    faults: list[str] = []
    for name in ("replication", "http", "bus"):
        faults += _of_tls(f"{name}.tls", _section(_section(settings, name), "tls"))
        faults += _of_listen(f"{name}.listen", _section(settings, name).get("listen"))
    federation, bus = _section(settings, "federation"), _section(settings, "bus")
    faults += _unreadable("federation.", federation, ["ca"])
    passwords = {"bus.password_file": bus.get("password_file")}
    passwords |= {f"bus.users.{user}": path for user, path in _section(bus, "users").items()}
    for place, path in passwords.items():
        if isinstance(path, str):
            try:
                read_secret(Path(path))
            except ConfigError as error:
                faults.append(f"{place}: {error}")
    return faults


def _of_tls(place: str, section: Mapping[str, Any]) -> list[str]:
    if faults := list(_unreadable(f"{place}.", section, TlsSettings.model_fields)):
        return faults
    try:
        tls_context(TlsSettings.model_validate(section))
    except ValidationError:
        return []
    except ConfigError as error:
        return [f"{place}: {error}"]
    return []


def _of_listen(place: str, listen: object) -> Iterator[str]:
    for text in listen if isinstance(listen, list | tuple) else [listen]:
        try:
            address = parse_address(text) if isinstance(text, str) else None
        except ValueError:
            continue
        if address is None or address.endpoint is None or not address.endpoint.files():
            continue
        files = {name: str(path) for name, path in address.endpoint.files().items()}
        if faults := list(_unreadable(f"{place}: {text}: ", files, files)):
            yield from faults
            continue
        try:
            context_of(_NO_REACTOR, address)
        except ConfigError as error:
            yield f"{place}: {error}"


def _unreadable(place: str, section: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if isinstance(path := section.get(key), str):
            try:
                Path(path).read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                yield f"{place}{key}: {path}: cannot be read: {reason}"


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def unknown_streams(settings: Mapping[str, Any]) -> list[str]:
    """Return where streams are named that are not there, for who knows all of them: a server.

    In ``streams.retention_of``, and in what tokens and who has none may do.

    A relay and a bus meet the streams of others, which no configuration names.
    """
    streams = _section(settings, "streams")
    try:
        found = StreamSettings.model_validate({"extra": streams.get("extra", ())})
    except ValidationError:
        return []
    known = registry_of(Config(streams=found))
    return [
        f"{place}: there is no such stream, neither built in nor in "
        f"streams.extra{did_you_mean(str(name), known.names(), shown=0)}"
        for place, name in _named_streams(settings)
        if name not in known
    ]


def _named_streams(settings: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield each place where a stream is named, and its name."""
    for name in _section(_section(settings, "streams"), "retention_of"):
        yield f"streams.retention_of.{name}", name
    replication = _section(settings, "replication")
    given = {"anonymous": replication.get("anonymous")}
    tokens = replication.get("tokens")
    if isinstance(tokens, list | tuple):
        given |= {f"tokens.{number}": token for number, token in enumerate(tokens)}
    for who, rights in given.items():
        for right in ("read", "inspect", "write"):
            names = rights.get(right) if isinstance(rights, Mapping) else None
            for name in names if isinstance(names, list | tuple) else ():
                yield f"replication.{who}.{right}: {name}", name


def is_shared(settings: Mapping[str, Any]) -> bool:
    """Return whether a file is, as far as one can see, one of a relay or a bus, too."""
    return bool(settings.get("bus") or settings.get("instances"))


def faults_for_serve(settings: Mapping[str, Any]) -> list[str]:
    """Return what a server refuses besides what has another form than it should."""
    return [] if is_shared(settings) else unknown_streams(settings)
