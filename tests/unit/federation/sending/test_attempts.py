"""What becomes of attempts: refusals, doubts, pages, faults of the disk, on a fake clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred

from tcprepl.federation.sending import attempts
from tcprepl.federation.sending.destination import Destination
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_world import World
from tests.unit.federation.sending.test_sender import result, send


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
    while not world.remote(name).accepted:
        world.run(0.01)
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
    while not world.remote(name).accepted:
        world.run(0.01)
    world.refuse_disk = True
    world.run(20)
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
    assert [entry[0] for entry in counted._take(made)] == [2]
    assert counted.held == 0
