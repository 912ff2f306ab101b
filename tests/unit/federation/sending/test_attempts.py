"""What becomes of attempts: refusals, doubts, pages, faults of the disk, on a fake clock."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred, fail, succeed

from tcprepl import metrics
from tcprepl.federation.sending import attempts, writes
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.destination import Destination, Held
from tcprepl.federation.sending.stored import StoredTransaction
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_world import Remote, World
from tests.unit.federation.sending.test_sender import result, send, until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with structlog.testing.capture_logs():
        made = World(tmp_path / "outbox.sqlite", 1)
        yield made
        made.kill()


def test_a_failure_nobody_expected_waits_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(attempts, "build_body", broken)
    send(world, "remote1.example", {"n": 1})
    world.run(0.5)
    assert result(world.sender.describe_one("remote1.example"), world)["failures"] >= 1
    monkeypatch.undo()
    world.run(60)
    assert world.remote("remote1.example").deliveries


def test_only_so_many_types_are_counted_by_themselves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_MAX_TYPES", 2)
    for number in range(5):
        send(world, "remote1.example", {"n": number}, f"org.example.{min(number, 3)}")
    world.run(5)
    counted = {kind: count for (kind,), count in world.sender._attempts.sent_edus()}
    assert counted.pop("other") == 3.0
    assert sorted(counted.values()) == [1.0, 1.0]
    assert world.sender._attempts.sent_transactions == len(world.remote("remote1.example").accepted)


POISON = {
    "first": {0},
    "last": {119},
    "middle": {60},
    "several": {0, 31, 32, 99, 100, 119},
    "adjacent": set(range(40, 52)),
}
REFUSALS = {
    "400": Answer(400, b'{"errcode":"M_BAD_JSON","error":"poison"}'),
    "400 of a proxy": Answer(400, b"<html>", None, "text/html"),
    "401": Answer(401, b'{"errcode":"M_UNAUTHORIZED","error":"poison"}'),
    "403": Answer(403, b'{"errcode":"M_FORBIDDEN","error":"poison"}'),
    "404": Answer(404, b'{"errcode":"M_NOT_FOUND","error":"poison"}'),
    "413": Answer(413, b"<html>"),
    "422": Answer(422, b"{}"),
    "500": Answer(500, b'{"errcode":"M_UNKNOWN","error":"poison"}'),
    "500 of a crash": Answer(500, b"Internal Server Error", None, "text/plain"),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_a_remote_refuses_holds_up_nobody(world: World, poison: str, refusal: str) -> None:
    """All others leave within seconds, wherever it stands and whatever the remote says."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison, remote.poison_answer = POISON[poison], REFUSALS[refusal]
    for number in range(120):
        send(world, name, {"n": number})
    world.run(30)
    assert {c["n"] for _, c in remote.deliveries} == set(range(120)) - POISON[poison]
    assert not world.wrong
    shown = result(world.sender.describe_one(name), world)
    assert shown["quarantined_edus"] == len(POISON[poison]) == len(shown["quarantined"])
    assert shown["state"] == "refused"
    assert all("HTTP" in edu["reason"] for edu in shown["quarantined"])
    # Later ones are not held up either, and what was refused comes when it is asked for.
    send(world, name, {"n": 1_000})
    world.run(2)
    assert remote.deliveries[-1][1]["n"] == 1_000
    remote.poison = set()
    count = len(POISON[poison])
    assert result(world.sender.retry(name, quarantined=True), world) == count
    world.run(10)
    assert {c["n"] for _, c in remote.deliveries} == {*range(120), 1_000}


