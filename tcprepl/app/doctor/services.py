"""What this depends on elsewhere: Redis, the database, the name on the internet."""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tcprepl.app.doctor.findings import WAIT_S, Finding, Verdict
from tcprepl.app.opening import where_logs_are
from tcprepl.errors import LogError, TcpreplError
from tcprepl.replication.redis.resp import BadReply, ErrorReply, RespReader, encode
from tcprepl.replication.redis.url import RedisUrl, parse_redis_url
from tcprepl.settings import Config
from tcprepl.streams.opening import look_at_database

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


@contextmanager
def _connected(url: RedisUrl) -> Iterator[socket.socket]:
    """Be connected to *url*, over TLS if it says so."""
    with ExitStack() as stack:
        if url.path is None:
            address = (url.host or "localhost", url.port)
            peer = stack.enter_context(socket.create_connection(address, WAIT_S))
        else:
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.settimeout(WAIT_S)
            peer.connect(url.path)
        if url.tls:
            context = ssl.create_default_context(cafile=url.ca)
            if url.certificate is not None:
                context.load_cert_chain(url.certificate, url.private_key)
            peer = stack.enter_context(context.wrap_socket(peer, server_hostname=url.host))
        yield peer


def _ask_redis(url: RedisUrl) -> tuple[dict[str, str], dict[str, str] | str]:
    """Return what INFO says; and some settings, or why they are not told."""
    with _connected(url) as peer:
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
