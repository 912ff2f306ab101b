"""Counts by name, bounded, whoever calls himself what; and what a server tells of itself."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl import limits, metrics
from tcprepl.replication.serving.measuring import MAX_NAMES, OTHERS, CommandCounts
from tcprepl.streams.producers import MAX_PRODUCERS
from tests.serving_world import World


def test_names_of_those_who_are_there_have_counts_of_their_own() -> None:
    counts = CommandCounts()
    for name in ("w1", "w1", "w2"):
        counts.add("PING", name, {"w1", "w2"})
    assert counts.by_word_and_name() == {("PING", "w1"): 2, ("PING", "w2"): 1}


def test_names_are_bounded_and_no_count_is_lost() -> None:
    counts = CommandCounts()
    connected = {"w1"}
    counts.add("NAME", "w1", connected)
    for number in range(20_000):
        counts.add("REMOTE_SERVER_UP", f"n{number}", connected)
    found = counts.by_word_and_name()
    assert len({name for _, name in found}) == MAX_NAMES + 1
    assert sum(found.values()) == 20_001
    assert found["NAME", "w1"] == 1
    assert found["REMOTE_SERVER_UP", OTHERS] == 20_000 - MAX_NAMES + 1


def test_when_all_are_there_the_newest_share_one_count() -> None:
    counts = CommandCounts()
    connected = {f"n{number}" for number in range(MAX_NAMES + 5)}
    for name in sorted(connected):
        counts.add("PING", name, connected)
    assert counts.by_word_and_name()["PING", OTHERS] == 5


ALPHA = ("alpha", "master")


def now(metric: metrics.Live, *labels: str) -> float:
    """Return the present value of a series."""
    return metric.samples().get(labels, 0.0)


class Since:
    """How much counters have grown, whatever other tests have counted in them."""

    def __init__(self, *labels: str) -> None:
        self._labels = labels
        self._before: dict[str, float] = {}

    def __call__(self, metric: metrics.Live) -> float:
        """Return the growth since it was asked for the first time."""
        value = now(metric, *self._labels)
        return value - self._before.setdefault(metric.name, value)


STREAMS = (
    metrics.STREAM_IN_ROWS,
    metrics.STREAM_IN_BYTES,
    metrics.STREAM_OUT_ROWS,
    metrics.STREAM_OUT_BYTES,
)


def test_rows_in_are_counted_once_and_rows_out_for_each_reader() -> None:
    """Those at the head, and those who come later and get them from the log."""
    world = World()
    grown = Since(*ALPHA)
    assert [grown(metric) for metric in STREAMS] == [0, 0, 0, 0]
    world.publisher.publish("alpha", [[0]])  # nobody is there
    world.network.settle()
    rows_in, bytes_in, *out = (grown(metric) for metric in STREAMS)
    assert (rows_in, out) == (1, [0, 0])
    for _ in range(2):
        world.call("REPLICATE")
    world.call("NAME another", "REPLICATE typing * NOW")
    world.publisher.publish("alpha", [[1], [2], [3]])
    world.network.settle()
    assert [grown(metric) for metric in STREAMS] == [4, 4 * bytes_in, 6, 6 * bytes_in]
    world.call("REPLICATE alpha * 0")
    assert grown(metrics.STREAM_OUT_ROWS) == 10
    assert grown(metrics.STREAM_OUT_BYTES) == 10 * bytes_in
    assert world.stop().called
    assert grown(metrics.STREAM_OUT_ROWS) == 10  # a counter does not go back


def test_peers_by_state_and_what_catching_up_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TURN_BYTES", 1)
    world = World()
    states = {name: now(metrics.PEERS, name) for name in ("new", "head", "behind", "closing")}
    grown = Since()
    assert grown(metrics.CATCH_UP_BYTES) == grown(metrics.CATCH_UP_TURNS) == 0
    world.call()
    for _ in range(3):
        world.call("REPLICATE alpha * NOW")
    for _ in range(2):
        world.publisher.publish("alpha", [["x" * 400, n] for n in range(100)])
        world.network.clock.advance(0)
    found = {name: now(metrics.PEERS, name) - before for name, before in states.items()}
    assert found == {"new": 1, "head": 0, "behind": 3, "closing": 0}
    world.network.settle()
    assert grown(metrics.CATCH_UP_BYTES) > 3 * 40_000
    assert grown(metrics.CATCH_UP_TURNS) > 0
    assert now(metrics.PEERS, "head") - states["head"] == 3
    assert world.stop().called


def test_how_much_of_the_bounds_is_used() -> None:
    world = World(max_connections=4)
    before = now(metrics.BUDGET_USED, "connections")
    for _ in range(2):
        world.call()
    assert now(metrics.BUDGET_USED, "connections") - before == pytest.approx(0.5)
    never: Deferred[Any] = Deferred()

    class Slow:
        def publish_json(self, *_: Any, **__: Any) -> Deferred[Any]:
            return never

        def publish_each(self, *_: Any) -> Deferred[Any]:
            return never

    world.server.door.publisher = Slow()
    world.call(f'PUBLISH_ROWS alpha [["{"x" * 10_000}"]]')
    used = now(metrics.BUDGET_USED, "unanswered_rows")
    assert used == pytest.approx(10_006 / limits.MAX_ALL_UNANSWERED_BYTES)
    assert world.stop().called


def test_producers_are_counted() -> None:
    world = World()
    before = now(metrics.PRODUCERS)
    world.call("PRODUCER mine")
    assert now(metrics.PRODUCERS) == before + 1
    assert f"beyond {MAX_PRODUCERS:,}" in metrics.PRODUCERS._documentation
    assert world.stop().called
