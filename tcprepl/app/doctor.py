"""What may be wrong on a machine, looked at from outside: each thing once, with the remedy.

`examine` asks every check about a configuration. A check looks and changes nothing, ends within
`WAIT_S`, and speaks in findings; one that cannot look says why. It may be run while the
process runs, and before it has ever been started. It is one list of checks that have nothing to do
with each other, and is read as one: so it may be longer than other modules.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import resource
import shutil
import socket
import sqlite3
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tcprepl.app.opening import where_logs_are
from tcprepl.app.settings import registry_of, retention_of
from tcprepl.app.tls import BEGIN
from tcprepl.errors import LogError, TcpreplError
from tcprepl.protocol.display import counted
from tcprepl.replication.redis.resp import BadReply, ErrorReply, RespReader, encode
from tcprepl.replication.redis.url import RedisUrl, parse_redis_url
from tcprepl.settings import BusSettings, Config, HttpSettings, ReplicationSettings, TlsSettings
from tcprepl.storage.lock import holder_of
from tcprepl.streams.opening import look_at_database
from tcprepl.values import HAPROXY, Address, EndpointString
from tcprepl.web.amounts import size

#: How long a check waits for somebody else.
WAIT_S = 5.0
#: Descriptors of a process besides its connections.
OTHER_DESCRIPTORS = 200
#: A certificate that ends sooner than this is worth a word.
CERTIFICATE_WARN_S = 14 * 86_400
#: Fewer bytes than this on a disk are too few whatever is to be kept.
LITTLE_ROOM_BYTES = 1 << 30
#: Nothing of this program was written before (2025-01-01): a clock that shows less is wrong.
EARLIEST_S = 1_735_689_600
#: The oldest SQLite in which everything that is used works: UPSERT, and WAL that is sound.
SQLITE_MIN = (3, 35, 0)
#: What Redis is asked for.
REDIS_SETTINGS = ("client-output-buffer-limit", "maxclients", "timeout", "tcp-keepalive")
#: What Redis itself lets a slow subscriber leave unread: at once, and for a minute.
PUBSUB_HARD_BYTES = 32 << 20
PUBSUB_SOFT_BYTES = 8 << 20
#: More clients than this share of those that are let in are many.
CLIENTS_SHARE = 0.8
#: Everybody pings more often than this.
REDIS_TIMEOUT_S = 60
#: Names that nobody looks up.
_NOT_ON_THE_INTERNET = ("localhost", "example.com", "example.org", "example.net")


class Verdict(IntEnum):
    """How bad a finding is; the worst is the exit code of the command."""

    GOOD = 0
    WARNING = 1
    FAULT = 2


class Finding(NamedTuple):
    """What a check has to say.

    Attributes:
        verdict: How bad it is.
        subject: What it is about, in a word or two.
        text: What was found.
        remedy: What to do; "" where nothing has to be done.
    """

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


Check: TypeAlias = Callable[[Config], Iterator[Finding]]


def examine(config: Config, *, network: bool = True) -> Iterator[Finding]:
    """Yield what each check finds; one that fails itself is a finding.

    Args:
        config: The settings of the process.
        network: Whether other machines may be asked (DNS, Redis, ``.well-known``).
    """
    for check in (*LOCAL, *(REMOTE if network else ())):
        try:
            yield from check(config)
        except Exception as error:  # noqa: BLE001 - whatever a machine says, the rest is looked at
            yield Finding(Verdict.WARNING, check.__name__, f"could not look: {error}")


def versions(config: Config) -> Iterator[Finding]:
    """What this runs on."""
    parts = ["tcprepl", "twisted", "msgspec", "pyopenssl"]
    found = ", ".join(f"{name} {metadata.version(name)}" for name in parts)
    text = f"Python {platform.python_version()}, {found}, SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        wanted = ".".join(map(str, SQLITE_MIN))
        yield Finding(
            Verdict.FAULT, "versions", text, f"use a Python with SQLite {wanted} or newer"
        )
    else:
        yield Finding(Verdict.GOOD, "versions", text)


def clock(config: Config) -> Iterator[Finding]:
    """Whether the time of day is right; stamps, signatures and retention go by it."""
    if time.time() < EARLIEST_S:
        shown = time.strftime("%Y-%m-%d %H:%M", time.gmtime(time.time()))
        yield Finding(
            Verdict.FAULT, "clock", f"shows {shown} UTC", "set it, and start an NTP client"
        )
        return
    told = _said("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if told == "no":
        yield Finding(
            Verdict.WARNING,
            "clock",
            "is not kept by NTP",
            "systemctl enable --now systemd-timesyncd",
        )
    else:
        text = (
            "is kept by NTP" if told == "yes" else "is plausible; nobody says whether NTP keeps it"
        )
        yield Finding(Verdict.GOOD, "clock", text)


def descriptors(config: Config) -> Iterator[Finding]:
    """Whether as many connections as are allowed can be open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = config.replication.max_connections
    text = f"{limit} may be open; replication.max_connections is {allowed}"
    if limit != resource.RLIM_INFINITY and limit < allowed + OTHER_DESCRIPTORS:
        yield Finding(
            Verdict.WARNING,
            "file limit",
            f"{text} (of this shell; a unit of systemd has its own)",
            f"LimitNOFILE={allowed + OTHER_DESCRIPTORS} in the unit, or ulimit -n (at most {most})",
        )
    else:
        yield Finding(Verdict.GOOD, "file limit", text)