@pytest.mark.parametrize("refusal", ["400", "500", "403"])
def test_a_remote_that_refuses_everything_gets_what_it_takes_later(
    world: World, refusal: str
) -> None:
    """Nothing is lost, an EDU that it would take leaves within seconds, requests are few."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison, remote.poison_answer = set(range(120)), REFUSALS[refusal]
    for number in range(120):
        send(world, name, {"n": number})
    world.run(3600)
    assert remote.deliveries == []
    shown = result(world.sender.describe_one(name), world)
    assert shown["queued_edus"] == 120
    assert remote.requests < 600
    send(world, name, {"n": 1_000})
    world.run(60)
    assert remote.deliveries[0][1]["n"] == 1_000
    remote.poison = set()
    result(world.sender.retry(name, quarantined=True), world)
    world.run(30)
    assert {c["n"] for _, c in remote.deliveries} == {*range(120), 1_000}
    assert not world.wrong


def test_a_remote_whose_database_is_away_loses_nobody_into_quarantine(world: World) -> None:
    """500 for everything is the remote's trouble: all of it comes when that is over."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "500"
    for number in range(300):
        send(world, name, {"n": number})
    world.run(1800)
    requests = remote.requests
    remote.mode = "ok"
    world.run(700)
    assert [c["n"] for _, c in remote.deliveries] == list(range(300))
    assert result(world.sender.describe_one(name), world)["quarantined_edus"] == 0
    assert requests < 1_000


