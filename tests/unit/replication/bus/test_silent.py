"""Positions that moved without a row, where that means something."""

from __future__ import annotations

from typing import Any

from tcprepl import metrics
from tcprepl.replication.following.catchup import CatchUpPage
from tests.bus_world import BusWorld


class Source:
    """An instance that has rows which it did not publish."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.asked: list[tuple[Any, ...]] = []

    async def fetch(self, stream: str, instance: str, after: int, upto: int) -> CatchUpPage:
        """Return its rows."""
        self.asked.append((stream, instance, after, upto))
        rows = [(t, b"[%d]" % t) for t in self.tokens if after < t <= upto]
        return CatchUpPage(rows, upto, limited=False)


def moved(stream: str, source: Source | None = None, *others: str) -> BusWorld:
    """Return a bus at which a writer moved from 4 to 6, and said no row."""
    world = BusWorld(catch_up=source)
    world.intake.believes = lambda pair, token: True  # type: ignore[method-assign]
    writer = world.client()
    writer.publish(f"POSITION {stream} tw 4 4", *others)
    world.settle()
    world.one = world.subscriber()  # type: ignore[attr-defined]
    writer.publish(f"POSITION {stream} tw 4 6")
    world.settle()
    return world


def test_what_was_lost_is_fetched_before_anybody_is_told() -> None:
    source = Source(5, 6)
    before = metrics.BUS_SILENT_MOVES.labels("to_device", "tw")._value.get()
    world = moved("to_device", source)
    assert source.asked[-1] == ("to_device", "tw", 4, 6)
    assert [t for t, _ in world.rows("to_device", "tw")] == [5, 6]
    assert world.one.heard() == [  # type: ignore[attr-defined]
        "RDATA to_device tw 5 [5]",
        "RDATA to_device tw 6 [6]",
        "POSITION to_device tw 6 6",
    ]
    assert metrics.BUS_SILENT_MOVES.labels("to_device", "tw")._value.get() == before + 1
    told = "moved without rows: to_device of tw: 1 time, the last time (4, 6]"
    assert told in world.bus.status().lines()


def test_where_nothing_can_be_fetched_it_is_told_as_it_came() -> None:
    world = moved("to_device")
    assert world.one.heard()[-1] == "POSITION to_device tw 4 6"  # type: ignore[attr-defined]
    assert world.bus.status().silent_moves == ["to_device of tw: 1 time, the last time (4, 6]"]


def test_where_others_take_tokens_it_means_nothing() -> None:
    shared = moved("to_device", Source(), "POSITION to_device w2 1 1")
    assert shared.bus.status().silent_moves == []
    assert moved("events").bus.status().silent_moves == []
    assert moved("caches").bus.status().silent_moves == []