def data(config: Config) -> Iterator[Finding]:
    """Whether the data directory can be used, by us alone, and who uses it."""
    directory = config.data_directory
    if config.data is not None:
        where = where_logs_are(config)
        yield Finding(Verdict.GOOD, "data", f"the log is in {where}, which each start looks at")
    elif directory is None:
        yield Finding(
            Verdict.WARNING,
            "data",
            "everything is kept in memory, and lost at each end of the process",
            "set data_directory",
        )
    if directory is None:
        return
    if not directory.exists():
        above = next(path for path in directory.absolute().parents if path.exists())
        if os.access(above, os.W_OK | os.X_OK):
            yield Finding(Verdict.GOOD, "data", f"{directory} will be made at the first start")
        else:
            yield Finding(
                Verdict.FAULT,
                "data",
                f"{directory} is not there, and {above} does not let {_user()} make it",
                f"install -d -m 0700 -o {_user()} {directory}",
            )
        return
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            Verdict.FAULT,
            "data",
            f"{directory} belongs to somebody else than {_user()}",
            f"run this as the user of the server, or chown -R {_user()} {directory}",
        )
        return
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            Verdict.WARNING,
            "data",
            f"{directory} can be read by others (mode {mode:04o}); rows may hold access tokens",
            f"chmod 0700 {directory}",
        )
    strangers = [
        path for path in directory.rglob("*") if path.stat().st_uid != directory.stat().st_uid
    ]
    if strangers:
        yield Finding(
            Verdict.FAULT,
            "data",
            f"{strangers[0]} has another owner than its directory (was a command run as root?)",
            f"chown -R --reference={directory} {directory}",
        )
    yield Finding(Verdict.GOOD, "data", _in_use(directory))


def room(config: Config) -> Iterator[Finding]:
    """Whether what retention lets grow finds room on the disk."""
    directory = config.data_directory
    if directory is None or config.data is not None:
        return
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    used = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    retention = retention_of(config)
    registry = registry_of(config)
    bounds = [
        retention.streams.get(stream, retention.durable).max_bytes
        for stream in registry.names()
        if registry.get(stream).durable
    ]
    most = sum(bound for bound in bounds if bound is not None)
    text = f"{size(free)} free, {size(used)} used; retention keeps up to {size(most)} an instance"
    if None in bounds:
        text += " and some streams without a bound in bytes"
    if free < LITTLE_ROOM_BYTES:
        yield Finding(
            Verdict.FAULT,
            "disk",
            text,
            "make room: a full disk refuses appends (and goes on by itself)",
        )
    elif free + used < most:
        yield Finding(
            Verdict.WARNING, "disk", text, "lower streams.retention.bytes, or give it a larger disk"
        )
    else:
        yield Finding(Verdict.GOOD, "disk", text)


