"""The sender: identity of EDUs, turns, the operator's handles. Trouble is in simulation/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import structlog
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock

from tcprepl import metrics
from tcprepl.federation.sending import sender as module
from tcprepl.federation.sending.attempts import Attempts
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.commit_queue import OutboxUnavailable, run_inline
from tcprepl.federation.sending.destination import Held
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.sending.stored import QUARANTINED
from tcprepl.federation.sending.turns import Turns
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import Edu, build_edu, edu_row
from tcprepl.federation.wire.failures import NotReached
from tcprepl.federation.wire.transaction import TransactionLimits
from tests.federation_world import RawRows, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with structlog.testing.capture_logs():
        made = World(tmp_path / "outbox.sqlite", 1)
        yield made
        made.kill()


def send(world: World, destination: str, content: object, kind: str = "m.direct_to_device") -> None:
    row = edu_row(build_edu("here.example", destination, kind, content))
    world.rows.append((len(world.rows) + 1, row))
    world.deliver()


def result(work: Any, world: World) -> Any:
    found: list[Any] = []
    done = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    done.addBoth(found.append)
    world.run(1)
    return found[0]


def until(world: World, done: Callable[[], object], step_s: float = 0.001) -> None:
    """Let time pass until *done* says so."""
    for _ in range(20_000):
        if done():
            return
        world.run(step_s)
    raise AssertionError("it does not come to that")


def test_the_object_parsed_off_the_socket_is_the_object_in_the_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its content bytes are those of the row, in the body."""
    parsed: list[Edu] = []
    sent: list[Edu] = []
    from tcprepl.federation.sending import attempts, intake

    parse, build = intake.parse_rows, attempts.build_body

    def parse_and_note(*given: Any, **more: Any) -> list[Edu]:
        found = parse(*given, **more)
        parsed.extend(found)
        return found

    def build_and_note(origin: str, ts: int, edus: list[Edu], **more: Any) -> bytes:
        sent.extend(edus)
        return build(origin, ts, edus, **more)

    monkeypatch.setattr(intake, "parse_rows", parse_and_note)
    monkeypatch.setattr(attempts, "build_body", build_and_note)
    content = {"text": "é", "z": [1, 2, {"a": None}], "b": True}
    send(world, "remote1.example", content)
    world.run(1)
    assert len(parsed) == 1
    assert sent[0] is parsed[0]
    (body,) = world.remote("remote1.example").bodies.values()
    assert parsed[0].content_bytes in world.rows[0][1]
    assert parsed[0].content_bytes in body


def test_transactions_are_filled_while_one_is_under_way(world: World) -> None:
    for number in range(350):
        send(world, "remote1.example", {"n": number})
    world.run(10)
    remote = world.remote("remote1.example")
    assert [content["n"] for _, content in remote.deliveries] == list(range(350))
    assert len(remote.accepted) == 4


def test_what_exceeds_memory_is_read_back_from_disk_in_order(world: World) -> None:
    world.remote("remote1.example").mode = "hang"
    for number in range(1_500):
        send(world, "remote1.example", {"n": number})
        if number % 100 == 0:
            world.run(0.1)
    assert world.sender._attempts.held <= 600
    world.remote("remote1.example").mode = "ok"
    world.run(300)
    deliveries = world.remote("remote1.example").deliveries
    assert [content["n"] for _, content in deliveries] == list(range(1_500))


def test_a_paused_destination_gets_nothing_until_it_is_resumed(world: World) -> None:
    result(world.sender.pause("remote1.example"), world)
    send(world, "remote1.example", {"n": 1})
    world.run(30)
    assert world.remote("remote1.example").requests == 0
    assert result(world.sender.describe_one("remote1.example"), world)["state"] == "paused"
    world.kill()
    world.boot()
    world.run(60)
    assert world.remote("remote1.example").requests == 0
    result(world.sender.resume("remote1.example"), world)
    assert world.remote("remote1.example").requests == 1


