"""Every parser that a stranger reaches, as a fuzz target; a new one is a function and a corpus.

Each says its invariant: which errors it may raise, and where a second implementation has to agree.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl.access import Grant, Tokens, digest
from tcprepl.addresses import parse_address
from tcprepl.cli import recording
from tcprepl.config import BadConfig, parse
from tcprepl.errors import BadRow, ConfigError, LogError, TokenRefused
from tcprepl.federation.receiving.receiver import SeenTransactions, TransactionReceiver
from tcprepl.federation.wire import answer, discovery, edu, keyring, signing
from tcprepl.http.calls import ApiError
from tcprepl.replication.redis.resp import BadReply, ErrorReply, RespReader
from tcprepl.replication.redis.url import parse_redis_url
from tcprepl.streams.json_rows import rows_in
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.registry import Registry
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.fuzz import fuzz_bus, fuzz_redis, fuzz_session, others
from tests.fuzz.driving import Target
from tests.log_kit import DURABLE, SqliteStore
from tests.web_site import Exchange, Stage

TARGETS: dict[str, Target] = {}


def target(
    name: str, *modules: str, needs: Sequence[str] = (), cost: int = 1
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Make a function a target."""

    def take(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(
            name, check, [f"tcprepl.{module}" for module in modules], needs, cost
        )
        return check

    return take


def text_of(raw: bytes) -> str:
    """Return bytes as a header of HTTP has them."""
    return raw.decode("latin-1")


def same(one: object, other: object) -> bool:
    """Return whether two JSON values are the same, 1 and 1.0 and true being different."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut *data*."""
    return [data[start : start + size] for start in range(0, len(data), size)]


# --- the wire -----------------------------------------------------------------------------------

target(
    "session",
    *("protocol.parsing", "protocol.serializing", "protocol.session", "protocol.commands"),
    *("protocol.server_session", "protocol.client_session"),
)(fuzz_session.check)
target(
    "bus",
    *("replication.redis.requests", "replication.bus.listener", "replication.bus.connection"),
    "replication.bus.commands",
)(fuzz_bus.check)


def _replies(given: list[bytes]) -> tuple[list[bytes], list[str], bool]:
    reader = RespReader(b"example.com", max_reply_bytes=4_000)
    payloads: list[bytes] = []
    rest: list[str] = []
    for piece in given:
        try:
            some, others = reader.feed(piece)
        except BadReply:
            return payloads, rest, True
        payloads += some
        rest += [f"{one}" if isinstance(one, ErrorReply) else repr(one) for one in others]
    return payloads, rest, False


@target("resp", "replication.redis.resp")
def check_resp(raw: bytes) -> None:
    """Replies are cut into the same values, wherever the pieces end, or there is one error."""
    whole, cut = _replies([raw]), _replies(pieces(raw, 1 + len(raw) % 7))
    if not whole[2] and not cut[2]:
        assert whole == cut
    # of what is behind an error, what was cut before it may be told or not
    assert cut[0][: len(whole[0])] == whole[0] or whole[2]


target(
    "requests",
    *("replication.redis.requests", "replication.bus.commands", "replication.bus.replies"),
    *("replication.bus.patterns", "replication.bus.channels", "replication.bus.cache"),
    needs=("redis-server", "cc"),
    cost=2,
)(fuzz_redis.check_requests)
target("replies", "replication.redis.resp", needs=("redis-server", "cc"), cost=2)(
    fuzz_redis.check_replies
)


@target("inline", "replication.redis.requests", needs=("redis-server",))
def check_inline(raw: bytes) -> None:
    """A line that somebody types means what it means to Redis."""
    line = raw.partition(b"\n")[0].partition(b"\0")[0].removesuffix(b"\r")[:500]
    ours = others.our_words(line)
    theirs = others.redis_words(line)
    assert ours == theirs, (line, ours, theirs)


# --- HTTP ---------------------------------------------------------------------------------------


@target(
    "http",
    *("http.channel", "http.calls", "http.routing", "web.client_api", "web.ingest"),
    *("web.catchup", "web.longpoll", "web.incarnations"),
)
def check_http(raw: bytes) -> None:
    """Whatever comes, what is answered is HTTP, never 500, and the next one is served."""
    stage = Stage()
    exchange = Exchange(stage)
    for piece in pieces(raw, max(1, len(raw) // 3)):
        if not exchange.transport.disconnecting:
            exchange.send(piece)
    for seconds in (0, 1, 100):
        stage.clock.advance(seconds)
    said = exchange.transport.value()
    assert not said or said.startswith(b"HTTP/1."), said
    assert b"HTTP/1.1 500" not in said, said
    exchange.leave()
    assert stage.get("/health").status == 200
    stage.close()


# --- federation ---------------------------------------------------------------------------------

SIGNER = signing.Signer("y.example", generate_signing_key("a_1"))
URI = "/_matrix/federation/v1/send/t1"
NOW_MS = 1_700_000_000_000


@target("x-matrix", "federation.wire.signing")
def check_x_matrix(raw: bytes) -> None:
    """A header says who asks, or is refused; where there is Synapse, both read the same."""
    header = text_of(raw)
    try:
        found = signing.parse_authorization(header)
    except signing.BadAuthorization:
        return
    assert found.origin
    assert found.key_id
    assert found.signature
    if others.synapse() is None or not edu.is_server_name(found.origin):
        return
    if re.search(r'"[^"]*,', header):
        return  # Synapse parts what is quoted, too
    theirs = others.synapse_authorization(raw.decode("latin-1").encode())
    ours = [found.origin, found.key_id, found.signature, found.destination]
    assert theirs is None or theirs == ours, (header, theirs, ours)


def result(work: Any) -> Any:
    """Return what a coroutine that does not wait returns, or raise."""
    there: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(there.append)
    if isinstance(there[0], Failure):
        there[0].raiseException()
    return there[0]


@target("transaction", "federation.receiving.receiver", "federation.wire.edu")
def check_transaction(raw: bytes) -> None:
    """A transaction is taken, or refused; each EDU costs nothing but itself."""

    async def fetch(destination: str, uri: str) -> answer.Answer:
        return answer.Answer(200, SIGNER.key_document(NOW_MS))

    seen = SeenTransactions()
    receiver = TransactionReceiver(
        "x.example", keyring.Keyring(fetch, lambda: NOW_MS), seen, lambda: NOW_MS
    )
    taken: list[object] = []
    receiver.on(None, lambda origin, one, _: taken.append(json.loads(bytes(one.content))))
    head, _, body = raw.partition(b"\n")
    try:
        for work in (
            receiver.authenticate("PUT", URI, [text_of(head)], body),
            receiver.receive("y.example", "t1", body),
        ):
            with contextlib.suppress(ApiError):
                result(work)
        assert len(taken) <= 100
    finally:
        seen.close()


@target("well-known", "federation.wire.discovery")
def check_well_known(raw: bytes) -> None:
    """A host is delegated to a server name, for a bounded time, or there is no answer."""
    control, _, rest = raw.partition(b"\n")
    expires, _, body = rest.partition(b"\n")

    async def fetch(host: str) -> discovery.WellKnownAnswer:
        return discovery.WellKnownAnswer(200, body, text_of(control), text_of(expires))

    async def lookup(name: str) -> list[discovery.SrvRecord]:
        return []

    place = discovery.Discovery(lambda: NOW_MS / 1000, fetch, lookup, chance=random.Random(1))
    targets = result(place.resolve("y.example"))
    assert targets
    assert all(0 < one.port < 65_536 for one in targets)


@target("keys", "federation.wire.keyring")
def check_keys(raw: bytes) -> None:
    """A key document gives keys that have signed it, or there are none."""
    signed = raw.startswith(b"signed ")
    if signed:  # so that there is something behind the signature
        try:
            document = json.loads(raw[7:])
            document = json.loads(SIGNER.key_document(NOW_MS)) | document
        except (ValueError, TypeError, RecursionError):
            return
        raw = json.dumps(document).encode("utf-8", "surrogatepass")
    try:
        found, until_ms = keyring.read_key_document("y.example", raw)
    except keyring.KeyNotFound:
        return
    assert found
    assert isinstance(until_ms, int)


@target("answer", "federation.wire.answer")
def check_answer(raw: bytes) -> None:
    """What a remote answers to a transaction always means something."""
    head, _, rest = raw.partition(b"\n")
    status, _, retry = head.partition(b" ")
    date, _, body = rest.partition(b"\n")
    code = int(status[:3]) if status[:3].isdigit() else 503
    wait_ms = answer.retry_after_ms(code, text_of(retry), text_of(date), body, NOW_MS / 1000)
    assert wait_ms is None or 0 <= wait_ms <= answer.MAX_RETRY_AFTER_MS
    found = answer.Answer(code, body, wait_ms, text_of(date))
    assert isinstance(found.meaning(), answer.Meaning)
    assert len(found.describe()) <= 200


def python_value(raw: bytes) -> object:
    """Return what Python's own reader reads.

    Raises:
        ValueError: It is not JSON.
    """

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(raw.decode(), parse_constant=refuse)


@target("canonical", "federation.wire.edu")
def check_canonical(raw: bytes) -> None:
    """Ours is what canonicaljson writes of what Python's own reader reads."""
    try:
        canonical = edu.canonicalise(raw) or raw
    except edu.BadEdu:
        return
    try:
        value = python_value(raw)
    except (ValueError, RecursionError):
        return  # msgspec knows deeper and longer ones
    assert canonical == encode_canonical_json(value), (raw, canonical)
    assert edu.canonicalise(canonical) is None


@target("json", "streams.json_rows")
def check_json(raw: bytes) -> None:
    """An array of rows is taken apart as Python's own reader would, or by neither."""
    try:
        value = python_value(raw)
        mine: object = value if isinstance(value, list) else None
    except (ValueError, RecursionError):
        mine = None
    try:
        rows = rows_in(raw)
    except ValueError:
        rows = None
    if rows is None:
        assert mine is None or not _fits(mine), raw
        return
    with contextlib.suppress(ValueError, RecursionError):
        assert same([json.loads(bytes(row)) for row in rows], mine) or mine is None, raw


def _fits(value: object) -> bool:
    """Return whether msgspec knows numbers as large."""
    return "Infinity" not in json.dumps(value)


@target("rows", "streams.codec", "federation.wire.edu")
def check_rows(raw: bytes) -> None:
    """A row of each stream is read and written as the same, or refused; EDUs never stop others."""
    registry = Registry()
    for stream in registry.names():
        codec = registry.codec(stream)
        try:
            row = codec.decode(raw)
        except BadRow:
            continue
        with contextlib.suppress(BadRow):  # what can be read, but not said again
            (line,) = codec.encode([row])
            assert codec.encode([codec.decode(bytes(line))]) == [line], (stream, raw)
    bad: list[edu.BadRow] = []
    good = b'["e",{"content":{},"destination":"x.example","edu_type":"m","origin":"y.example"}]'
    found = edu.parse_rows([raw, good], "y.example", NOW_MS, bad)
    assert found[-1].edu_type == "m"
    assert all(msgspec.json.decode(one.content) is not None for one in found)


# --- configuration and what is typed ------------------------------------------------------------


@target("config", "config", "values")
def check_config(raw: bytes) -> None:
    """A configuration is read, or all its faults are named."""
    with contextlib.suppress(BadConfig, ConfigError, UnicodeDecodeError):
        parse(raw.decode(), "tcprepl.yaml")


@target("addresses", "values", "replication.redis.url", "federation.wire.edu")
def check_addresses(raw: bytes) -> None:
    """An address means a host and a port, or a ValueError says that it does not."""
    text = text_of(raw)
    if "password_file" not in text:
        with contextlib.suppress(ValueError):
            parse_redis_url(text)
    with contextlib.suppress(ValueError):
        parse_address(text)
    if edu.is_server_name(text):
        host, port, _ = discovery.split_server_name(text)
        assert host
        assert port is None or 0 < port < 65_536


@target("tokens", "access")
def check_tokens(raw: bytes) -> None:
    """Only the token itself grants anything."""
    tokens = Tokens([("secret", Grant("w1"))])
    host, _, given = raw.partition(b" ")
    said = given.decode("utf-8", "replace")
    for seconds in range(3):
        try:
            assert tokens.admit(said, text_of(host), seconds).name == "w1"
            assert said == "secret"
        except TokenRefused:
            pass
    assert (tokens.grant(digest(said)) is not None) == (said == "secret")


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Make a directory where files cost little."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


@target("recording", "cli.recording")
def check_recording(raw: bytes) -> None:
    """A recording is read up to where it is damaged, and that is said; bare lines are lines."""
    with directory() as where:
        path = where / "recording"
        path.write_bytes(raw)
        with contextlib.suppress(recording.BadRecording, recording.NoRecording):
            for line in recording.read(path):
                assert b"\n" not in line.line
                assert line.ms >= 0
        with contextlib.suppress(recording.BadRecording):
            assert all(line.line for line in recording.read(path, bare=True))


def damaged(raw: bytes, made: bytes) -> bytes:
    """Return a file as *raw* says that it was damaged: places and what is there instead."""
    changed = bytearray(made)
    for hit in pieces(raw, 4)[:40]:
        place = int.from_bytes(hit[:3].ljust(3, b"\0"), "big") % len(changed)
        changed[place] = hit[3] if len(hit) > 3 else changed[place] ^ 1
    return bytes(changed) if len(raw) % 8 else bytes(changed[: len(changed) * 3 // 4])


_files: dict[str, bytes] = {}


def _log_file() -> bytes:
    if "log" not in _files:
        with directory() as where:
            store = SqliteStore(where / "log")
            for number in range(20):
                store.log.append(DURABLE, "w", [b'["@%d:x"]' % number] * 3)
            store.close()
            shutil.copytree(where / "log", where / "kept")
            with contextlib.closing(sqlite3.connect(where / "kept" / DATABASE_NAME)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")
            _files["log"] = (where / "kept" / DATABASE_NAME).read_bytes()
    return _files["log"]


@target("log", "streams.database", "streams.opening", "storage.sqlite")
def check_log_file(raw: bytes) -> None:
    """A damaged file is refused in words, or gives back no row that was not written."""
    with directory() as where:
        (where / DATABASE_NAME).write_bytes(damaged(raw, _log_file()))
        try:
            store = SqliteStore(where)
        except LogError:
            return
        try:
            log = store.log
            after, limit = log.floor(DURABLE, "w"), log.position(DURABLE, "w")
            cursor = log.cursor((DURABLE, "w"), min(after, limit))
            for _ in range(100):
                found = cursor.next()
                if hasattr(found, "rows"):
                    assert all(row.startswith(b'["@') for _, row in found.rows())
        except LogError:
            pass
        finally:
            with contextlib.suppress(LogError):
                store.close()


@target("positions", "streams.position_store", "streams.lineage")
def check_positions(raw: bytes) -> None:
    """A damaged store of positions is refused in words, or gives tokens."""
    if "positions" not in _files:
        with directory() as where:
            made = SqlitePositionStore(where / "p.db")
            for number in range(5):
                made.save({(DURABLE, f"w{number}"): number}, "a" * 16)
            made.close()
            _files["positions"] = (where / "p.db").read_bytes()
    with directory() as where:
        (where / "p.db").write_bytes(damaged(raw, _files["positions"]))
        with contextlib.suppress(LogError):
            store = SqlitePositionStore(where / "p.db")
            try:
                for pair, token in store.load().items():
                    assert isinstance(token, int)
                    store.places(pair, token)
            finally:
                with contextlib.suppress(LogError):
                    store.close()