def secrets(config: Config) -> Iterator[Finding]:
    """Whether files that hold secrets can be read by us, and not by others."""
    files = [tls.private_key for tls in _all_tls(config)]
    named = (
        config.federation.signing_key,
        config.bus.password_file,
        *config.bus.users.values(),
        config.http.token_file,
        config.http.replication_secret_file,
        *(settings.token_file for settings in config.replication.tokens),
        *(settings.token_file for settings in config.http.client_tokens),
    )
    for path in dict.fromkeys([*files, *(path for path in named if path is not None)]):
        if not os.access(path, os.R_OK):
            text, todo = f"{path} is not there", f"put it there, for {_user()} alone to read"
            if path.exists():
                text, todo = f"{path} cannot be read (by {_user()})", f"chown {_user()} {path}"
            yield Finding(Verdict.FAULT, "secrets", text, todo)
        elif path.stat().st_mode & 0o007:
            yield Finding(
                Verdict.WARNING,
                "secrets",
                f"{path} can be read by everybody",
                f"chmod o-rwx {path}",
            )
        else:
            yield Finding(Verdict.GOOD, "secrets", f"{path} is for us alone")


def certificates(config: Config) -> Iterator[Finding]:
    """How long the certificates of our listeners are good for."""
    settings = _all_tls(config)
    for tls in dict.fromkeys(settings):
        yield _certificate(tls.certificate, tls)
    files = [endpoint.files() for endpoint in _endpoint_strings(config)]
    chains = [named["extraCertChain"] for named in files if "extraCertChain" in named]
    others = [named["dhParameters"] for named in files if "dhParameters" in named]
    for path in dict.fromkeys([*(tls.client_ca for tls in settings), *chains, *others]):
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            yield _no_certificate(path, "cannot be read" if path.exists() else "is not there")
        elif path in chains and BEGIN not in path.read_bytes():
            yield _no_certificate(path, "holds no certificate")


def _endpoint_strings(config: Config) -> Iterator[EndpointString]:
    for section in (config.replication, config.http, config.bus):
        for address in section.listen:
            if address.endpoint is not None:
                yield address.endpoint


def _all_tls(config: Config) -> list[TlsSettings]:
    """Return what the listeners have for TLS, of their sections and of endpoint strings."""
    found = []
    for section in (config.replication, config.http, config.bus):
        placed = (_placed(address, section.tls) for address in section.listen)
        found += [section.tls, *(place.tls for place in placed if place is not None)]
    return list(dict.fromkeys(tls for tls in found if tls is not None))


class _Place(NamedTuple):
    """Where is listened, and with what TLS."""

    host: str
    port: int | None
    tls: TlsSettings | None


def _placed(address: Address, tls: TlsSettings | None) -> _Place | None:
    """Return what an address says; None of an endpoint string without a port of its own."""
    if address.host is not None:
        return _Place(address.host, address.port, tls)
    endpoint = address.endpoint
    if endpoint is None or endpoint.kind not in {"ssl", "tcp", "tcp6"}:
        return None
    given, files = endpoint.of_listener(), endpoint.files()
    port = given.get("port", "")
    # who is behind a proxy answers nobody who does not begin as the proxy does
    known = port.isdecimal() and not address.text.startswith(HAPROXY)
    own = None
    if files:
        key = files["privateKey"]
        own = TlsSettings(private_key=key, certificate=files.get("certKey", key))
    any_host = "::" if endpoint.kind == "tcp6" else "0.0.0.0"  # noqa: S104  # as Twisted does
    return _Place(given.get("interface") or any_host, int(port) if known else None, own)