def test_retry_does_not_wait(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(120)
    before = remote.requests
    remote.mode = "ok"
    assert result(world.sender.retry("remote1.example"), world) == 0
    assert remote.requests == before + 1
    assert remote.deliveries


def test_an_edu_that_is_too_large_for_the_remote_is_quarantined_and_shown(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode, remote.max_edus = "413", 0
    send(world, "remote1.example", {"n": 1})
    world.run(10)
    shown = result(world.sender.describe_one("remote1.example"), world)
    assert shown["quarantined_edus"] == 1
    assert shown["state"] == "refused"
    remote.max_edus = 10
    send(world, "remote1.example", {"n": 2})
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [2]
    assert result(world.sender.retry("remote1.example"), world) == 0
    assert result(world.sender.retry("remote1.example", quarantined=True), world) == 1
    assert world.sender.destinations["remote1.example"].quarantined == 0
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [2, 1]


def test_purge_forgets_everything_also_what_is_under_way(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "hang"
    for number in range(700):
        send(world, "remote1.example", {"n": number})
    world.run(1)
    assert result(world.sender.purge("remote1.example"), world) == 700
    remote.mode = "ok"
    world.run(300)
    assert remote.deliveries == []
    assert world.sender._attempts.held == 0
    send(world, "remote1.example", {"n": 1_000})
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [1_000]


def test_describe_lists_the_oldest_first(world: World) -> None:
    names = ["b.example", "a.example", "d.example", "c.example", "e.example", "f.example"]
    for name in names:
        world.remote(name).mode = "dead"
        send(world, name, {"n": 1})
        if name != "e.example":
            world.run(30)
    lines = result(world.sender.describe(), world)
    assert [line["destination"] for line in lines] == names
    assert lines[0]["failures"] > 0
    assert lines[0]["next_try_ms"]
    result(world.sender.pause("g.example"), world)
    send(world, "h.example", {"n": 1})
    world.run(5)
    (line,) = [one for one in result(world.sender.describe(), world) if one not in lines[:-1]][-1:]
    assert (line["destination"], line["state"]) == ("g.example", "paused")


def test_one_destination_does_not_keep_the_others_from_their_turn(world: World) -> None:
    world.max_concurrent = 3
    for number in range(1_000):
        send(world, "remote0.example", {"n": number})
    for name in world.names[1:]:
        send(world, name, {"n": 1})
    world.run(1.5)
    assert all(world.remote(name).deliveries for name in world.names[1:])


@pytest.mark.parametrize(
    ("where", "what"), [(Attempts, "prepare"), (Attempts, "send"), (Outbox, "begin")]
)
def test_what_nobody_expected_costs_at_most_its_own_turn(
    world: World, monkeypatch: pytest.MonkeyPatch, where: type, what: str
) -> None:
    """The others go on at once, and whom it happened to after a while."""
    real = getattr(where, what)
    failed: list[object] = []

    def broken(self: object, *args: Any, **named: Any) -> Any:
        if not failed:
            failed.append(self)
            raise ZeroDivisionError("planted")
        return real(self, *args, **named)

    monkeypatch.setattr(where, what, broken)
    for name in world.names[:3]:
        send(world, name, {"n": 1})
    world.run(600)
    assert len(failed) == 1
    assert all(world.remote(name).deliveries for name in world.names[:3])


def test_a_look_at_whose_turn_it_is_that_fails_is_not_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Turns, "begin", mock.Mock(side_effect=ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            world.sender._dispatch()
    send(world, world.names[0], {"n": 1})
    world.run(5)
    assert world.remote(world.names[0]).deliveries


def test_metrics_tell_what_waits(world: World) -> None:
    world.remote("remote1.example").mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(61)
    assert metrics.PENDING_DESTINATIONS.samples()[()] == 1.0
    assert metrics.OUTBOX_ROWS.samples()[("to_device",)] == 1.0
    assert metrics.OUTBOX_OLDEST_SECONDS.samples()[("to_device",)] > 30


def test_metrics_tell_what_was_sent(world: World) -> None:
    assert world.sender.server_name == "here.example"

    def samples() -> list[float]:
        live = (metrics.SENT_TRANSACTIONS, metrics.SENT_EDUS, metrics.SENT_EDUS_BY_TYPE)
        return [sum(one.samples().values()) for one in live]

    before = samples()
    for number in range(3):
        send(world, "remote1.example", {"n": number})
    send(world, "remote1.example", {"room_id": "!r:x", "typing": True}, "m.typing")
    world.run(5)
    transactions = len(world.remote("remote1.example").accepted)
    assert [new - old for new, old in zip(samples(), before, strict=True)] == [transactions, 4, 4]


def test_who_is_up_again_is_tried_at_once_and_its_failures_are_forgotten(world: World) -> None:
    remote = world.remote("remote1.example")
    world.sender.remote_server_up("remote1.example")
    assert world.sender.destinations == {}
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(120)
    remote.mode = "hang"
    world.sender.remote_server_up("remote1.example")
    world.run(1)
    assert remote.under_way == 1
    # also on disk: the one that is under way is not answered before the process dies
    world.kill()
    world.boot()
    assert world.sender.destinations["remote1.example"].backoff.failures == 0
    remote.mode = "ok"
    world.run(5)
    world.sender.remote_server_up("remote1.example")
    world.run(5)
    assert [content["n"] for _, content in remote.deliveries] == [1]


def test_what_is_in_quarantine_can_be_dropped(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode, remote.max_edus = "413", 0
    send(world, "remote1.example", {"n": 1})
    world.run(10)
    assert result(world.sender.drop("remote1.example"), world) == 1
    assert world.sender.destinations["remote1.example"].quarantined == 0
    assert result(world.sender.drop("remote2.example"), world) == 0
    assert result(world.sender.retry("remote1.example", quarantined=True), world) == 0


def test_of_whom_there_is_nothing_to_know_nothing_is_kept(world: World) -> None:
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    assert "remote1.example" in world.sender.destinations
    world.run(60)
    assert world.sender.destinations == {}


@pytest.mark.parametrize("how", ["taken in the end", "dropped", "purged", "replaced"])
@pytest.mark.parametrize("status", [400, 500])
def test_of_a_search_that_has_ended_nothing_is_kept(world: World, how: str, status: int) -> None:
    """Nothing waits any more, so the next refusal is searched for anew."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison, remote.poison_answer = {3}, Answer(status, b'{"errcode":"M_X"}')
    for number in range(8):
        edu = build_edu("here.example", name, "m.x", {"n": number}, (str(number),))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
    world.deliver()
    world.run(30)
    assert result(world.sender.describe_one(name), world)["quarantined_edus"] == 1
    if how == "taken in the end":
        remote.poison = set()
        assert result(world.sender.retry(name, quarantined=True), world) == 1
    elif how == "replaced":
        edu = build_edu("here.example", name, "m.x", {"n": 9}, ("3",))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
        world.deliver()
    else:
        result(world.sender.drop(name) if how == "dropped" else world.sender.purge(name), world)
    world.run(70)
    assert result(world.sender.describe_one(name), world)["state"] == "idle"
    assert world.sender.destinations == {}


def test_presence_by_itself_waits_for_more_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PRESENCE_SPREAD_MS", 5_000)
    monkeypatch.setattr(world.sender._chance, "uniform", lambda _, most: most)
    for name in ("remote1.example", "remote2.example"):
        send(world, name, {"push": []}, "m.presence")
    world.run(3)
    send(world, "remote2.example", {"n": 1})
    world.run(1)
    assert world.remote("remote1.example").requests == 0
    # whoever gets something else gets it along
    assert len(world.remote("remote2.example").deliveries) == 2
    world.run(8)
    assert len(world.remote("remote1.example").deliveries) == 1
    # also in one turn with it, whichever came first
    for kinds in (("m.presence", "m.direct_to_device"), ("m.direct_to_device", "m.presence")):
        before = len(world.remote("remote3.example").deliveries)
        for kind in kinds:
            send(world, "remote3.example", {"push": []}, kind)
        world.run(1)
        assert len(world.remote("remote3.example").deliveries) == before + 2


def test_stopping_gives_up_what_is_under_way_and_keeps_it(world: World) -> None:
    world.remote("remote1.example").mode = "hang"
    send(world, "remote1.example", {"n": 1})
    world.run(1)
    assert result(world.sender.stop(), world) is None
    send(world, "remote1.example", {"n": 2})
    send(world, "remote2.example", {"n": 3})
    world.run(100)
    assert world.under_way == 0
    assert world.remote("remote2.example").requests == 0
    assert result(world.outbox.totals(), world)["to_device"].edus == 1
    world.kill()
    world.remote("remote1.example").mode = "ok"
    world.boot()
    world.run(10)
    assert len(world.remote("remote1.example").deliveries) == 2


HOUR_S = 3_600.0


@pytest.mark.parametrize("set_by_s", [-HOUR_S, -30 * 24 * HOUR_S, 0.0])
def test_a_clock_that_was_set_back_before_a_restart_keeps_nothing(
    world: World, set_by_s: float
) -> None:
    """Retries are due when they were, and what is not worth sending after a minute is not sent."""
    remote = world.remote("remote1.example")
    remote.mode = "500"
    send(world, "remote1.example", {"room_id": "!r:x", "typing": True}, "m.typing")
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    remote.mode = "dead"
    send(world, "remote1.example", {"room_id": "!s:x", "typing": True}, "m.typing")
    world.run(1)
    world.kill()
    world.clock.rightNow += set_by_s
    world.boot()
    world.run(90)
    remote.mode = "ok"
    world.run(HOUR_S / 2)
    assert ("m.direct_to_device", {"n": 1}) in remote.deliveries
    rooms = [content["room_id"] for kind, content in remote.deliveries if kind == "m.typing"]
    assert "!s:x" not in rooms
    remote.mode = "500"
    send(world, "remote1.example", {"n": 2})
    world.run(5)
    (line,) = result(world.sender.describe(), world)
    now_ms = world.clock.seconds() * 1_000
    assert now_ms - 10_000 < line["last_try_ms"] <= now_ms < line["next_try_ms"] < now_ms + 60_000
    ts = json.loads(list(remote.bodies.values())[-1])["origin_server_ts"]
    assert abs(ts - now_ms) < HOUR_S * 1_000


def test_a_clock_that_was_set_ahead_before_a_restart_loses_no_message(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    world.kill()
    world.clock.rightNow += 30 * 24 * HOUR_S
    world.boot()
    remote.mode = "ok"
    world.run(60)
    assert remote.deliveries == [("m.direct_to_device", {"n": 1})]


# -- what a purge has to undo ------------------------------------------------------------------

#: How a remote fails: each leaves something else in memory and on disk.
IN_THE_WAY = ["hang", "dead", "reset", "401", "500", "page", "413"]


@pytest.mark.parametrize("mode", IN_THE_WAY)
def test_after_a_purge_there_is_nothing_to_do_whatever_there_was(world: World, mode: str) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode, remote.max_edus = mode, 0
    for number in range(700):
        send(world, name, {"n": number})
    world.run(100)
    assert world.sender.pending() == 1 or mode == "413"
    assert result(world.sender.purge(name), world) == 700
    destination = world.sender.destinations[name]
    assert world.sender.pending() == 0
    assert (destination.has_work, destination.quarantined, destination.search) == (False, 0, None)
    assert world.sender._attempts.held == 0
    requests = remote.requests
    remote.mode = "ok"
    world.run(HOUR_S)
    assert remote.requests - requests <= (mode == "hang")
    assert remote.deliveries == []
    send(world, name, {"n": 1_000})
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [1_000]


@pytest.mark.parametrize("where", ["memory", "disk", "a transaction on disk"])
def test_what_has_not_left_when_it_was_purged_never_leaves(world: World, where: str) -> None:
    """At whatever moment of an attempt, which reads and writes the disk in between."""
    left = 0
    for step in range(1, 40):
        name = f"remote{step}.example"
        remote = world.remote(name)
        remote.mode = {"memory": "ok", "disk": "dead"}.get(where, "reset")
        send(world, name, {"n": 1})
        purged: list[int] = []
        if where != "memory":
            world.run(2)
            remote.mode = "ok"
            remote.requests = 0
            if step % 2:
                world.sender.remote_server_up(name)
        if step % 2 or where == "memory":
            world.run(step * 0.003)
        Deferred.fromCoroutine(world.sender.purge(name)).addCallback(purged.append)
        if not step % 2:
            world.run(step * 0.0005)
            world.sender.remote_server_up(name)
        until(world, lambda purged=purged: purged)
        leaves = remote.requests + remote.under_way
        world.run(20)
        assert world.sender.pending() == 0
        assert len(remote.deliveries) == remote.requests == leaves, step
        assert purged == [1] or leaves
        left += leaves
    assert 0 < left < 39


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("mode", IN_THE_WAY)
def test_a_purge_that_the_disk_refuses_leaves_all_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: str, killed: bool
) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.mode, remote.max_edus = mode, 0
    for number in range(20):
        send(world, name, {"n": number})
    world.run(20)
    monkeypatch.setattr(world.outbox, "purge", lambda _: fail(OutboxUnavailable("full")))
    assert isinstance(result(world.sender.purge(name), world).value, OutboxUnavailable)
    send(world, name, {"n": 20})
    world.run(1)
    if killed:
        world.kill()
        world.boot()
    remote.mode = "ok"
    _ = Deferred.fromCoroutine(world.sender.retry(name, quarantined=True))
    world.run(200)
    assert sorted(content["n"] for _, content in remote.deliveries) == list(range(21))
    assert world.sender.pending() == 0
    assert world.sender._attempts.held == 0
    assert not world.wrong


@pytest.mark.parametrize("pauses", [True, False])
def test_a_pause_or_its_end_that_the_disk_refuses_is_none(world: World, pauses: bool) -> None:
    """Whoever asked is told, and it is the same after the next start."""
    name = "remote1.example"
    sender = world.sender
    if not pauses:
        result(sender.pause(name), world)
    world.refuse_disk = True
    asked = sender.pause(name) if pauses else sender.resume(name)
    assert isinstance(result(asked, world).value, OutboxUnavailable)
    world.refuse_disk = False
    assert world.sender._destination(name).paused is not pauses
    send(world, name, {"n": 1})
    world.run(5)
    assert len(world.remote(name).deliveries) == pauses
    world.kill()
    world.boot()
    assert world.sender._destination(name).paused is not pauses


def test_what_is_to_be_tried_again_is_let_go_at_once_or_not_at_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison = {0}
    send(world, name, {"n": 0})
    world.run(5)
    remote.refuse_all = Answer(403, b'{"errcode":"M_FORBIDDEN"}')
    for number in (1, 2):
        send(world, name, {"n": number})
        world.run(0.5)
    result(world.sender.pause(name), world)

    def waits() -> list[tuple[int]]:
        found = world.outbox._connection.execute(
            "SELECT id FROM edus WHERE transaction_id IS NULL ORDER BY id"
        )
        return list(found)

    before = waits()
    assert len(before) < 3
    release = world.outbox.release
    monkeypatch.setattr(
        world.outbox,
        "release",
        lambda name, *marks: (
            fail(OutboxUnavailable("full")) if QUARANTINED in marks else release(name, *marks)
        ),
    )
    retried = result(world.sender.retry(name, quarantined=True), world)
    assert isinstance(retried.value, OutboxUnavailable)
    assert waits() == before


# -- turns and the timer -----------------------------------------------------------------------


def wakes(world: World) -> list[float]:
    """Return when the sender is woken, in s."""
    calls = world.clock.getDelayedCalls()
    return [call.getTime() for call in calls if call.func == world.sender._wake]


def test_one_timer_is_set_to_the_first_who_waits(world: World) -> None:
    for number in range(6):
        world.remote(f"remote{number}.example").mode = "dead"
        for _ in range(5 - number):
            send(world, f"remote{number}.example", {"n": number})
            world.run(1)
        send(world, f"remote{number}.example", {"n": number})
        world.run(7)
        due_ms = [found.due_ms for found in world.sender.destinations.values()]
        (wake_s,) = wakes(world)
        assert 0 <= wake_s * 1_000 - min(due_ms) < 1
    stopped = Deferred.fromCoroutine(world.sender.stop())
    assert wakes(world) == []
    assert result(stopped, world) is None
    assert result(world.sender.stop(), world) is None


def test_who_is_due_sooner_is_tried_sooner(world: World) -> None:
    world.remote("remote1.example").mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(200)
    world.remote("remote2.example").mode = "dead"
    send(world, "remote2.example", {"n": 1})
    world.run(0.5)
    assert world.remote("remote2.example").requests == 1
    world.remote("remote2.example").mode = "ok"
    world.run(1.5)
    assert world.remote("remote2.example").deliveries


class Here:
    """A sender whose disk and whose network answer at once, or as a test wants."""

    def __init__(self, path: Path, **given: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000)
        self.outbox = Outbox(path, run_inline)
        self.chance = mock.Mock(getrandbits=lambda bits: 7, uniform=lambda least, most: most)
        self.bodies: dict[str, list[list[int]]] = {}
        self.transport = mock.Mock(send_transaction=self.send)
        given = {"chance": self.chance, **given}
        self.sender = FederationSender(
            self.clock, self.outbox, self.transport, "here.example", **given
        )

    async def send(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        edus = json.loads(body)["edus"]
        self.bodies.setdefault(destination, []).append([edu["content"]["n"] for edu in edus])
        return Answer(200, b"{}")

    def put(self, *names: str, kind: str = "m.x") -> list[Entry]:
        """Have an EDU for each of *names* in the outbox."""
        edus = [build_edu("here.example", name, kind, {"n": n}) for n, name in enumerate(names)]
        ids = self.outbox.take_ids(len(edus))
        entries = [(number, 0, edu) for number, edu in zip(ids, edus, strict=True)]
        self.outbox.add(entries, 1, {})
        self.outbox.totals()  # as at a start, all of it is in the tables
        return entries


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Callable[..., Here]]:
    """Return what makes such a sender; its outbox is closed in the end."""
    made: list[Here] = []

    def make(**given: Any) -> Here:
        made.append(Here(tmp_path / "here.sqlite", **given))
        return made[-1]

    with structlog.testing.capture_logs():
        yield make
    for one in made:
        Deferred.fromCoroutine(one.sender.stop())
        one.outbox.close()


def test_any_number_of_answers_that_are_there_at_once_is_taken(here: Callable[..., Here]) -> None:
    """One after the other, not one within the other."""
    it = here(max_concurrent=1)
    names = [f"s{number}.example" for number in range(500)]
    it.sender.start()
    it.sender.deliver(it.put(*names))
    assert list(it.bodies) == names
    assert it.sender.pending() == 0


@pytest.mark.parametrize(("edus", "most"), [(None, 50), (7, 7)])
def test_a_transaction_holds_as_many_as_it_may(
    here: Callable[..., Here], edus: int | None, most: int
) -> None:
    it = here(limits=None if edus is None else TransactionLimits(edus=edus))
    assert (edus or TransactionLimits().edus) == most or edus is None
    it.put(*["y.example"] * 120)
    it.sender.start()
    it.clock.pump([1] * 40)
    sizes = [len(numbers) for numbers in it.bodies["y.example"]]
    assert sum(sizes) == 120
    assert max(sizes) == (edus or TransactionLimits().edus)


@pytest.mark.parametrize("policy", [None, BackoffPolicy(quick_ms=(), first_ms=77_000)])
def test_failures_wait_as_the_policy_says(
    here: Callable[..., Here], policy: BackoffPolicy | None
) -> None:
    it = here(backoff=policy)
    it.transport.send_transaction = mock.Mock(side_effect=NotReached("no"))
    it.chance.uniform = lambda least, most: 1.0 if least else 0.0
    it.put("y.example")
    it.sender.start()
    it.clock.advance(0)
    backoff = it.sender.destinations["y.example"].backoff
    assert (backoff.failures, backoff.reason) == (1, "no")
    assert backoff.interval_ms == (77_000 if policy else BackoffPolicy().quick_ms[0])


def test_a_start_and_presence_are_spread_by_how_many_there_are(
    here: Callable[..., Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a bound, and from at once."""
    spread: list[tuple[float, float]] = []
    it = here()
    it.chance.uniform = lambda least, most: spread.append((least, most)) or most
    names = [f"s{number}.example" for number in range(40)]
    it.put(*names)
    it.sender.start()
    assert set(spread) == {(0, 40 * module._START_SPREAD_MS)}
    spread.clear()
    kept = build_edu("here.example", "y.example", "m.presence", {"n": 1})
    edus = [build_edu("here.example", name, "m.presence", {"n": 1}) for name in names]
    ids = it.outbox.take_ids(len(edus))
    it.sender.deliver([(number, 0, edu) for number, edu in zip(ids, edus, strict=True)])
    assert set(spread) == {(0, 40 * module._PRESENCE_SPREAD_MS)}
    monkeypatch.setattr(module, "_PRESENCE_SPREAD_MAX_MS", 10)
    spread.clear()
    it.sender.deliver([(it.outbox.take_ids(1)[0], 0, kept)])
    assert spread == [(0, 10)]


# -- what a start takes up, and what an end leaves ----------------------------------------------


def test_a_start_knows_what_was_known(world: World) -> None:
    """Who waits, what may have arrived, what is put off or refused, who failed or is paused."""
    names = {mode: f"{mode.lower()}.example" for mode in ("dead", "reset", "401", "poison", "ok")}
    for mode, name in names.items():
        world.remote(name).mode = "reset" if mode == "401" else mode
    world.remote(names["poison"]).mode, world.remote(names["poison"]).poison = "ok", {1}
    for name in names.values():
        send(world, name, {"n": 1})
    world.run(0.5)
    world.remote(names["401"]).mode = "401"
    result(world.sender.pause(names["reset"]), world)
    result(world.sender.pause(names["ok"]), world)
    result(world.sender.resume(names["ok"]), world)
    world.run(5)
    world.kill()
    world.boot()

    def known(mode: str) -> Any:
        found = world.sender.destinations[names[mode]]
        waits = found.held is not Held.ALL
        return waits, found.stored, found.put_off, found.quarantined, found.paused

    assert known("dead") == (True, False, 0, 0, False)
    assert known("reset") == (False, True, 0, 0, True)
    assert known("401") == (False, False, 1, 0, False)
    assert known("poison") == (False, False, 0, 1, False)
    assert names["ok"] not in world.sender.destinations
    assert world.sender.destinations[names["dead"]].backoff.reason == "connection refused"
    assert world.sender.pending() == 3


def test_to_retry_is_to_search_anew(world: World) -> None:
    """What was known of what was set aside is void: all of it leaves at once, together."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison, remote.poison_answer = set(range(8)), Answer(403, b'{"errcode":"M_X"}')
    for number in range(8):
        send(world, name, {"n": number})
    world.run(0.1)
    until(world, lambda: world.sender.destinations[name].backoff.failures, 0.01)
    remote.poison = set()
    requests = remote.requests
    world.remote(name).mode = "ok"
    assert result(world.sender.retry(name), world) == 8
    assert world.sender.destinations[name].search is None
    world.run(5)
    assert sorted(content["n"] for _, content in remote.deliveries) == list(range(8))
    assert remote.requests - requests == 1


def test_what_is_set_aside_while_a_retry_is_being_written_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote refuses it between the moment of the question and that of its answer."""
    remote = world.remote("remote1.example")
    remote.refuse_all = Answer(403, b"{}")
    held: list[Callable[[], object]] = []
    set_backoff = world.outbox.set_backoff

    def slow(work: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        held.append(lambda: world.disk(work).chainDeferred(done))
        return done

    def retried(*noted: Any) -> Deferred[None]:
        monkeypatch.setattr(world.outbox, "_run", slow)
        return set_backoff(*noted)

    monkeypatch.setattr(world.outbox, "set_backoff", retried)
    send(world, "remote1.example", {"n": 1})
    until(world, lambda: world.under_way)
    asked = Deferred.fromCoroutine(world.sender.retry("remote1.example"))
    until(world, lambda: not world.under_way)
    assert held
    assert not asked.called
    monkeypatch.setattr(world.outbox, "set_backoff", set_backoff)
    monkeypatch.setattr(world.outbox, "_run", world.disk)
    held.pop()()
    world.run(1)
    assert asked.called
    remote.refuse_all = None
    world.run(3_600)
    assert [content["n"] for _, content in remote.deliveries] == [1]


def test_what_a_retry_could_not_let_go_is_tried_again_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was set aside before, or while the disk was asked."""
    remote = world.remote("remote1.example")
    remote.refuse_all = Answer(403, b"{}")
    send(world, "remote1.example", {"n": 1})
    world.run(2)
    refusals: list[Deferred[int]] = []

    def released(*_: Any) -> Deferred[int]:
        refusals.append(Deferred())
        return refusals[0]

    with monkeypatch.context() as patched:
        patched.setattr(world.outbox, "release", released)
        asked = Deferred.fromCoroutine(world.sender.retry("remote1.example"))
        failed: list[Any] = []
        asked.addErrback(failed.append)
        until(world, lambda: refusals)
        send(world, "remote1.example", {"n": 2})
        world.run(2)
        refusals[0].errback(OutboxUnavailable("full"))
    assert failed[0].check(OutboxUnavailable)
    remote.refuse_all = None
    world.run(3_600)
    assert sorted(content["n"] for _, content in remote.deliveries) == [1, 2]


def test_to_retry_is_kept(world: World) -> None:
    """Also when the process dies before the one that is under way is answered."""
    remote = world.remote("remote1.example")
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(1_000)
    remote.mode = "hang"
    result(world.sender.retry("remote1.example"), world)
    assert remote.under_way == 1
    world.kill()
    world.boot()
    world.run(0.5)
    assert remote.under_way == 1


@pytest.mark.parametrize("started", [True, False])
def test_what_was_accepted_and_asked_for_is_on_disk_when_it_has_stopped(
    world: World, started: bool
) -> None:
    """Whatever of it had not been written in this turn."""
    remote = world.remote("remote1.example")
    send(world, "remote1.example", {"n": 1})
    until(world, lambda: remote.accepted)
    world.sender.pause("remote2.example")
    stopped = Deferred.fromCoroutine(world.sender.stop())
    until(world, lambda: stopped.called)
    world.kill()
    world.boot()
    world.run(60)
    assert remote.requests == 1
    assert world.sender.destinations["remote2.example"].paused


def test_what_was_accepted_is_written_at_the_end_of_the_turn_or_before_it_has_stopped(
    here: Callable[..., Here],
) -> None:
    it = here()
    answers: list[Deferred[Answer]] = []
    it.transport.send_transaction = lambda *_: answers.append(Deferred()) or answers[-1]
    it.put("y.example", "z.example")
    it.sender.start()
    it.clock.advance(1)
    answers[0].callback(Answer(200, b"{}"))
    it.clock.advance(0)
    assert set(it.outbox.destinations()) == {"z.example"}
    answers[1].callback(Answer(200, b"{}"))
    stopped = Deferred.fromCoroutine(it.sender.stop())
    assert stopped.called
    assert it.outbox.destinations() == {}


def test_it_has_stopped_when_what_was_given_up_has_ended(here: Callable[..., Here]) -> None:
    it = here()
    ended: Deferred[None] = Deferred()

    async def send(*_: object) -> Answer:
        try:
            await Deferred()
        finally:
            await ended
        raise AssertionError

    it.transport.send_transaction = send
    it.put("y.example")
    it.sender.start()
    it.clock.advance(1)
    stopped = Deferred.fromCoroutine(it.sender.stop())
    assert not stopped.called
    ended.callback(None)
    assert stopped.called


@pytest.mark.parametrize("error", [CancelledError(), ZeroDivisionError("a bug")])
@pytest.mark.parametrize("stops", [True, False])
def test_only_what_is_given_up_at_the_end_goes_unsaid(
    here: Callable[..., Here], error: Exception, stops: bool
) -> None:
    """All else that ends an attempt is a failure, is said, and is tried again."""
    it = here()
    waiting: Deferred[Answer] = Deferred(lambda given: given.errback(error))
    it.transport.send_transaction = lambda *_: waiting
    it.put("y.example")
    it.sender.start()
    it.clock.advance(1)
    with structlog.testing.capture_logs() as logs:
        if stops:
            Deferred.fromCoroutine(it.sender.stop())
        else:
            waiting.cancel()
    gone = stops and isinstance(error, CancelledError)
    assert any(log["event"] == "background.failed" for log in logs) is not gone
    assert it.sender.destinations["y.example"].backoff.failures == (not gone)
    if not stops:
        it.transport.send_transaction = it.send
        it.clock.pump([1] * 100)
        assert it.bodies == {"y.example": [[0]]}


def test_it_takes_its_share_and_acknowledges_all(here: Callable[..., Here]) -> None:
    acknowledged: list[tuple[str, int]] = []
    names = [f"s{number}.example" for number in range(20)]
    mine = Shard("a", ("a", "b"))
    it = here(shard=mine, acknowledge=lambda *given: acknowledged.append(given))
    it.sender.start()
    for token, name in enumerate(names):
        row = edu_row(build_edu("here.example", name, "m.x", {"n": 1}))
        it.sender.intake.handle_rows("federation", "master", token, RawRows(row))
    it.clock.advance(1)
    assert list(it.bodies) == [name for name in names if mine.owns(name)]
    assert acknowledged == [("master", 19)]


def test_by_itself_it_takes_all_and_acknowledges_to_nobody(here: Callable[..., Here]) -> None:
    it = here()
    it.sender.start()
    row = edu_row(build_edu("here.example", "y.example", "m.x", {"n": 1}))
    it.sender.intake.handle_rows("federation", "master", 1, RawRows(row))
    it.clock.advance(1)
    assert list(it.bodies) == ["y.example"]


def test_a_transaction_tells_the_time_of_day(
    here: Callable[..., Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the reactor, which may begin anywhere."""
    monkeypatch.setattr(module, "epoch_s", lambda clock: 5_000_000)
    it = here()
    bodies: list[bytes] = []
    it.transport.send_transaction = lambda name, number, body: bodies.append(body) or Deferred()
    it.put("y.example")
    it.sender.start()
    it.clock.advance(1)
    assert json.loads(bodies[0])["origin_server_ts"] == 5_001_001_000


def test_without_a_start_the_handles_work_and_nothing_is_sent(here: Callable[..., Here]) -> None:
    it = here()
    it.put("y.example")
    it.sender.take_up()
    sender, name = it.sender, "y.example"
    for work in (sender.retry(name), sender.drop(name), sender.purge("z.example")):
        Deferred.fromCoroutine(work)
    sender.pause(name)
    sender.resume(name)
    it.clock.pump([1] * 10)
    assert it.bodies == {}
    assert it.sender.pending() == 1


def test_metrics_end_with_it_and_tell_how_old_what_waits_is(world: World) -> None:
    gauges = (metrics.PENDING_DESTINATIONS, metrics.PENDING_EDUS, metrics.OUTBOX_OLDEST_SECONDS)
    world.remote("remote1.example").mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(5_000)
    found = [sum(one.samples().values()) for one in gauges]
    assert found[:2] == [1.0, 1.0]
    assert found[2] == pytest.approx(5_000, abs=1)
    result(world.sender.stop(), world)
    assert [sum(one.samples().values()) for one in gauges] == [0, 0, 0]


def test_memory_holds_so_many_in_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_EDUS_IN_ALL", 50)
    for name in world.names:
        world.remote(name).mode = "hang"
    for number in range(40):
        for name in world.names:
            send(world, name, {"n": number})
            assert world.sender._attempts.held <= 50
        if not number % 10:
            world.run(0.1)
    assert world.sender._attempts.held == 50
    for name in world.names:
        world.remote(name).mode = "ok"
    world.run(200)
    for name in world.names:
        sent = [content["n"] for _, content in world.remote(name).deliveries]
        assert sent == list(range(40))
