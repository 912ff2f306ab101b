"""Transactions of other servers: who sent them, once, and what becomes of each EDU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signedjson.key import generate_signing_key
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl.errors import FederationError, LogCorrupt, LogError, LogUnavailable
from tcprepl.federation.receiving.receiver import (
    ReceivedEdu,
    SeenTransactions,
    TransactionReceiver,
    content_handler,
)
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu
from tcprepl.federation.wire.keyring import Keyring
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.wire.transaction import build_body
from tcprepl.http.calls import ApiError

SIGNER = Signer("y.example", generate_signing_key("a_1"))
URI = "/_matrix/federation/v1/send/t1"


class World:
    """A receiver with real keys and in-memory everything else."""

    def __init__(self, path: Path | None = None) -> None:
        self.now_ms = 1_000_000
        self.up: list[str] = []
        self.taken: list[tuple[str, str, Any, str]] = []
        self.seen = SeenTransactions(path)
        self.receiver = TransactionReceiver(
            "x.example",
            Keyring(self.fetch, lambda: self.now_ms),
            self.seen,
            lambda: self.now_ms,
            on_origin_up=self.up.append,
        )
        self.receiver.on(None, self.take)

    async def fetch(self, destination: str, uri: str) -> Answer:
        return Answer(200, SIGNER.key_document(self.now_ms))

    def take(self, origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        content = json.loads(bytes(edu.content))
        self.taken.append((origin, edu.edu_type, content, delivery_id))

    def authenticate(
        self, body: bytes | None, *headers: str, method: str = "PUT", uri: str = URI
    ) -> str:
        return result(self.receiver.authenticate(method, uri, list(headers), body))

    def receive(self, body: bytes, transaction_id: str = "t1") -> bytes:
        return result(self.receiver.receive("y.example", transaction_id, body))


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.seen.close()


def body(*edu_types: str) -> bytes:
    edus = [build_edu("y.example", "x.example", kind, {"n": n}) for n, kind in enumerate(edu_types)]
    return build_body("y.example", 5, edus)


def signed(content: bytes | None, uri: str = URI) -> str:
    return SIGNER.authorization("x.example", "PUT", uri, content).decode()


def test_a_request_that_is_signed_is_believed(world: World) -> None:
    assert world.authenticate(body("m.x"), signed(body("m.x"))) == "y.example"
    assert world.up == ["y.example"]
    # It is told not too often.
    world.authenticate(body("m.x"), signed(body("m.x")))
    assert world.up == ["y.example"]
    world.now_ms += 60_000
    world.authenticate(body("m.x"), signed(body("m.x")))
    assert world.up == ["y.example"] * 2


def test_a_body_that_is_not_canonical_is_verified_in_its_canonical_form(world: World) -> None:
    loose = json.dumps(json.loads(body("m.x")), indent=2).encode()
    assert world.authenticate(loose, signed(body("m.x"))) == "y.example"


def test_a_request_without_a_body_is_verified(world: World) -> None:
    assert world.authenticate(None, signed(None)) == "y.example"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer x", 400),
        (signed(body("m.x")).replace("sig=", "gis="), 400),
        (signed(body("m.x")).replace('destination="x.', 'destination="z.'), 401),
        (signed(body("m.x")).replace("origin", "nigiro"), 400),
        (signed(body("m.x")).replace('origin="y.example"', 'origin="not a name"'), 400),
        (signed(body("m.x")).replace("a_1", "a_2"), 401),
        (signed(body("m.y")), 401),
        (signed(body("m.x"), "/other"), 401),
        (signed(body("m.x")).replace('sig="', 'sig="AAAA'), 401),
    ],
)
def test_a_request_that_is_not_is_refused(world: World, header: str | None, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        world.authenticate(body("m.x"), *([header] if header else []))
    assert caught.value.status == status
    assert world.up == []
    assert caught.value.errcode.startswith("M_")


def test_two_headers_of_two_origins_are_refused(world: World) -> None:
    other = signed(body("m.x")).replace('origin="y', 'origin="z')
    with pytest.raises(ApiError, match="several"):
        world.authenticate(body("m.x"), signed(body("m.x")), other)


@pytest.mark.parametrize("content", [b"{", b'{"a":"\xff"}', b'"\\ud800\xff"'])
def test_a_body_that_is_no_json_is_refused(world: World, content: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        world.authenticate(content, signed(body("m.x")))
    assert caught.value.status == 400


def test_each_edu_reaches_its_handler(world: World) -> None:
    typing: list[Any] = []
    world.receiver.on("m.typing", content_handler(lambda *given: typing.append(given)))
    assert json.loads(world.receive(body("m.typing", "m.other"))) == {"pdus": {}}
    assert typing == [("y.example", {"n": 0})]
    assert [found[:3] for found in world.taken] == [("y.example", "m.other", {"n": 1})]


def test_a_repeated_transaction_is_answered_and_not_taken(world: World) -> None:
    first = world.receive(body("m.x"))
    assert world.receive(body("m.x")) == first
    assert len(world.taken) == 1
    world.receive(body("m.x"), "t2")
    assert len(world.taken) == 2
    assert world.taken[0][3] != world.taken[1][3]


def test_transactions_are_remembered_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path / "seen.sqlite")
    world.receive(body("m.x"))
    world.seen.close()
    again = World(tmp_path / "seen.sqlite")
    again.receive(body("m.x"))
    assert again.taken == []
    again.seen.close()


def test_what_a_handler_will_not_take_costs_nothing_but_itself(world: World) -> None:
    async def picky(origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        raise ValueError("no")

    def broken(origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        raise ZeroDivisionError

    world.receiver.on("m.picky", picky)
    world.receiver.on("m.broken", broken)
    world.receive(body("m.picky", "m.x", "m.broken", "m.x"))
    assert len(world.taken) == 2


def test_an_edu_that_is_none_is_left_out(world: World) -> None:
    world.receive(b'{"edus":[5,{"edu_type":"m.x","content":{}}]}')
    assert len(world.taken) == 1


@pytest.mark.parametrize("error", [LogUnavailable("disk full"), LogCorrupt("disk malformed")])
def test_what_cannot_be_stored_has_to_come_again(world: World, error: LogError) -> None:
    full = True

    def store(origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        if full:
            raise error
        world.take(origin, edu, delivery_id)

    world.receiver.on("m.direct_to_device", store)
    with pytest.raises(type(error)):
        world.receive(body("m.x", "m.direct_to_device"))
    full = False
    world.receive(body("m.x", "m.direct_to_device"))
    ids = [found[3] for found in world.taken]
    assert len(ids) == 3
    # A handler can tell that it has seen the first before.
    assert len(set(ids)) == 2


def test_while_one_is_under_way_it_is_joined_and_others_wait(world: World) -> None:
    gate: Deferred[None] = Deferred()

    async def slow(origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        await gate

    world.receiver.on("m.slow", slow)
    answers: list[Any] = []
    for _ in range(2):
        Deferred.fromCoroutine(
            world.receiver.receive("y.example", "t1", body("m.slow"))
        ).addCallback(answers.append)
    with pytest.raises(ApiError) as caught:
        world.receive(body("m.x"), "t2")
    assert caught.value.status == 429
    assert caught.value.extra["retry_after_ms"]
    gate.callback(None)
    assert answers == [b'{"pdus":{}}'] * 2


def test_whoever_joined_hears_of_the_failure_too(world: World) -> None:
    gate: Deferred[None] = Deferred()

    async def failing(origin: str, edu: ReceivedEdu, delivery_id: str, /) -> None:
        await gate
        raise LogUnavailable("disk full")

    world.receiver.on("m.x", failing)
    failures: list[Any] = []
    for _ in range(2):
        Deferred.fromCoroutine(world.receiver.receive("y.example", "t1", body("m.x"))).addErrback(
            failures.append
        )
    gate.callback(None)
    assert [failure.type for failure in failures] == [LogUnavailable] * 2


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"[]", 400),
        (b'{"edus":5}', 400),
        (b'{"origin":"z.example"}', 403),
        (b'{"edus":[%b]}' % b",".join([b"{}"] * 101), 400),
        (b'{"pdus":[%b]}' % b",".join([b"{}"] * 51), 400),
    ],
)
def test_what_is_no_transaction_is_refused(world: World, given: bytes, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        world.receive(given)
    assert caught.value.status == status


def test_a_transaction_id_has_a_length(world: World) -> None:
    for wrong in ("", "x" * 256):
        with pytest.raises(ApiError):
            world.receive(body("m.x"), wrong)


def test_without_a_handler_an_edu_is_let_go() -> None:
    world = World()
    receiver = TransactionReceiver(
        "x.example", Keyring(world.fetch, lambda: 0), world.seen, lambda: 0
    )
    assert result(receiver.receive("y.example", "t1", body("m.x"))) == b'{"pdus":{}}'
    world.seen.close()


def test_old_transactions_are_forgotten() -> None:
    seen = SeenTransactions()
    for number in range(10):
        seen.put("y", f"t{number}", b"{}", number)
    seen.prune(9, keep=3)
    assert [n for n in range(10) if seen.get("y", f"t{n}")] == [7, 8, 9]
    seen.prune(10**12)
    assert seen.get("y", "t9") is None
    seen.close()


def test_a_start_with_a_wrong_clock_forgets_nothing(tmp_path: Path) -> None:
    """What was taken would be taken again."""
    now_ms = 10**12
    for number, days in enumerate((0, 300, -1, 0)):
        seen = SeenTransactions(tmp_path / "seen.sqlite")
        seen.put("y", f"t{number}", b"{}", now_ms + days * 86_400_000)
        assert all(seen.get("y", f"t{before}") for before in range(number + 1))
        seen.close()


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    path = tmp_path / "seen.sqlite"
    path.write_bytes(b"rubbish" * 1_000)
    with pytest.raises(LogError, match="move it away"):
        SeenTransactions(path)


def test_what_is_too_long_for_an_edu_costs_itself(world: World) -> None:
    """65,536 bytes of canonical JSON, however it came."""
    room = 65_536 - len('{"content":{"a":""},"edu_type":"m.x"}')
    for length in (room, room + 1):
        spaced = '{"content": {"a": "%s"},  "edu_type": "m.x"}' % ("x" * length)
        world.receive(f'{{"edus":[{spaced}]}}'.encode(), f"t{length}")
    assert [len(content["a"]) for _, _, content, _ in world.taken] == [room]


def test_a_stranger_learns_nothing_of_what_we_asked(world: World) -> None:
    """The log has it; all who are not believed get the same."""

    async def fails(destination: str, uri: str) -> Answer:
        raise FederationError("10.0.0.7:8448 refused; PORT 22 said SSH-2.0")

    other = Signer("y.example", generate_signing_key("a_1"))
    wrong = other.authorization("x.example", "PUT", URI, body()).decode()
    with pytest.raises(ApiError) as unsigned:
        world.authenticate(body(), wrong)
    unreached = World()
    unreached.receiver._keyring = Keyring(fails, lambda: 0)
    with capture_logs() as logs, pytest.raises(ApiError) as unknown:
        unreached.authenticate(body(), wrong)
    assert unsigned.value.message == unknown.value.message == "no valid signature of y.example"
    assert any("SSH-2.0" in str(entry) for entry in logs)
    unreached.seen.close()


def test_only_so_many_wait_for_keys_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who names servers makes us ask so many at a time and no more."""
    monkeypatch.setattr("tcprepl.federation.receiving.receiver.MAX_AUTHENTICATING", 2)
    asked: list[Deferred[Answer]] = []

    async def never(destination: str, uri: str) -> Answer:
        asked.append(Deferred())
        return await asked[-1]

    world.receiver._keyring = Keyring(never, lambda: 0)
    header = signed(body())
    waiting = []
    for name in ("a", "b", "c"):
        named = header.replace("y.example", f"{name}.example")
        work = world.receiver.authenticate("PUT", URI, [named], body())
        waiting.append(Deferred.fromCoroutine(work))
    failure = waiting[2].result
    assert isinstance(failure, Failure)
    assert failure.value.status == 429
    for one in asked:
        one.callback(Answer(404, b""))
    for one in waiting:
        one.addErrback(lambda failure: failure.trap(ApiError))
    assert len(asked) == 2


def test_what_was_seen_survives_the_death_of_the_process(tmp_path: Path) -> None:
    seen = SeenTransactions(tmp_path / "seen.sqlite")
    assert seen._connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    seen.close()