def _no_certificate(path: Path, why: str) -> Finding:
    todo = "expected a PEM file" if path.exists() else "put it there"
    return Finding(Verdict.FAULT, "certificates", f"{path}: {why}", todo)


def _certificate(path: Path, tls: TlsSettings) -> Finding:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "holds no certificate"
        return _no_certificate(path, reason)
    try:
        if os.access(tls.private_key, os.R_OK):  # else it is one of the secrets that are missing
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, tls.private_key)
    except (OSError, ssl.SSLError):
        return Finding(
            Verdict.FAULT,
            "certificates",
            f"{path} does not go with {tls.private_key}",
            "name the key that it was made for",
        )
    left_s = found.not_valid_after_utc.timestamp() - time.time()
    ends = found.not_valid_after_utc.strftime("%Y-%m-%d")
    if left_s < 0:
        return Finding(Verdict.FAULT, "certificates", f"{path} ended on {ends}", "renew it")
    if left_s < CERTIFICATE_WARN_S:
        text = f"{path} ends on {ends}, in {counted(round(left_s / 86_400), 'day')}"
        return Finding(Verdict.WARNING, "certificates", text, "renew it; it is taken up by itself")
    return Finding(Verdict.GOOD, "certificates", f"{path} is good until {ends}")


def ports(config: Config) -> Iterator[Finding]:
    """Whether our addresses are free, or who answers there."""
    sections: list[tuple[str, ReplicationSettings | HttpSettings | BusSettings]] = [
        ("replication", config.replication),
        ("http", config.http),
    ]
    if "bus" in config.model_fields_set:  # another process's, and Redis's port if nothing is said
        sections.append(("bus", config.bus))
    for name, section in sections:
        for address in section.listen:
            place = _placed(address, section.tls)
            if place is not None and place.port is not None:
                yield _port(name, address, place.host, place.port, place.tls)


def _port(name: str, address: Address, host: str, port: int, tls: TlsSettings | None) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(
                Verdict.FAULT,
                "ports",
                f"{name}.listen {address}: {_user()} may not listen there",
                "a port above 1023, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit",
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(
                    Verdict.FAULT,
                    "ports",
                    f"{name}.listen {address}: {error.strerror}",
                    "name an address of this machine",
                )
        else:
            return Finding(Verdict.GOOD, "ports", f"{name}.listen {address} is free")
    if who := _ours(host, port, name, tls):
        return Finding(Verdict.GOOD, "ports", f"{name}.listen {address}: {who} answers there")
    return Finding(
        Verdict.FAULT,
        "ports",
        f"{name}.listen {address} is taken, and not by tcprepl",
        f"ss -ltnp 'sport = :{port}' shows by whom",
    )


def _ours(host: str, port: int, name: str, tls: TlsSettings | None) -> str:
    """Return what listens there, if it shows our certificate or speaks as we do; else ""."""
    try:
        with _connected(host, port, tls) as peer:
            if tls is not None and isinstance(peer, ssl.SSLSocket):
                ours = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0]
                if peer.getpeercert(binary_form=True) == ours.public_bytes(Encoding.DER):
                    return "tcprepl"
            if name == "http":
                peer.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            elif name == "bus":
                peer.sendall(encode(b"INFO", b"server"))
            said = peer.recv(4096)
    except (OSError, ValueError):
        return ""
    if name != "bus":
        is_ours = said.startswith((b"SERVER ", b"ERROR ")) or b'"live"' in said
    elif said.startswith(b"-NOAUTH "):  # nothing more without the password, which is not told
        return "what wants a password, a tcprepl bus or a Redis,"
    else:
        is_ours = b"tcprepl_version:" in said
    return "tcprepl" if is_ours else ""


def _connected(host: str, port: int, tls: TlsSettings | None) -> socket.socket:
    peer = socket.create_connection((host, port), WAIT_S)
    if tls is None:
        return peer
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # who it is, is what is asked here; no secret is told
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(peer)
    except OSError:
        peer.close()
        raise