@pytest.mark.parametrize("status", [500, 502])
def test_a_remote_that_fails_by_chance_gets_nobody_into_quarantine(
    world: World, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """It refuses one request in six, whatever it holds: all of it comes, and nobody is asked."""
    name = "remote1.example"
    remote, chance = world.remote(name), random.Random(1)
    well = remote.answer

    def answer(transaction_id: str, body: bytes) -> Answer:
        if chance.random() < 1 / 6:
            return Answer(status, b'{"errcode":"M_X"}')
        return well(transaction_id, body)

    monkeypatch.setattr(remote, "answer", answer)
    for number in range(200):
        send(world, name, {"n": number})
        world.run(1)
    world.run(100)
    assert {c["n"] for _, c in remote.deliveries} == set(range(200))
    assert result(world.sender.describe_one(name), world)["quarantined_edus"] == 0


@pytest.mark.parametrize("status", [401, 403, 404, 502, 500])
@pytest.mark.parametrize("how", ["cut", "killed", "cut and killed"])
def test_what_may_have_arrived_keeps_its_id_until_it_is_known(
    world: World, status: int, how: str
) -> None:
    """The remote stored it, the answer was lost, and for a while it says something else."""
    name = "remote1.example"
    remote = world.remote(name)
    if "cut" in how:
        remote.mode = "lost"
    for number in range(5):
        send(world, name, {"n": number})
    world.run(0.5 if how == "cut" else 0.35)
    if "killed" in how:
        world.kill()
        world.boot()
    remote.mode = "ok"
    world.remote(name).refuse_all = Answer(status, b'{"errcode":"M_X"}')
    world.run(300)
    send(world, name, {"n": 5})
    world.run(2_000)
    remote.refuse_all = None
    world.run(1_300)
    assert sorted(c["n"] for _, c in remote.deliveries) == list(range(6))
    assert not world.wrong


def test_a_newer_edu_waits_for_the_older_one_of_its_key_that_may_have_arrived(
    world: World,
) -> None:
    name = "remote1.example"
    remote = world.remote(name)

    def state(number: int) -> None:
        row = edu_row(build_edu("here.example", name, "m.x", {"n": number, "key": "a"}, ("a",)))
        world.rows.append((len(world.rows) + 1, row))
        world.deliver()

    remote.mode = "reset"
    state(1)
    world.run(0.5)
    remote.mode = "ok"
    first = next(iter(remote.ids))
    remote.refuse_only[first] = Answer(401, b'{"errcode":"M_X"}')
    world.run(30)
    assert result(world.sender.describe_one(name), world)["queued_edus"] == 1
    state(2)
    send(world, name, {"n": 3})
    world.run(60)
    assert [c["n"] for _, c in remote.deliveries] == [3]
    remote.refuse_only.clear()
    world.run(700)
    assert [c["n"] for _, c in remote.deliveries] == [3, 1, 2]
    assert not world.wrong


def test_a_page_with_status_200_delivers_nothing(world: World) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "page"
    send(world, name, {"n": 1})
    world.run(60)
    assert result(world.sender.describe_one(name), world)["queued_edus"] == 1
    remote.mode = "ok"
    world.run(100)
    assert [c["n"] for _, c in remote.deliveries] == [1]
    assert not world.wrong


def test_what_is_in_quarantine_can_be_dropped_and_survives_a_restart(world: World) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison = {1}
    send(world, name, {"n": 1})
    world.run(5)
    world.kill()
    world.boot()
    world.run(5)
    shown = result(world.sender.describe_one(name), world)
    (edu,) = shown["quarantined"]
    assert edu["reason"] == "HTTP 400 M_BAD_JSON poison"
    assert edu["edu_type"] == "m.direct_to_device"
    assert result(world.sender.drop(name), world) == 1
    assert result(world.sender.describe_one(name), world)["queued_edus"] == 0
    assert result(world.sender.drop("other.example"), world) == 0


def test_two_starts_at_the_same_time_use_different_ids(world: World) -> None:
    name = "remote1.example"
    for number in range(2):
        send(world, name, {"n": number})
        world.run(0)
        world.kill()
        world.clock.rightNow = 1_700_000_000.0
        world.boot()
    world.run(10)
    assert sorted(c["n"] for _, c in world.remote(name).deliveries) == [0, 1]
    assert not world.wrong


def test_a_disk_that_refuses_the_end_of_a_transaction_lets_nothing_leave_twice(
    world: World,
) -> None:
    """Killed meanwhile: what was accepted goes again under its own id."""
    name = "remote1.example"
    send(world, name, {"n": 1})
    until(world, lambda: world.remote(name).accepted)
    world.refuse_disk = True
    send(world, name, {"n": 2})
    world.run(20)
    world.kill()
    world.refuse_disk = False
    world.boot()
    world.run(60)
    assert sorted(c["n"] for _, c in world.remote(name).deliveries) == [1, 2]
    assert not world.wrong


def test_a_wait_that_the_remote_asks_for_is_kept(world: World) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.refuse_all = Answer(429, b"{}", 40_000)
    send(world, name, {"n": 1})
    world.run(39)
    assert remote.requests == 1
    remote.refuse_all = None
    world.run(15)
    assert remote.deliveries


def test_expired_edus_go_again_only_where_they_may_have_arrived(world: World) -> None:
    """A transaction that never left is made anew without them, after ten minutes."""
    for name, mode in (("remote1.example", "dead"), ("remote2.example", "reset")):
        world.remote(name).mode = mode
        send(world, name, {"n": 1}, "m.typing")
        send(world, name, {"n": 2})
        world.run(700)
        world.remote(name).mode = "ok"
        world.run(700)
    found = {
        name: sorted(c["n"] for _, c in remote.deliveries) for name, remote in world.remotes.items()
    }
    assert found == {"remote1.example": [2], "remote2.example": [1, 2]}
    assert not world.wrong


def test_more_than_was_read_back_at_once_arrives_once_and_in_order(world: World) -> None:
    """Expiring EDUs that waited on disk: those that live arrive, behind any number that do not."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "dead"

    def typing(first: int, count: int) -> None:
        for number in range(first, first + count):
            edu = build_edu("here.example", name, "m.typing", {"n": number}, (str(number),))
            world.rows.append((len(world.rows) + 1, edu_row(edu)))
        world.deliver()

    typing(0, 450)
    world.run(50)
    typing(450, 450)
    world.run(20)
    remote.mode = "ok"
    before = world.clock.seconds()
    world.sender.remote_server_up(name)
    world.run(10)
    assert world.clock.seconds() - before < 30
    assert [c["n"] for _, c in remote.deliveries] == list(range(450, 900))
    assert world.sender._attempts.held == 0
    assert result(world.sender.describe_one(name), world)["queued_edus"] == 0
    assert not world.wrong


def test_stopping_gives_up_at_once_what_the_disk_refuses(world: World) -> None:
    name = "remote1.example"
    send(world, name, {"n": 1})
    until(world, lambda: world.remote(name).accepted)
    world.refuse_disk = True
    world.run(17)
    stopped = Deferred.fromCoroutine(world.sender.stop())
    world.refuse_disk = False
    world.run(1)
    assert stopped.called
    assert world.clock.getDelayedCalls() == []


def test_what_is_in_memory_is_not_read_back_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More expiring EDUs than a page holds: each row is read once."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "dead"
    for number in range(500):
        edu = build_edu("here.example", name, "m.typing", {"n": number}, (str(number),))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
    world.deliver()
    world.run(3)  # it is not tried again yet
    pages: list[int] = []
    load = world.outbox.load

    def noted(*given: Any, **more: Any) -> Any:
        return load(*given, **more).addCallback(lambda page: pages.append(len(page)) or page)

    monkeypatch.setattr(world.outbox, "load", noted)
    monkeypatch.setattr(attempts, "LOAD_EDUS", 60)
    remote.mode = "ok"
    before = remote.requests
    world.sender.remote_server_up(name)
    world.run(20)
    assert [c["n"] for _, c in remote.deliveries] == list(range(500))
    assert sum(pages) == 500
    assert remote.requests - before == 5  # all of them full


def test_what_expires_in_memory_counts_no_more(world: World) -> None:
    made = Destination("remote1.example", world.sender._limits)
    counted = world.sender._attempts
    for number, expires_ms in ((1, 5), (2, 0), (3, 5)):
        edu = build_edu("here.example", made.name, "m.x", {"n": number})
        counted.held += made.hold((number, expires_ms, edu))
    assert counted.held == 3
    taken = counted._take(made, world.sender.now_ms(), 1)
    assert taken is not None
    assert [entry[0] for entry in taken.entries] == [2]
    assert counted.held == 0


def keyed(world: World, name: str, number: int, kind: str = "m.x") -> None:
    """Publish an EDU with the key "a"."""
    row = edu_row(build_edu("here.example", name, kind, {"n": number, "key": "a"}, ("a",)))
    world.rows.append((len(world.rows) + 1, row))
    world.deliver()


def numbers(remote: Remote) -> list[int]:
    return [content["n"] for _, content in remote.deliveries]


def test_a_recovery_is_kept(world: World) -> None:
    name = "remote1.example"
    world.remote(name).mode = "dead"
    send(world, name, {"n": 1})
    world.run(100)
    world.remote(name).mode = "ok"
    world.run(600)
    assert numbers(world.remote(name)) == [1]
    world.kill()
    world.boot()
    assert world.sender.destinations == {}


def test_a_remote_that_answers_again_is_well_whatever_it_says_of_an_edu(world: World) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "dead"
    send(world, name, {"n": 1})
    world.run(100)
    assert world.sender.destinations[name].backoff.failures > 2
    remote.mode, remote.poison = "ok", {1}
    world.sender.destinations[name].backoff.due_now()
    world.run(100)
    found = world.sender.destinations[name]
    assert (found.backoff.failures, found.quarantined) == (0, 1)
    send(world, name, {"n": 2})
    world.run(1)
    assert numbers(remote) == [2]
    world.kill()
    world.boot()
    assert world.sender.destinations[name].backoff.failures == 0


@pytest.mark.parametrize(("count", "said"), [(1, "it refuses the EDU"), (3, "none of 3 EDUs")])
def test_who_takes_nothing_is_left_alone_and_it_is_said_why(
    world: World, count: int, said: str
) -> None:
    name = "remote1.example"
    world.remote(name).refuse_all = REFUSALS["403"]
    for number in range(count):
        send(world, name, {"n": number})
    world.run(0.1)
    found = world.sender.destinations[name]
    until(world, lambda: found.backoff.failures)
    assert said in found.backoff.reason
    assert found.quarantined == 0
    requests = world.remote(name).requests
    world.run((found.backoff.next_ms - world.sender.now_ms()) / 1_000 - 0.1)
    assert world.remote(name).requests == requests
    world.run(2)
    assert world.remote(name).requests > requests


def test_what_was_not_taken_while_the_remote_was_busy_goes_without_what_expired(
    world: World,
) -> None:
    """After ten minutes; before, it goes just as it was."""
    for name, busy_s in (("remote1.example", 400), ("remote2.example", 700)):
        remote = world.remote(name)
        remote.refuse_all = Answer(429, b"{}", 1_000)
        send(world, name, {"n": 1}, "m.typing")
        send(world, name, {"n": 2})
        world.run(busy_s)
        ids = list(remote.ids)
        remote.refuse_all = None
        world.sender.remote_server_up(name)
        world.run(5)
        stale = busy_s > 600
        assert sorted(numbers(remote)) == ([2] if stale else [1, 2])
        assert (remote.accepted == ids[:1]) is not stale
        assert result(world.sender.describe_one(name), world)["queued_edus"] == 0


@pytest.mark.parametrize(
    ("uncertain", "age_ms", "expires_ms", "stale"),
    [
        (False, 600_001, -1, True),
        (False, 600_001, 0, True),
        (False, 600_001, 1, False),
        (False, 600_000, -1, False),
        (True, 600_001, -1, False),
        (False, 600_001, None, False),
    ],
)
def test_a_transaction_is_stale_that_never_arrived_and_holds_what_expired_long_ago(
    world: World, uncertain: bool, age_ms: int, expires_ms: int | None, stale: bool
) -> None:
    """An expiry is relative to now; None is never."""
    now_ms = world.sender.now_ms()
    edu = build_edu("here.example", "y.example", "m.x", {"n": 1})
    entries = [(1, 0, edu), (2, 0 if expires_ms is None else now_ms + expires_ms, edu)]
    made_ms = world.sender._wall_ms() - age_ms
    transaction = StoredTransaction("t", made_ms, entries, uncertain=uncertain)
    assert world.sender._attempts._is_stale(transaction) is stale


def test_a_transaction_of_which_nothing_is_left_is_given_up(world: World) -> None:
    """Somebody was at the file; what waits behind it goes."""
    name = "remote1.example"
    world.remote(name).mode = "reset"
    send(world, name, {"n": 1})
    world.run(1)
    send(world, name, {"n": 2})
    world.run(0.1)
    result(world.outbox.totals(), world)  # all of it is in the tables now
    world.outbox._connection.execute("DELETE FROM edus WHERE transaction_id IS NOT NULL")
    world.remote(name).mode = "ok"
    world.run(15)
    assert numbers(world.remote(name)) == [2]
    world.sender.destinations[name].stored = True  # which is not so
    send(world, name, {"n": 3})
    world.run(1)
    assert numbers(world.remote(name)) == [2, 3]
    assert not world.sender.destinations[name].backoff.failures


def test_what_has_expired_in_memory_leaves_the_disk(world: World) -> None:
    name = "remote1.example"
    world.remote(name).mode = "hang"
    send(world, name, {"n": 1})
    world.run(0.5)
    send(world, name, {"n": 2}, "m.typing")
    send(world, name, {"n": 3})
    expired = metrics.DROPPED.labels("edu", "expired")
    before = expired._value.get()
    world.sender._moved_ms += 60_001
    world.remote(name).mode = "ok"
    world.run(59)
    world.sender._sweeper.stop()  # which would remove it as well
    world.run(30)
    assert numbers(world.remote(name)) == [1, 3]
    assert result(world.outbox.totals(), world) == {}
    assert expired._value.get() == before + 1


def test_behind_a_page_that_has_expired_is_read_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same attempt: what is left leaves now, not with the next."""
    made = Destination("remote1.example", world.sender._limits)
    made.held = Held.OLDEST
    edu = build_edu("here.example", made.name, "m.x", {"n": 1})
    page = [(number, 1, edu) for number in range(1, made.max_edus + 1)]
    monkeypatch.setattr(attempts, "LOAD_EDUS", len(page))
    pages = [page, [(len(page) + 1, 0, edu)]]
    monkeypatch.setattr(world.outbox, "load", lambda *_, **__: succeed(pages.pop(0)))
    found = result(Deferred.fromCoroutine(world.sender._attempts._transaction(made)), world)
    assert [entry[0] for entry in found.entries] == [len(page) + 1]
    assert world.sender._attempts.held == 0


def test_a_newer_edu_in_memory_waits_for_the_older_one_that_may_have_arrived(
    world: World,
) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "reset"
    keyed(world, name, 1)
    world.run(0.5)
    remote.mode, remote.refuse_all = "ok", Answer(401, b'{"errcode":"M_X"}')
    world.sender.destinations[name].backoff.due_now()
    world.sender.remote_server_up(name)
    until(world, lambda: remote.under_way)
    keyed(world, name, 2)
    send(world, name, {"n": 3})
    until(world, lambda: world.sender.destinations[name].put_off)
    found = world.sender.destinations[name]
    assert (found.put_off, found.in_flight, found.stored) == (1, None, False)
    assert world.sender._attempts.held == 0
    remote.refuse_only, remote.refuse_all = dict.fromkeys(remote.ids, remote.refuse_all), None
    world.run(10)
    assert numbers(remote) == [3]
    remote.refuse_only.clear()
    world.run(700)
    assert numbers(remote) == [3, 1, 2]


def test_the_end_of_a_transaction_is_written_when_the_disk_takes_it_again(world: World) -> None:
    """Each by itself; nothing has to start anew for that."""
    for name in world.names[:3]:
        send(world, name, {"n": 1})

    def accepted() -> bool:
        count = sum(bool(world.remote(name).accepted) for name in world.names)
        world.refuse_disk = count > 0
        return count == 3

    until(world, accepted)
    world.run(20)
    world.refuse_disk = False
    world.run(20)
    assert result(world.outbox.totals(), world) == {}
    for name in world.names[:3]:
        send(world, name, {"n": 2})
    world.run(5)
    assert [numbers(world.remote(name)) for name in world.names[:3]] == [[1, 2]] * 3
    assert [world.remote(name).requests for name in world.names[:3]] == [2] * 3


def test_a_disk_that_refuses_says_nothing_of_the_remote(world: World) -> None:
    """A minute of it counted as a dozen failures, and the next wait was an hour."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = "dead"
    send(world, name, {"n": 1})
    until(world, lambda: remote.requests)
    world.run(1)
    backoff = world.sender.destinations[name].backoff
    assert backoff.failures == 1
    world.refuse_disk = True
    world.run(60)
    assert backoff.failures <= 2
    world.refuse_disk = False
    before = remote.requests
    until(world, lambda: remote.requests > before)
    assert backoff.failures <= 3
    assert backoff.next_ms - world.sender.now_ms() <= 80_000
    remote.mode = "ok"
    world.run(100)
    assert numbers(remote) == [1]
    assert world.sender.destinations.get(name) is None or not backoff.reason
    assert not world.wrong


@pytest.mark.parametrize("error", [OutboxUnavailable("full"), ZeroDivisionError("a bug")])
@pytest.mark.parametrize("which", ["load", "load_transaction", "begin", "take_back", "release"])
def test_an_attempt_that_the_disk_ends_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, which: str, error: Exception
) -> None:
    """What it had taken is read back; it is tried again after a while, and the failure told."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode = {"load": "dead", "load_transaction": "reset", "take_back": "reset"}.get(
        which, "ok"
    )
    if which == "release":
        remote.refuse_all = REFUSALS["403"]
    refused: list[str] = []

    def refuse(*_: object, **__: object) -> Deferred[Any]:
        monkeypatch.undo()
        refused.append(which)
        return fail(error)

    count = 2 if which == "release" else 150  # more than one transaction takes
    for number in range(count):
        send(world, name, {"n": number})
    if which == "take_back":
        world.run(0.5)
        remote.refuse_all = Answer(401, b'{"errcode":"M_X"}')
        world.run(3)
        assert world.sender.destinations[name].put_off == 1
    monkeypatch.setattr(world.outbox, which, refuse)
    if which != "take_back":
        world.run(1)
    remote.mode, remote.refuse_all = "ok", None
    until(world, lambda: refused)
    failed = world.sender.destinations[name].backoff
    assert failed.reason == str(error)
    assert failed.next_ms > world.sender.now_ms()
    assert world.sender._attempts.held == 0
    world.run(1_300)
    assert sorted(numbers(remote)) == list(range(count))
    assert not world.wrong


