"""Processes that leave and come back: what each is given, and when it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.errors import LogUnavailable
from tcprepl.replication.bus import processes as module
from tcprepl.replication.bus.places import Place, Places
from tcprepl.replication.bus.processes import Bounds, Said
from tests.bus_world import BusClient, BusWorld


def listen(world: BusWorld, name: str = "gw", pid: int = 0) -> BusClient:
    """Return a process that listens, of which nothing was read."""
    client = world.client()
    client.connection.pid = pid
    if name:
        client.ask("AUTH", name, "any")
    client.ask("SUBSCRIBE", "example.com")
    return client


def rows(*tokens: int, of: str = "events w1") -> list[str]:
    """Return lines of rows."""
    return [f"RDATA {of} {n} [{n}]" for n in tokens]


def outcomes(world: BusWorld) -> list[str]:
    """Return what the one that came last was given."""
    return [visit.given.value for visit in world.bus.processes._here.values()]


def settled(**options: Any) -> tuple[BusWorld, BusClient]:
    """Return a bus whose writer has said where it is, and the writer."""
    world = BusWorld(**options)
    writer = world.client()
    writer.publish("POSITION events w1 4 4", "POSITION receipts w1 2 2")
    world.clock.advance(5)
    return world, writer


def test_one_that_comes_back_gets_what_it_missed_at_batch_boundaries() -> None:
    world, writer = settled()
    one = listen(world)
    writer.publish(*rows(5))
    one.leave()
    writer.publish(
        "RDATA events w1 batch [6]", "RDATA events w1 7 [7]", "LOCK_RELEASED x", *rows(9)
    )
    one = listen(world)
    writer.publish(*rows(11))
    assert one.heard() == [
        "POSITION events w1 5 6",
        "POSITION receipts w1 2 2",
        "RDATA events w1 batch [6]",
        "RDATA events w1 7 [7]",
        "RDATA events w1 9 [9]",
        "LOCK_RELEASED x",
        "RDATA events w1 11 [11]",
    ]
    assert outcomes(world) == ["replayed"]


def test_one_of_which_nobody_knows_who_it_is_gets_what_redis_gives() -> None:
    world, writer = settled()
    one = listen(world, "")
    one.leave()
    writer.publish(*rows(5))
    assert listen(world, "").heard() == []


@pytest.mark.parametrize(
    ("bounds", "away_s", "outcome"),
    [
        (Bounds(rows=1), 0, "too_many_rows"),
        (Bounds(seconds=10), 11, "away_too_long"),
        (Bounds(seconds=10), 9, "replayed"),
    ],
)
def test_a_replay_has_bounds(bounds: Bounds, away_s: float, outcome: str) -> None:
    world, writer = settled(bounds=bounds)
    listen(world).leave()
    writer.publish(*rows(5, 6), "LOCK_RELEASED x")
    world.clock.pump([1] * int(away_s))
    before = metrics.BUS_REPLAYS.labels(outcome)._value.get()
    with capture_logs() as logs:
        one = listen(world)
    assert outcomes(world) == [outcome]
    assert [peer.replay for peer in world.bus.peers()] == [outcome]
    assert f"(came back: {outcome.replace('_', ' ')})" in str(world.server.status().lines())
    assert metrics.BUS_REPLAYS.labels(outcome)._value.get() == before + 1
    (line,) = [line for line in logs if line["event"] == "bus.process.back"]
    assert (line["given"], line["missed_rows"], line["away_s"]) == (outcome, 2, away_s)
    assert bool(one.heard()) == (outcome == "replayed")
    writer.publish("LOCK_RELEASED y")
    world.clock.advance(1)
    assert not world.bus.subscribers._ring


def test_one_that_is_another_process_by_now_gets_nothing() -> None:
    world, writer = settled()
    listen(world, pid=7).leave()
    writer.publish(*rows(5))
    again = listen(world, pid=8)
    assert (again.heard(), outcomes(world)) == ([], ["began_anew"])
    again.leave()
    writer.publish(*rows(6))
    assert listen(world, pid=8).heard()[-1] == rows(6)[0]
    listen(world, "", pid=9).leave()
    writer.publish(*rows(7))
    assert listen(world, "", pid=9).heard()[-1] == rows(7)[0]


def test_one_that_left_at_once_may_have_left_because_of_it() -> None:
    world, writer = settled()
    one = listen(world)
    for outcome in ("replayed", "left_at_once", "replayed"):
        one.leave()
        writer.publish(*rows(world.log.position("events", "w1") + 1))
        one = listen(world)
        assert outcomes(world) == [outcome]
    world.clock.advance(module.AT_ONCE_S)
    one.leave()
    listen(world)
    assert outcomes(world) == ["replayed"]


def test_a_place_is_taken_over_from_a_connection_that_is_not_known_to_be_lost() -> None:
    world, writer = settled()
    old = listen(world)
    old.full()
    writer.publish(*rows(5))
    writer.publish(*rows(6))
    one = listen(world)
    assert one.heard()[-1] == rows(6)[0]
    old.leave()
    assert world.bus.processes._places.away() == []
    one.leave()
    assert [process for process, _ in world.bus.processes._places.away()] == ["gw"]


def test_two_that_both_speak_are_two() -> None:
    world, writer = settled()
    one, two = listen(world), listen(world)
    one.ask("PING")  # it may have been under way
    world.clock.advance(module.SHARED_AFTER_S)
    with capture_logs() as logs:
        one.ask("PING")
        one.ask("PING")
    assert [line["event"] for line in logs] == ["bus.process.shared_name"]
    three = listen(world)
    assert outcomes(world) == ["unknown"]
    for client in (one, two, three):
        client.leave()
    writer.publish(*rows(5))
    assert listen(world).heard() == []
    assert world.bus.processes._shared == set()


def test_one_that_listens_no_longer_misses_nothing() -> None:
    world, writer = settled()
    for words in (["UNSUBSCRIBE"], ["RESET"]):
        one = listen(world)
        one.ask(*words)
        one.leave()
        writer.publish(*rows(world.log.position("events", "w1") + 1))
    old, one = listen(world), listen(world)
    old.ask("UNSUBSCRIBE")
    assert outcomes(world) == ["replayed"]
    one.ask("UNSUBSCRIBE", "example.com")
    assert outcomes(world) == []


def test_what_a_writer_does_not_write_any_longer_is_not_told() -> None:
    world, writer = settled()
    writer.publish("POSITION typing w1 3 3", "POSITION future w1 9 9")
    writer.leave()
    listen(world).leave()
    other = world.client()
    other.publish("POSITION typing tw 5 5")
    one = listen(world)
    assert "POSITION future w1 9 9" in one.heard()
    world.clock.advance(module.AT_ONCE_S)
    one.leave()
    again = world.client()
    again.publish("POSITION events w1 4 4")
    world.clock.advance(module.SETTLE_S)
    assert listen(world).heard() == [
        "POSITION typing tw 5 5",
        "POSITION events w1 4 4",
    ]


@pytest.mark.parametrize("listens", [True, False])
def test_a_writer_that_cannot_be_asked_yet_still_writes_what_it_said(listens: bool) -> None:
    """Its listening connection may be the last to come back; whoever comes before needs a place."""
    world = BusWorld()

    def writer() -> BusClient:
        client = world.client()
        client.ask("AUTH", "worker1", "any")
        return client

    def is_told() -> bool:
        one = listen(world)
        told = "POSITION device_lists w1 7 7" in one.heard()
        world.clock.advance(module.AT_ONCE_S)
        one.leave()
        return told

    gone = [writer(), listen(world, "worker1"), listen(world)]
    gone[0].publish("POSITION events w1 4 4", "POSITION device_lists w1 7 7")
    world.clock.advance(5)
    for client in gone:
        client.leave()
    writer().publish("POSITION events w1 4 4")
    world.clock.advance(module.SETTLE_S + 1)
    assert is_told()
    if listens:
        listen(world, "worker1")  # and says what it writes, which is less
        assert is_told()
        world.clock.advance(module.SETTLE_S)
    else:
        world.clock.advance(module.UNSAID_S)
    assert not is_told()


def test_of_a_stream_in_memory_one_writer_is_told() -> None:
    said = Said({("typing", "a"), ("events", "a"), ("events", "b")})
    assert said.pairs(0) == {("typing", "a"), ("events", "a"), ("events", "b")}
    said.hear(("typing", "c"), "connection", 0)
    assert said.pairs(0) == {("typing", "c"), ("events", "a"), ("events", "b")}


def test_a_pair_that_was_first_written_meanwhile_is_told_whole() -> None:
    world, _ = settled()
    listen(world).leave()
    other = world.client()
    other.publish("POSITION events w2 4 4", *rows(5, of="events w2"), "POSITION new w2 1 1")
    assert listen(world).heard() == [
        "POSITION events w1 4 5",  # token 5 is another's
        "POSITION events w2 4 4",
        "POSITION receipts w1 2 2",
        "RDATA events w2 5 [5]",
    ]


def test_of_a_stream_that_it_writes_itself_it_is_told_with_the_first_row_of_another() -> None:
    world, writer = settled()
    other = world.client()
    other.ask("AUTH", "two", "any")
    other.publish("POSITION events w2 3 3")
    listen(world, "two").leave()
    one = listen(world, "two")
    assert one.heard() == ["POSITION receipts w1 2 2"]
    writer.publish("POSITION events w1 4 4", "POSITION events w1 4 6")
    assert one.heard() == []
    writer.publish(*rows(9))
    assert one.heard() == ["POSITION events w1 4 8", "RDATA events w1 9 [9]"]
    writer.publish("POSITION events w1 9 9")
    assert one.heard() == ["POSITION events w1 9 9"]
    world.clock.advance(module.UNSAID_S)
    assert one.heard() == []


def test_if_nobody_else_writes_it_is_told_after_a_while() -> None:
    world, _ = settled()
    other = world.client()
    other.ask("AUTH", "two", "any")
    other.publish("POSITION events w2 3 3")
    world.bus.processes.said.hear(("events", "gone"), "another connection", world.clock.seconds())
    listen(world, "two").leave()
    one, gone = listen(world, "two"), listen(world, "w2")
    gone.leave()
    one.full()
    other.publish(*rows(5, of="events w2"))
    other.publish(*rows(6, of="events w2"))
    world.clock.advance(module.UNSAID_S)  # it has not all rows yet
    one.drain()
    assert "POSITION events" not in str(one.heard())
    world.clock.advance(1)
    assert one.heard() == ["POSITION events w1 4 6"]
    world.clock.advance(5)
    assert one.heard() == []
    one.leave()
    listen(world, "two").leave()
    world.clock.advance(module.UNSAID_S)


def test_edus_are_told_from_where_they_were_taken() -> None:
    world, writer = settled()
    writer.publish("POSITION federation w1 0 0", *rows(1, 2, 3, of="federation w1"))
    listen(world, "other").leave()  # nobody acknowledges anything yet
    one = listen(world, "fed1")
    writer.publish("FEDERATION_ACK fed1 1")
    one.leave()
    for name, acked in (("fed1", 1), ("other", 3)):
        heard = [line for line in listen(world, name).heard() if "federation" in line]
        missed = rows(*range(acked + 1, 4), of="federation w1")
        assert heard == [f"POSITION federation w1 0 {acked}", *missed]


def test_acknowledgements_are_kept_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    world, writer = settled()
    writer.publish("POSITION federation w1 0 0", *rows(1, 2, 3, of="federation w1"))
    one, beyond = listen(world, "fed1"), listen(world, "fed3")
    writer.publish("FEDERATION_ACK fed1 1", "FEDERATION_ACK fed2 2", "FEDERATION_ACK fed3 3")
    writer.publish("FEDERATION_ACK fed1 2", "FEDERATION_ACK fed2 1")
    one.leave()
    beyond.leave()
    for name, acked in (("fed1", 2), ("fed3", 1)):
        heard = [line for line in listen(world, name).heard() if "federation" in line]
        missed = rows(*range(acked + 1, 4), of="federation w1")
        assert heard == [f"POSITION federation w1 0 {acked}", *missed]


def test_a_log_that_cannot_be_read_is_no_reason_to_hear_nothing() -> None:
    world, writer = settled()
    listen(world).leave()
    writer.publish(*rows(5))
    world.log.cursor = _refuse  # type: ignore[method-assign]
    one = listen(world)
    assert (one.heard(), outcomes(world)) == ([], ["not_in_log"])
    del world.log.cursor
    writer.publish(*rows(6))
    assert one.heard() == rows(6)


def _refuse(*_: object) -> Any:
    raise LogUnavailable("the disk is away")


def test_one_that_leaves_while_the_disk_is_read_is_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, writer = settled()
    listen(world).leave()
    writer.publish(*rows(5))
    waiting: Deferred[None] = Deferred()
    real = module.starts_of

    async def starts_of(*arguments: Any) -> Any:
        await waiting
        return await real(*arguments)

    monkeypatch.setattr(module, "starts_of", starts_of)
    one = listen(world)
    writer.publish(*rows(6), "LOCK_RELEASED x")
    assert one.heard() == []
    world.bus.processes.sweep()
    one.leave()
    waiting.callback(None)
    monkeypatch.setattr(module, "starts_of", real)
    heard = listen(world).heard()
    assert heard[-3:] == [*rows(5, 6), "LOCK_RELEASED x"]


def test_what_comes_while_the_disk_is_read_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, writer = settled()
    listen(world).leave()
    waiting: Deferred[None] = Deferred()
    real = module.starts_of

    async def starts_of(*arguments: Any) -> Any:
        if not waiting.called:
            await waiting
        return await real(*arguments)

    monkeypatch.setattr(module, "starts_of", starts_of)
    monkeypatch.setattr(world.bus.processes.said, "pairs", lambda _: {("events", "w1")})
    one = listen(world)
    writer.publish(*rows(3, of="receipts w1"))
    world.client().publish("POSITION events w2 5 5", *rows(6, of="events w2"))
    waiting.callback(None)
    world.settle()
    assert one.heard() == [
        "POSITION events w2 5 5",
        "POSITION events w1 4 4",
        "RDATA receipts w1 3 [3]",
        "RDATA events w2 6 [6]",
        "REPLICATE ",
    ]


def test_of_a_writer_that_began_anew_it_is_told_as_that_counts() -> None:
    world, writer = settled()
    writer.publish("POSITION typing w1 8 8", *rows(9, of="typing w1"))
    writer.leave()
    listen(world).leave()
    again = world.client()
    again.publish("POSITION typing w1 0 0", *rows(1, of="typing w1"))
    world.settle()
    heard = [line for line in listen(world).heard() if "typing" in line]
    assert heard[0].startswith("POSITION typing w1 ")
    assert heard[-1] == "RDATA typing w1 1 [1]"
    assert world.intake.shifts


def test_over_a_restart_of_the_bus(tmp_path: Path) -> None:
    world, writer = settled()
    world.bus.processes._places = places = Places(tmp_path, world.clock.seconds)
    listen(world, "head")
    slow = listen(world, "slow")
    slow.full()
    writer.publish(*rows(5))
    writer.publish(*rows(6))
    world.clock.advance(1)  # it is written down that one is behind
    places._database.close()  # kill -9: nothing is written down any more
    again = Places(tmp_path, world.clock.seconds)
    again.load({("events", "w1"): 6, ("receipts", "w1"): 2})
    stands = {process: place.stands for process, place in again.away()}
    assert {pair: stand.token for pair, stand in stands["head"].items()} == {
        ("events", "w1"): 6,
        ("receipts", "w1"): 2,
    }
    assert stands["slow"]["events", "w1"].token == 5
    again.close()


def test_one_that_is_at_the_head_again_is_written_down(tmp_path: Path) -> None:
    world, writer = settled()
    world.bus.processes._places = places = Places(tmp_path, world.clock.seconds)
    slow = listen(world)
    slow.full()
    writer.publish(*rows(5))
    writer.publish(*rows(6))
    world.clock.advance(1)
    world.clock.advance(1)
    slow.drain()
    world.clock.advance(1)
    places.close()
    again = Places(tmp_path, world.clock.seconds)
    again.load({("events", "w1"): 7, ("receipts", "w1"): 2})
    ((_, place),) = again.away()
    assert place.stands["events", "w1"].token == 7
    again.close()


def test_the_bus_writes_down_who_is_here_when_it_stops(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 9.0)
    world = BusWorld(places=places)
    world.client().publish("POSITION events w1 4 4")
    listen(world)
    stopped = Deferred.fromCoroutine(world.bus.stop())
    world.settle()
    assert stopped.called
    again = Places(tmp_path, lambda: 9.0)
    again.load({("events", "w1"): 4})
    ((process, place),) = again.away()
    assert process == "gw"
    assert {pair: stand.token for pair, stand in place.stands.items()} == {("events", "w1"): 4}
    assert isinstance(place, Place)
    again.close()