def redis(config: Config) -> Iterator[Finding]:
    """Whether the Redis that is published to lets us in, and is set for it."""
    if config.redis is None:
        return
    url = parse_redis_url(config.redis.url.get_secret_value())
    try:
        info, settings = _ask_redis(url)
    except (OSError, BadReply) as error:
        yield Finding(Verdict.FAULT, "redis", f"{url}: {error}", "start it, or mend redis.url")
        return
    except ErrorReply as error:
        yield Finding(
            Verdict.FAULT, "redis", f"{url} says {error}", "give redis.url the user and password"
        )
        return
    role, version = info.get("role", "?"), info.get("redis_version", "?")
    for name in ("tcprepl", "valkey"):
        if f"{name}_version" in info:
            version = f"{name} {info[f'{name}_version']}"
    if role not in ("master", "?"):
        yield Finding(
            Verdict.FAULT,
            "redis",
            f"{url} is a {role}: what is published there reaches no other",
            "name the master in redis.url",
        )
    else:
        yield Finding(Verdict.GOOD, "redis", f"{url} is there, {version}")
    if "tcprepl_version" not in info:  # a bus of ours has none of these settings
        yield from _redis_settings(info, settings)


def _redis_settings(
    info: Mapping[str, str], settings: Mapping[str, str] | str
) -> Iterator[Finding]:
    """Judge what matters to who publishes and subscribes."""
    if isinstance(settings, str):
        yield Finding(Verdict.GOOD, "redis", f"could not ask for its settings: {settings}")
        return
    wrong = list(_wrong_in_redis(info, settings))
    yield from wrong
    if not wrong:
        said = ", ".join(f"{name} {settings[name]}" for name in REDIS_SETTINGS if name in settings)
        yield Finding(Verdict.GOOD, "redis", f"its settings will do: {said or 'it tells none'}")


