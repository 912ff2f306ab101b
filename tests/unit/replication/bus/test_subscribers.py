"""Subscribers: one form for all, slow ones, what waits beside the rows."""

from __future__ import annotations

from unittest import mock

import pytest

from tcprepl.replication.bus import subscribers
from tests.bus_world import BusClient, BusWorld


def rows(first: int, last: int) -> list[str]:
    """Return lines of rows."""
    return [f"RDATA events w1 {n} [{n}]" for n in range(first, last + 1)]


def behind(world: BusWorld) -> BusClient:
    """Return a subscriber whose socket is full."""
    slow = world.subscriber()
    slow.full()
    return slow


def test_by_name_and_by_pattern_the_same_comes() -> None:
    world = BusWorld()
    by_name, by_pattern = world.subscriber(), world.client()
    by_pattern.ask("PSUBSCRIBE", "exam*")
    by_pattern.transport.clear()
    assert world.client().publish("POSITION events w1 4 4", *rows(5, 6)).startswith(b":2\r\n")
    assert by_name.heard() == by_pattern.heard()
    assert len(world.bus.subscribers._pushers) == 2
    by_pattern.leave()
    assert len(world.bus.subscribers._pushers) == 1


def test_one_that_was_slow_gets_everything_and_holds_up_nobody() -> None:
    world = BusWorld()
    slow, quick, writer = behind(world), world.subscriber(), world.client()
    writer.publish("POSITION events w1 4 4")
    world.clock.advance(1)
    for n in range(5, 500):
        writer.publish(f"RDATA events w1 {n} [{n}]")
    writer.publish("LOCK_RELEASED x")
    assert [line for line in quick.heard() if line.startswith("RDATA")] == rows(5, 499)
    assert len(slow.transport.value()) < 2_000
    slow.drain()
    heard = slow.heard()
    assert [line for line in heard if line.startswith("RDATA")] == rows(5, 499)
    assert heard.index("LOCK_RELEASED x") > heard.index("RDATA events w1 499 [499]")
    assert not world.bus.subscribers._ring


def test_what_waits_beside_the_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MAX_RING", 10)
    world = BusWorld()
    slow, writer = behind(world), world.client()
    writer.publish("POSITION events w1 4 4")
    world.clock.advance(1)
    for n in range(50):
        writer.publish(f"LOCK_RELEASED {n}")
    slow.drain()
    assert slow.heard()[-10:] == [f"LOCK_RELEASED {n}" for n in range(40, 50)]
    (one,) = slow.connection.subscribers
    assert one.missed >= 30
    slow.full()
    writer.publish("LOCK_RELEASED last")
    slow.leave()
    assert not world.bus.subscribers._ring


def test_a_position_that_was_said_meanwhile_is_told_behind_the_rows() -> None:
    world = BusWorld()
    writer = world.client()
    writer.publish("POSITION events w1 4 4", "POSITION typing w1 0 0")
    slow = behind(world)
    writer.publish("POSITION events w1 4 4", *rows(5, 6), "POSITION events w1 6 6")
    slow.drain()
    heard = [line for line in slow.heard() if "events" in line]
    assert heard[-3:] == [*rows(5, 6), "POSITION events w1 6 6"]


def test_of_a_pair_that_nobody_has_written_nothing_is_said_before_it_is_asked_for() -> None:
    world = BusWorld()
    one = world.subscriber()
    world.intake.on_pair = world.server.hub.announce
    world.intake._meet(("receipts", "w9"))
    world.settle()
    assert one.heard() == []


def test_tokens_of_before_a_restart_are_forgotten_in_the_end() -> None:
    world = BusWorld()
    one = world.subscriber()
    pusher = one.connection.subscribers[0].pusher
    writer = world.client()
    writer.publish("POSITION typing w1 0 0", "RDATA typing w1 1 [1]")
    world.client().publish("POSITION typing w1 0 0", "RDATA typing w1 1 [2]")
    shifts = world.intake.shifts["typing", "w1"]
    del shifts[0]
    assert pusher.of_chunk(b"RDATA typing w1 1 [1]\nRDATA events w1 3 [1]\n").count(b"RDATA") == 1
    assert pusher.of_chunk(b"POSITION typing w1 0 1\nPOSITION events w1 0 0\n") == b""
    said = pusher.of_chunk(b"POSITION typing w1 1 %d\n" % shifts[0].start)
    assert b"POSITION typing w1 0 0" in said


def test_one_that_cannot_be_told_is_cut_off_before_it_gets_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it would be by a cut wire: it comes back, and is given what it missed."""
    world = BusWorld()
    bad, good, writer = world.subscriber(), world.client(), world.client()
    good.ask("PSUBSCRIBE", "exam*")
    writer.publish("POSITION events w1 4 4")
    bad.heard(), good.heard()
    (one,) = bad.connection.subscribers
    monkeypatch.setattr(one.pusher, "of_chunk", mock.Mock(side_effect=MemoryError))
    writer.publish(*rows(5, 6))
    monkeypatch.undo()
    writer.publish(*rows(7, 8))
    assert bad.transport.disconnected or bad.transport.disconnecting
    assert not [line for line in bad.heard() if line.startswith("RDATA")]
    assert [line for line in good.heard() if line.startswith("RDATA")] == rows(5, 8)