@pytest.mark.parametrize("which", ["put_off", "set_aside", "set_aside in quarantine"])
def test_what_became_of_a_transaction_is_written_before_it_is_undone(
    world: World, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """It would be undone late, in memory alone, and nobody would look for it any more."""
    monkeypatch.setattr(writes, "DISK_RETRY_MS", 30_000)
    name = "remote1.example"
    remote = world.remote(name)
    refused: list[str] = []

    def refuse(*given: object) -> Deferred[Any]:
        if refused:
            return original(*given)
        refused.append(which)
        return fail(OutboxUnavailable("full"))

    operation = which.split()[0]
    original = getattr(world.outbox, operation)
    remote.mode = "reset" if which == "put_off" else "ok"
    if which == "set_aside":
        remote.refuse_all = REFUSALS["403"]
    elif which != "put_off":
        remote.poison = {1}
    send(world, name, {"n": 1})
    if which == "put_off":
        world.run(0.5)
        remote.refuse_all = Answer(401, b'{"errcode":"M_X"}')
    monkeypatch.setattr(world.outbox, operation, refuse)
    until(world, lambda: refused)
    world.run(0.1)
    if which.endswith("quarantine"):
        retried = world.sender.retry(name, quarantined=True)
        assert isinstance(result(retried, world).value, OutboxUnavailable)
    world.run(25)
    remote.mode, remote.refuse_all, remote.poison = "ok", None, set()
    world.run(10)  # it is written
    if which.endswith("quarantine"):
        assert result(world.sender.retry(name, quarantined=True), world) == 1
    world.run(700)
    assert numbers(remote) == [1]
    assert world.sender.pending() == 0
    assert not world.wrong


def begin_together(world: World) -> list[str]:
    """Publish an EDU for as many as may have a turn at once, in one read."""
    names = world.names[: world.max_concurrent]
    for name in names:
        row = edu_row(build_edu("here.example", name, "m.direct_to_device", {"n": 1}))
        world.rows.append((len(world.rows) + 1, row))
    world.deliver()
    return names


def test_those_who_have_their_turns_together_begin_in_one_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And wait for the disk together, however many they are."""
    asked: list[list[str]] = []
    begin = world.outbox.begin

    def noted(begun: Any) -> Deferred[None]:
        asked.append([name for name, _ in begun])
        return begin(begun)

    monkeypatch.setattr(world.outbox, "begin", noted)
    names = begin_together(world)
    world.run(1)
    assert asked == [names]
    assert [numbers(world.remote(name)) for name in names] == [[1]] * 3


@pytest.mark.parametrize("error", [OutboxUnavailable("full"), ZeroDivisionError("a bug")])
def test_who_cannot_begin_holds_up_none_of_those_who_began_together(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each tries alone then; only the one that it was about waits, and loses nothing."""
    begin = world.outbox.begin
    culprit = world.names[1]

    def refuse(begun: Any) -> Deferred[None]:
        return fail(error) if culprit in dict(begun) else begin(begun)

    monkeypatch.setattr(world.outbox, "begin", refuse)
    names = begin_together(world)
    world.run(1)
    assert [numbers(world.remote(name)) for name in names] == [[1], [], [1]]
    assert world.sender.destinations[culprit].backoff.reason == str(error)
    assert world.sender._attempts.held == 0
    monkeypatch.undo()
    world.run(60)
    assert [numbers(world.remote(name)) for name in names] == [[1]] * 3
    assert not world.wrong


def test_what_is_purged_while_it_begins_is_not_sent(world: World) -> None:
    names = begin_together(world)
    world.run(0)  # they are being stored, and begin before the purge does
    purged = Deferred.fromCoroutine(world.sender.purge(names[0]))
    until(world, lambda: world.sender._beginning)
    assert world.sender.destinations[names[0]].purges == 1
    result(purged, world)
    world.run(5)
    assert [numbers(world.remote(name)) for name in names] == [[], [1], [1]]
    assert result(world.outbox.totals(), world) == {}


def test_a_sender_that_stops_while_transactions_begin_sends_none_of_them(world: World) -> None:
    names = begin_together(world)
    until(world, lambda: world.sender._beginning)
    result(world.sender.stop(), world)
    assert not any(world.remote(name).requests for name in names)
    assert not world.sender._beginning
    assert not world.sender._turns.running
    world.kill()
    world.boot()
    world.run(5)
    assert [numbers(world.remote(name)) for name in names] == [[1]] * 3


def test_what_is_in_quarantine_is_counted_as_it_is_refused(world: World) -> None:
    refused = metrics.DROPPED.labels("edu", "quarantined")
    before = refused._value.get()
    world.remote("remote1.example").poison = {1, 2}
    for number in range(4):
        send(world, "remote1.example", {"n": number})
    world.run(5)
    assert refused._value.get() == before + 2
    assert world.sender.destinations["remote1.example"].quarantined == 2


def test_a_bug_in_the_middle_loses_nothing_that_was_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that waited was taken, and was not begun."""
    name = "remote1.example"

    def broken(*_: object) -> Deferred[Any]:
        monkeypatch.undo()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(world.outbox, "begin", broken)
    for number in range(3):
        send(world, name, {"n": number})
    world.run(60)
    assert numbers(world.remote(name)) == [0, 1, 2]


def test_a_bug_before_anything_is_taken_stops_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had a turn with the one that has it tries again, as it does itself."""
    take = Destination.take
    failing = ["remote2.example"]

    def broken(destination: Destination, *arguments: Any) -> Any:
        if destination.name in failing:
            failing.clear()
            raise ZeroDivisionError("a bug")
        return take(destination, *arguments)

    monkeypatch.setattr(Destination, "take", broken)
    names = begin_together(world)
    world.run(120)
    assert not failing
    assert [numbers(world.remote(name)) for name in names] == [[1]] * 3
    assert not world.sender._turns.running
    send(world, names[0], {"n": 2})
    world.run(5)
    assert numbers(world.remote(names[0])) == [1, 2]


def test_what_cannot_be_held_in_memory_is_sent_from_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_all = Destination.hold_all
    failing = ["remote2.example"]

    def broken(destination: Destination, *arguments: Any) -> Any:
        if destination.name in failing:
            failing.clear()
            raise MemoryError
        return hold_all(destination, *arguments)

    monkeypatch.setattr(Destination, "hold_all", broken)
    names = begin_together(world)
    world.run(10)
    assert not failing
    assert [numbers(world.remote(name)) for name in names] == [[1]] * 3
    assert world.sender._attempts.held == 0


def test_what_was_sent_when_something_unexpected_happened_may_have_arrived(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its id, also if the remote is not reached then."""
    name = "remote1.example"
    remote = world.remote(name)

    async def taken(_: str, transaction_id: str, body: bytes) -> Answer:
        monkeypatch.undo()
        remote.take(transaction_id, body)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(world.network, "send_transaction", taken)
    remote.mode = "dead"
    send(world, name, {"n": 1})
    world.run(100)
    remote.mode = "ok"
    world.run(600)
    assert numbers(remote) == [1]
    assert not world.wrong
    assert world.sender.pending() == 0


def test_a_remote_that_goes_away_in_a_search_has_nothing_set_aside(world: World) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison = {3}
    for number in range(8):
        send(world, name, {"n": number})
    until(world, lambda: remote.requests)
    search = world.sender.destinations[name].search
    remote.mode, remote.poison = "dead", set()
    world.run(5)
    assert search is not None
    assert not search.set_aside
    assert world.sender.destinations[name].search is search
    remote.mode = "ok"
    world.run(60)
    assert sorted(numbers(remote)) == list(range(8))