def _wrong_in_redis(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    words = settings.get("client-output-buffer-limit", "").split()
    if "pubsub" in words:
        place = words.index("pubsub")
        hard, soft, seconds = map(int, words[place + 1 : place + 4])
        if 0 < hard < PUBSUB_HARD_BYTES or 0 < soft < PUBSUB_SOFT_BYTES:
            yield Finding(
                Verdict.WARNING,
                "redis",
                f"client-output-buffer-limit pubsub {hard} {soft} {seconds}: a subscriber that is "
                "slow for a moment is cut off, and misses rows",
                "CONFIG SET client-output-buffer-limit 'pubsub 32mb 8mb 60', or more",
            )
    used, most = int(info.get("connected_clients", 0)), int(settings.get("maxclients", 0))
    if most and used > most * CLIENTS_SHARE:
        yield Finding(
            Verdict.WARNING,
            "redis",
            f"{used} of {most} clients (maxclients) are there: soon none is let in",
            "CONFIG SET maxclients to more, or see in CLIENT LIST who leaves connections open",
        )
    if 0 < (timeout_s := int(settings.get("timeout", 0))) < REDIS_TIMEOUT_S:
        yield Finding(
            Verdict.WARNING,
            "redis",
            f"timeout {timeout_s}: who publishes seldom is cut off after {timeout_s} s",
            "CONFIG SET timeout 0",
        )
    if settings.get("tcp-keepalive") == "0":
        yield Finding(
            Verdict.WARNING,
            "redis",
            "tcp-keepalive 0: a subscriber whose machine is gone keeps its connection and buffer",
            "CONFIG SET tcp-keepalive 300",
        )


def _ask_redis(url: RedisUrl) -> tuple[dict[str, str], dict[str, str] | str]:
    """Return what INFO says; and some settings, or why they are not told."""
    if url.path is None:
        peer = socket.create_connection((url.host or "localhost", url.port), WAIT_S)
    else:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(WAIT_S)
    with peer:
        if url.path is not None:
            peer.connect(url.path)
        if url.tls:
            context = ssl.create_default_context(cafile=url.ca)
            if url.certificate is not None:
                context.load_cert_chain(url.certificate, url.private_key)
            peer = context.wrap_socket(peer, server_hostname=url.host)
        reader = RespReader()
        words = [word.encode() for word in (url.user, url.password) if word is not None]
        if url.password is not None:
            _asked(peer, reader, b"AUTH", *words)
        try:
            told = _asked(peer, reader, b"INFO")
        except ErrorReply as error:
            if not str(error).startswith("NOPERM"):
                raise
            return {}, str(error)
        text = told.decode("utf-8", "replace") if isinstance(told, bytes) else ""
        lines = (line.partition(":") for line in text.splitlines() if ":" in line)
        info = {key: value for key, _, value in lines}
        settings: dict[str, str] = {}
        try:
            for name in REDIS_SETTINGS:
                pair = _asked(peer, reader, b"CONFIG", b"GET", name.encode())
                if isinstance(pair, list) and len(pair) == 2:
                    settings[name] = bytes(pair[1]).decode("utf-8", "replace")
        except (OSError, ErrorReply) as error:
            return info, str(error)
    return info, settings


def _asked(peer: socket.socket, reader: RespReader, *words: bytes) -> object:
    """Return the reply to a command.

    Raises:
        ErrorReply: It is refused.
    """
    peer.sendall(encode(*words))
    while True:
        read = peer.recv(65_536)
        if not read:
            raise ConnectionError("closed the connection")
        for reply in reader.feed(read)[1]:
            if isinstance(reply, ErrorReply):
                raise reply
            return reply


def database(config: Config) -> Iterator[Finding]:
    """Whether the database of the log can be reached and will do, and who writes there."""
    if config.data is None:
        return
    try:
        holders, warnings = look_at_database(config.data.get_secret_value())
    except TcpreplError as error:
        what, _, todo = str(error).rpartition("; " if isinstance(error, LogError) else ": ")
        yield Finding(Verdict.FAULT, "database", what or todo, todo)
        return
    words = "; ".join(holder.words() for holder in holders)
    text = f"{where_logs_are(config)} can be used; {words or 'nobody has written there yet'}"
    yield Finding(Verdict.GOOD, "database", text)
    for warning in warnings:
        what, _, todo = warning.rpartition("; ")
        yield Finding(Verdict.WARNING, "database", what, todo)


def own_name(config: Config) -> Iterator[Finding]:
    """Whether other servers find us under our name."""
    name = config.server_name
    host = name.rpartition(":")[0] or name
    if "." not in host or host.endswith(_NOT_ON_THE_INTERNET):
        return
    try:
        with urllib.request.urlopen(
            f"https://{name}/.well-known/matrix/server", timeout=WAIT_S
        ) as answer:
            yield Finding(
                Verdict.GOOD, "own name", f"{name} delegates by .well-known ({answer.status})"
            )
            return
    except urllib.error.HTTPError as error:
        delegated = f"no .well-known (HTTP {error.code})"
    except OSError as error:
        delegated = f"no .well-known ({getattr(error, 'reason', error)})"
    try:
        found = socket.getaddrinfo(host, 8448, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding(
            Verdict.WARNING,
            "own name",
            f"{name}: {delegated}, and {error.strerror or error}",
            "an A or AAAA record, a .well-known/matrix/server, or an SRV record",
        )
        return
    yield Finding(Verdict.GOOD, "own name", f"{name} is {found[0][4][0]}, {delegated}")


LOCAL: tuple[Check, ...] = (
    versions, clock, descriptors, data, room, secrets, certificates, ports,
)  # fmt: skip
REMOTE: tuple[Check, ...] = (database, redis, own_name)


def _in_use(directory: Path) -> str:
    pid = holder_of(directory)
    return f"{directory} is ours, and {'not in use' if pid is None else f'in use by process {pid}'}"


def _said(*words: str) -> str:
    """Return what a program prints; "" if there is none, or it has nothing to say."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
