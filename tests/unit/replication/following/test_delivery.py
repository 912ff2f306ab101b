"""Delivery where the wire cannot resume: positions, gaps, HTTP catch-up, the quirks of 2017."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived, in_batches
from tcprepl.replication.following import delivery as module
from tcprepl.replication.following import descending
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.following.delivery import Delivery
from tcprepl.replication.following.dialect_2017 import Resumption
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.streams.registry import Registry, StreamDef

ALPHA = ("alpha", "master")


class Link:
    """A client that only notes what it is asked for."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.paused = 0
        self.failures: list[Failure] = []
        self.broken: list[str] = []

    def pause(self) -> None:
        """Note it."""
        self.paused += 1

    def resume(self) -> None:
        """Note it."""
        self.paused -= 1

    def fail(self, text: str) -> None:
        """Note it."""
        self.broken.append(text)

    def give_up(self, failure: Failure) -> None:
        """Note it."""
        self.failures.append(failure)

    async def wait(self, seconds: float) -> None:
        """Wait on the fake clock."""
        await deferLater(self.clock, seconds)

    def call_later(self, seconds: float, function: Any) -> Any:
        """Call it on the fake clock."""
        return self.clock.callLater(seconds, function)


class Archive:
    """Answers catch-up requests from a list, two rows at a time."""

    def __init__(self, rows: list[tuple[int, bytes]]) -> None:
        self.rows = rows
        self.asked: list[tuple[Any, ...]] = []
        self.errors: list[Exception] = []

    def fetch(self, stream: str, instance: str, after: int, upto: int) -> Any:
        """Return a page."""
        self.asked.append((stream, instance, after, upto))
        if self.errors:
            error = self.errors.pop()
            failed: Deferred[Any] = Deferred()
            failed.errback(error)
            return failed
        found = [(token, row) for token, row in self.rows if after < token <= upto]
        page = found[:2]
        limited = len(found) > 2
        return succeed(CatchUpPage(page, page[-1][0] if limited else upto, limited))


class Stage:
    """A delivery, and what it did."""

    def __init__(self, dialect: str = "1.22", archive: Archive | None = None, **known: int) -> None:
        self.link = Link()
        self.seen: list[tuple[int, list[Any]]] = []
        self.resets: list[Any] = []
        self.heard: list[Any] = []
        self.store = MemoryPositionStore({(name, "master"): t for name, t in known.items()})
        self.delivery = Delivery(
            self.link,
            lambda stream, instance, token, rows: self.seen.append((token, list(rows))),
            self.store,
            Registry([StreamDef("alpha")]),
            streams=["alpha"],
            since="start" if archive else "now",
            on_reset=lambda *a: self.resets.append(a),
            on_position=lambda *a: self.heard.append(a),
            on_command=None,
            catch_up=archive,
            max_attempts=None,
        )
        self.delivery.start()
        self.delivery.begin(DIALECTS[dialect])

    def handle_with(self, handler: Any) -> None:
        """Call *handler* from now on."""
        self.delivery._handler = self.delivery._runs._handler = handler

    def position(self, prev: int | None, token: int, stream: str = "alpha") -> None:
        """Let a POSITION come."""
        self.delivery.take([PositionCommand(stream, "master", prev, token)])

    def rows(self, token: int, *rows: bytes, stream: str = "alpha") -> None:
        """Let a batch come."""
        self.delivery.take([RowsReceived(stream, "master", token, list(rows))])

    @property
    def tokens(self) -> list[int]:
        """The tokens delivered."""
        return [token for token, _ in self.seen]


def test_what_was_not_asked_for_is_not_delivered() -> None:
    stage = Stage()
    stage.position(1, 1, "beta")
    stage.rows(2, b"[2]", stream="beta")
    stage.delivery.take(["something else"])
    assert not stage.seen
    assert not stage.heard


def test_a_gap_is_fetched_page_by_page_and_batches_stay_whole() -> None:
    archive = Archive([(1, b"[1]"), (2, b"[2]"), (2, b"[3]"), (3, b"[4]"), (5, b"[5]")])
    stage = Stage(archive=archive, alpha=1)
    stage.position(5, 5)
    assert stage.seen == [(2, [[2], [3]]), (3, [[4]]), (5, [[5]])]
    assert archive.asked == [
        ("alpha", "master", 1, 5),
        ("alpha", "master", 2, 5),
    ]
    assert stage.delivery.known == {ALPHA: 5}
    assert stage.heard == [("alpha", "master", 5)]
    assert not stage.resets


@pytest.mark.parametrize(("prev", "token"), [(3, 3), (3, 7), (1, 7), (1, 3)])
def test_no_gap_by_the_relaxed_rule(prev: int, token: int) -> None:
    stage = Stage(archive=Archive([]), alpha=3)
    stage.position(prev, token)
    assert not stage.resets
    assert stage.delivery.known == {ALPHA: token}


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_position_is_a_gap_or_a_reset_exactly_where_something_was_missed(
    known: int, prev: int, token: int
) -> None:
    two = Stage(alpha=known)
    two.position(prev, token)
    assert bool(two.resets) is not (prev <= known <= token)
    one = Stage("1.13", alpha=known)
    one.position(None, token)
    assert bool(one.resets) is not (known == token)
    assert two.delivery.known == one.delivery.known == {ALPHA: token}


def test_one_token_forms_compare_for_equality() -> None:
    archive = Archive([(4, b"[4]")])
    stage = Stage("1.13", archive, alpha=3)
    stage.position(None, 3)
    assert not archive.asked
    stage.position(None, 4)
    assert archive.asked == [("alpha", "master", 3, 4)]
    assert stage.tokens == [4]


def test_from_the_start_everything_is_fetched() -> None:
    archive = Archive([(1, b"[1]")])
    stage = Stage(archive=archive)
    stage.position(1, 1)
    assert stage.tokens == [1]


def test_a_position_that_went_back_is_a_reset_and_a_re_read_from_the_start() -> None:
    archive = Archive([(1, b"[1]"), (2, b"[2]")])
    stage = Stage(archive=archive, alpha=90)
    stage.position(2, 2)
    assert stage.resets == [("alpha", "master", 90, 0)]
    assert stage.tokens == [1, 2]
    assert stage.delivery.known == {ALPHA: 2}


def test_without_catch_up_a_gap_is_told() -> None:
    stage = Stage(alpha=3)
    stage.position(9, 9)
    assert stage.resets == [("alpha", "master", 3, 9)]
    assert stage.delivery.known == {ALPHA: 9}


def test_rows_wait_for_the_fetch() -> None:
    archive = Archive([(4, b"[4]"), (5, b"[5]")])
    archive.errors = [ConnectionFailed("busy", reason=CloseReason.CONNECTION_LOST)]
    stage = Stage(archive=archive, alpha=3)
    stage.position(5, 5)
    stage.rows(6, b"[6]")
    assert stage.link.paused == 1
    assert not stage.seen
    assert stage.delivery.waiting == 1
    stage.link.clock.advance(60)
    assert stage.tokens == [4, 5, 6]
    assert stage.link.paused == 0


def test_what_cannot_be_fetched_is_told_as_a_gap() -> None:
    archive = Archive([])
    archive.errors = [
        ConnectionFailed("no URL", reason=CloseReason.CONNECTION_LOST, transient=False)
    ]
    stage = Stage(archive=archive, alpha=3)
    stage.position(5, 5)
    assert stage.resets == [("alpha", "master", 3, 5)]
    assert stage.delivery.known == {ALPHA: 5}


def test_a_fetch_ends_when_the_client_stops() -> None:
    archive = Archive([])
    archive.errors = [OSError("down")] * 3
    stage = Stage(archive=archive, alpha=3)
    stage.position(5, 5)
    stage.delivery.stop()
    stage.link.clock.advance(60)
    assert stage.delivery.known == {ALPHA: 3}
    assert not stage.link.failures


def test_2017_catch_up_rows_come_in_any_order_and_count_at_position() -> None:
    stage = Stage("2017", alpha=2)
    stage.delivery.resumption.ask(ALPHA, 2)
    stage.rows(4, b"[4]")
    stage.rows(2, b"[2]")
    stage.rows(3, b"[3]")
    assert stage.tokens == [4, 3]
    assert stage.delivery.known == {ALPHA: 2}
    stage.position(None, 4)
    assert stage.delivery.known == {ALPHA: 4}
    assert not stage.resets


def test_2017_repeats_a_token_live() -> None:
    stage = Stage("2017", alpha=3)
    stage.rows(4, b"[4]")
    stage.rows(4, b"[5]")
    stage.rows(3, b"[3]")
    assert stage.seen == [(4, [[4]]), (4, [[5]])]


def test_2017_position_ahead_of_the_last_row_is_no_gap_and_behind_is_a_reset() -> None:
    stage = Stage("2017", alpha=3)
    stage.position(None, 9)
    assert not stage.resets
    stage.position(None, 1)
    assert stage.resets == [("alpha", "master", 9, 1)]


def test_2017_from_the_start_of_a_stream_without_rows() -> None:
    stage = Stage("2017")
    stage.delivery.resumption.ask(ALPHA, 0)
    stage.position(None, 0)
    assert stage.delivery.known == {ALPHA: 0}
    assert stage.resets == []


def test_2017_from_the_start() -> None:
    stage = Stage("2017")
    stage.delivery.resumption.ask(ALPHA, 0)
    stage.rows(1, b"[1]")
    stage.position(None, 1)
    assert stage.tokens == [1]
    assert stage.delivery.known == {ALPHA: 1}
    assert stage.resets == []


def test_2017_rows_whose_position_is_not_known_yet_wait_if_they_are_committed_with_it() -> None:
    """A connection that is lost in the middle leaves nothing behind."""
    stage = Stage("2017", alpha=2)
    progress, delivery = stage.delivery._progress, stage.delivery
    progress.atomic = True
    saved: list[Any] = []
    stage.store.save = lambda positions, _: saved.append(dict(positions))  # type: ignore[method-assign]
    delivery.resumption = Resumption(keep=True)
    delivery.resumption.ask(ALPHA, 2)
    stage.rows(5, b"[5]")
    stage.rows(3, b"[3]")
    assert not stage.seen
    delivery.begin(DIALECTS["2017"])
    delivery.resumption.ask(ALPHA, 2)
    stage.rows(5, b"[5]")
    stage.rows(3, b"[3]")
    stage.rows(5, b"[5.5]")
    stage.position(None, 4)
    assert stage.seen == [(3, [[3]]), (5, [[5], [5.5]])]
    assert saved == [{ALPHA: 3}, {ALPHA: 5}, {ALPHA: 5}]
    assert stage.heard == [("alpha", "master", 5)]
    assert not stage.resets


def test_positions_that_cannot_be_saved_are_kept_for_the_next_time() -> None:
    stage = Stage(alpha=0)
    saved: list[Any] = []
    fails = [True]

    def save(positions: Any, incarnation: str | None) -> None:
        if fails:
            fails.pop()
            raise OSError("disk full")
        saved.append(dict(positions))

    stage.store.save = save  # type: ignore[method-assign]
    stage.rows(1, b"[1]")
    assert not saved
    stage.rows(2, b"[2]")
    assert saved == [{ALPHA: 2}]


def test_a_fetched_row_that_fails_is_tried_again_before_the_next() -> None:
    archive = Archive([(2, b"[2]"), (3, b"[3]")])
    stage = Stage(archive=archive, alpha=1)
    fails = [True]
    take = stage.delivery._handler

    def handler(stream: str, instance: str, token: int, rows: Any) -> Any:
        if fails:
            fails.pop()
            raise RuntimeError("not yet")
        return take(stream, instance, token, rows)

    stage.handle_with(handler)
    stage.position(3, 3)
    assert stage.tokens == []
    stage.link.clock.advance(60)
    assert stage.tokens == [2, 3]


def test_rows_already_held_are_passed_over_in_a_fetch() -> None:
    class Overlapping(Archive):
        def fetch(self, stream: str, instance: str, after: int, upto: int) -> Any:
            return succeed(CatchUpPage([(1, b"[1]"), (2, b"[2]")], 2, False))

    stage = Stage(archive=Overlapping([]), alpha=1)
    stage.position(2, 2)
    assert stage.tokens == [2]


def test_what_the_other_side_no_longer_has_is_a_reset_before_the_rows_after_it() -> None:
    class Short(Archive):
        def fetch(self, stream: str, instance: str, after: int, upto: int) -> Any:
            if after < 4:
                return succeed(CatchUpPage([(5, b"[5]")], 5, True, missing=(after, 4)))
            return succeed(CatchUpPage([(6, b"[6]")], 6, False))

    stage = Stage(archive=Short([]), alpha=1)
    stage.position(6, 6)
    assert stage.resets == [("alpha", "master", 1, 4)]
    assert stage.tokens == [5, 6]
    assert stage.heard == [("alpha", "master", 4), ("alpha", "master", 6)]


def as_runs(batches: list[tuple[int, int]], sizes: list[int]) -> list[Any]:
    """Return (token, rows) as events, those of one row joined to runs of *sizes* in turn."""
    events: list[Any] = []
    cycle = itertools.cycle(sizes)
    left = 0
    for token, count in batches:
        rows = [b"[%d]" % token] * count
        last = events[-1] if events else None
        if count > 1:
            events.append(RowsReceived("alpha", "master", token, rows))
        elif left and isinstance(last, RunReceived):
            last.tokens.append(token)
            last.rows.extend(rows)
            left -= 1
        else:
            events.append(RunReceived("alpha", "master", [token], rows))
            left = next(cycle) - 1
    return events


@given(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 1, 1, 2])), max_size=15),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.sampled_from(["now", "fired", "later", "raise"]), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_run_is_delivered_as_its_batches_are(
    batches: list[tuple[int, int]], sizes: list[int], ways: list[str], atomic: bool
) -> None:
    """Whatever the handler does: at once, later, or only when it is called again."""
    seen: list[Any] = []
    for whole in (False, True):
        stage = Stage(alpha=2)
        stage.delivery._progress.atomic = atomic
        calls = itertools.cycle(ways)
        handed: list[Any] = []
        trail: list[Any] = []
        most = 0

        def handler(
            stream: str,
            instance: str,
            token: int,
            rows: Any,
            calls: Iterator[str] = calls,
            handed: list[Any] = handed,
            stage: Stage = stage,
        ) -> Any:
            way = next(calls)
            handed.append((token, list(rows), way))
            if way == "raise":
                raise RuntimeError("not yet")
            if way == "later":
                return deferLater(stage.link.clock, 1)
            return succeed(None) if way == "fired" else None

        stage.handle_with(handler)
        events = as_runs(batches, sizes)
        with structlog.testing.capture_logs():
            stage.delivery.take(events if whole else list(in_batches(events)))
            for _ in range(80 * len(batches)):
                most = max(most, stage.delivery.waiting)
                trail.append((len(handed), stage.delivery.waiting, stage.delivery.known[ALPHA]))
                if ways == ["raise"] or not stage.delivery._working:
                    break
                stage.link.clock.advance(1)
        seen.append((handed, trail, most, stage.delivery.received_rows))
    assert seen[0] == seen[1]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), min_size=1, max_size=12),
    st.lists(st.sampled_from(["now", "fired", "later", "raise"]), min_size=1, max_size=6),
    st.integers(1, 12),
    st.booleans(),
)
def test_rows_of_several_pairs_are_delivered_one_after_the_other(
    batches: list[tuple[str, int]], ways: list[str], cut: int, atomic: bool
) -> None:
    """In the order in which they came, however they came, whatever the handler does."""
    pairs = [("alpha", instance) for instance, _ in batches]
    mixed = MixedReceived(pairs, [t for _, t in batches], [b"[%d]" % t for _, t in batches])
    seen: list[Any] = []
    for events in (
        [*in_batches([mixed])],
        [mixed],
        [MixedReceived(*(part[:cut] for part in mixed))]
        + [MixedReceived(*(part[cut:] for part in mixed))] * (cut < len(batches)),
    ):
        stage = Stage()
        for instance in "ab":
            stage.delivery.take([PositionCommand("alpha", instance, 2, 2)])
        stage.delivery._progress.atomic = atomic
        calls = itertools.cycle(ways)
        handed: list[Any] = []

        def handler(
            stream: str,
            instance: str,
            token: int,
            rows: Any,
            calls: Iterator[str] = calls,
            handed: list[Any] = handed,
            stage: Stage = stage,
        ) -> Any:
            way = next(calls)
            handed.append((instance, token, list(rows), way))
            if way == "raise":
                raise RuntimeError("not yet")
            if way == "later":
                return deferLater(stage.link.clock, 1)
            return succeed(None) if way == "fired" else None

        stage.handle_with(handler)
        with structlog.testing.capture_logs():
            stage.delivery.take(events)
            for _ in range(80 * len(batches)):
                if ways == ["raise"] or not stage.delivery._working:
                    break
                stage.link.clock.advance(1)
        seen.append((handed, stage.delivery.known, stage.delivery.received_rows))
    assert seen[0] == seen[1] == seen[2]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 1, 1, 2])), max_size=15),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_joined_batches_are_the_same_rows(batches: list[tuple[int, int]], sizes: list[int]) -> None:
    single, joined = Stage(alpha=2), Stage(alpha=2)
    joined.delivery._join_batches = True
    for stage in (single, joined):
        stage.delivery.take(as_runs(batches, sizes))
    rows = [[row for _, found in stage.seen for row in found] for stage in (single, joined)]
    assert rows[0] == rows[1]
    assert single.delivery.known == joined.delivery.known
    assert single.delivery.received_rows == joined.delivery.received_rows
    assert len(joined.seen) <= len(as_runs(batches, sizes))
    assert {token for token, _ in joined.seen} <= {token for token, _ in single.seen}


@pytest.mark.parametrize(
    "events",
    [
        [
            RunReceived("alpha", "master", [4, 5], [b"[4]", b"[5]"]),
            PositionCommand("alpha", "master", 5, 9),
        ],
        [
            RowsReceived("alpha", "master", 4, [b"[4]"]),
            RowsReceived("alpha", "master", 5, [b"[5]"]),
        ],
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
def test_nothing_passes_a_batch_that_was_given_up(events: list[Any], atomic: bool) -> None:
    """Neither what came with it nor what comes later, until the client begins anew."""
    stage = Stage(alpha=3)
    stage.delivery._caller._max_attempts = 1
    stage.delivery._progress.atomic = atomic
    take = stage.delivery._handler

    def fails(*_: Any) -> None:
        raise RuntimeError("never")

    stage.handle_with(fails)
    with structlog.testing.capture_logs():
        stage.delivery.take(events)
    assert [str(failure.value) for failure in stage.link.failures] == ["never"]
    stage.handle_with(take)
    stage.delivery.take(events)
    assert not stage.seen
    assert stage.delivery.known == {ALPHA: 3}
    assert stage.delivery.waiting == 0
    stage.delivery.start()
    stage.delivery.take(events)
    assert stage.tokens == [4, 5]


def test_what_still_comes_while_the_client_stops_waits_for_the_next_start() -> None:
    """A handler that fails then is not called again, so what follows must not be handed on."""
    stage = Stage(alpha=3)
    take = stage.delivery._handler
    fails = [True]

    def handler(stream: str, instance: str, token: int, rows: Any) -> Any:
        if fails:
            raise RuntimeError("not yet")
        return take(stream, instance, token, rows)

    stage.handle_with(handler)
    run = RunReceived("alpha", "master", [4, 5], [b"[4]", b"[5]"])
    with structlog.testing.capture_logs():
        stage.delivery.take([run])
        stage.delivery.stop()
        fails.clear()
        stage.link.clock.advance(60)
    stage.delivery.take([RowsReceived("alpha", "master", 6, [b"[6]"])])
    assert not stage.seen
    assert stage.delivery.known == {ALPHA: 3}
    stage.delivery.start()
    stage.delivery.take([run])
    assert stage.tokens == [4, 5]


def test_a_run_of_a_stream_that_is_not_ours_is_left_out() -> None:
    for join in (False, True):
        stage = Stage()
        stage.delivery._join_batches = join
        stage.delivery.take([RunReceived("beta", "master", [1, 2], [b"[1]", b"[2]"])])
        assert not stage.seen
        assert not stage.delivery.received_rows


def test_stale_rows_are_dropped_live() -> None:
    stage = Stage(alpha=3)
    stage.rows(3, b"[3]")
    stage.rows(4, b"[4]")
    stage.delivery.take(
        [RowsReceived("alpha", "master", 4, [b"[4]"]), RowsReceived("alpha", "master", 5, [b"[5]"])]
    )
    assert stage.tokens == [4, 5]


def test_a_callback_that_fails_for_good_is_surfaced() -> None:
    stage = Stage(alpha=3)

    def fails(*_: Any) -> None:
        raise RuntimeError("never")

    stage.delivery._on_position = fails
    stage.delivery._caller._max_attempts = 1
    stage.position(3, 4)
    (failure,) = stage.link.failures
    assert failure.check(RuntimeError)


def test_a_callback_is_not_called_again_after_the_stop() -> None:
    stage = Stage(alpha=3)
    calls: list[int] = []

    def fails(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("never")

    stage.delivery._on_position = fails
    stage.position(3, 4)
    stage.delivery.stop()
    stage.link.clock.advance(60)
    assert calls == [1]
    assert not stage.link.failures


def test_a_run_is_handed_over_as_it_is_where_nothing_of_it_is_known() -> None:
    stage = Stage(alpha=4)
    runs: list[Any] = []
    stage.delivery._on_run = lambda *run: runs.append(run)
    stage.delivery.take([RunReceived("alpha", "master", [5, 6], [b"[5]", b"[6]"])])
    stage.delivery.take([RunReceived("other", "master", [5, 6], [b"[5]", b"[6]"])])
    assert runs == [("alpha", "master", [5, 6], [b"[5]", b"[6]"])]
    assert stage.delivery.known == {ALPHA: 6}
    stage.delivery.take([RunReceived("alpha", "master", [6, 7], [b"[6]", b"[7]"])])
    assert len(runs) == 1
    assert stage.seen == [(7, [[7]])]
    assert stage.delivery.received_rows == {"alpha": 3}


def test_each_gap_that_is_told_is_counted() -> None:
    counted = metrics.GAPS.labels("alpha")._value
    before = counted.get()
    stage = Stage(alpha=3)
    stage.position(9, 9)
    stage.position(9, 9)
    assert counted.get() == before + 1


def test_a_page_that_goes_no_further_ends_the_fetch() -> None:
    class Stuck(Archive):
        def fetch(self, stream: str, instance: str, after: int, upto: int) -> Any:
            self.asked.append(after)
            assert len(self.asked) < 9
            return succeed(CatchUpPage([], after, limited=True))

    archive = Stuck([])
    stage = Stage(archive=archive, alpha=3)
    stage.position(5, 5)
    assert archive.asked == [3]
    assert stage.delivery.known == {ALPHA: 5}


def test_tries_to_fetch_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(module, "backoff_s", lambda attempt: tried.append(attempt) or 1.0)
    archive = Archive([(4, b"[4]")])
    archive.errors = [OSError("down")] * 3
    stage = Stage(archive=archive, alpha=3)
    stage.position(4, 4)
    for _ in range(3):
        stage.link.clock.advance(1)
    assert tried == [1, 2, 3]
    assert stage.tokens == [4]


def told_falsely(**known: int) -> tuple[Stage, list[Any]]:
    """Return a stage that learns that all above 3 was told falsely, and what it asked."""
    stage = Stage(**known)
    asked: list[Any] = []

    def passed_over(pair: Any, token: int, *, position: bool = False) -> int:
        asked.append((pair, token, position))
        return 3

    stage.delivery._passed_over = stage.delivery._runs._passed_over = passed_over
    return stage, asked


def test_a_position_below_one_that_was_told_falsely_goes_back() -> None:
    stage, asked = told_falsely(alpha=9)
    stage.position(3, 5)
    assert asked == [(ALPHA, 5, True)]
    assert stage.resets == [("alpha", "master", 9, 3)]
    assert stage.heard == [("alpha", "master", 3), ("alpha", "master", 5)]
    assert stage.delivery.known == {ALPHA: 5}


def test_rows_below_a_token_that_was_told_falsely_go_back_and_are_delivered() -> None:
    stage, asked = told_falsely(alpha=9)
    stage.rows(4, b"[4]")
    assert asked == [(ALPHA, 4, False)]
    assert stage.tokens == [4]
    stage, asked = told_falsely(alpha=9)
    stage.delivery.take([RunReceived("alpha", "master", [4, 5], [b"[4]", b"[5]"])])
    assert asked == [(ALPHA, 4, False)]
    assert stage.resets == [("alpha", "master", 9, 3)]
    assert stage.tokens == [4, 5]
    assert stage.delivery.known == {ALPHA: 5}


def test_what_is_held_for_want_of_a_position_goes_on_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descending, "DESCENDING", {"alpha"})
    stage = Stage(alpha=1)
    stage.rows(3, b"[3]")
    assert stage.tokens == []
    stage.link.clock.advance(descending.HOLD_S)
    assert stage.tokens == [3]
    # what a lost connection brought is forgotten: it comes again
    stage.rows(9, b"[9]")
    _ = Deferred.fromCoroutine(stage.delivery.end())
    assert not stage.link.clock.getDelayedCalls()
    stage.delivery.begin(DIALECTS["1.22"])
    stage.position(3, 3)
    assert stage.tokens == [3]


def test_joined_rows_that_are_known_are_counted_as_such() -> None:
    stage = Stage("tcprepl", alpha=2)
    stage.delivery._join_batches = True
    known = metrics.DROPPED.labels("row", "already_known")
    before = known._value.get()
    stage.delivery.take([RunReceived(*ALPHA, [1, 2, 3], [b"[1]", b"[2]", b"[3]"])])
    stage.delivery.take([RunReceived(*ALPHA, [2, 3], [b"[2]", b"[3]"])])
    stage.delivery.take([RunReceived(*ALPHA, [4, 5], [b"[4]", b"[5]"])])
    assert stage.seen == [(3, [[3]]), (5, [[4], [5]])]
    assert known._value.get() == before + 4


def test_what_cannot_be_worked_through_ends_the_connection_and_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waited behind a handler has no dataReceived that would end it."""
    stage = Stage("tcprepl", alpha=0)
    waiting: list[Deferred[None]] = []

    def slow(stream: str, instance: str, token: int, rows: Any) -> Deferred[None]:
        stage.seen.append((token, list(rows)))
        waiting.append(Deferred())
        return waiting[-1]

    stage.handle_with(slow)
    for token in (1, 2, 3):
        stage.rows(token, b"[%d]" % token)
    assert stage.tokens == [1]
    work = stage.delivery._one_batch

    def broken(batch: RowsReceived) -> Any:
        if batch.token == 2:
            raise MemoryError
        return work(batch)

    monkeypatch.setattr(stage.delivery, "_one_batch", broken)
    waiting[0].callback(None)
    assert stage.tokens == [1]
    assert len(stage.link.broken) == 1
    assert stage.link.paused == 0
    stage.rows(4, b"[4]")  # of the connection that ends
    assert stage.tokens == [1]
    monkeypatch.undo()
    stage.handle_with(lambda stream, instance, token, rows: stage.seen.append((token, list(rows))))
    stage.delivery.begin(DIALECTS["tcprepl"])
    assert stage.delivery.known == {ALPHA: 1}
    for token in (2, 3, 4):
        stage.rows(token, b"[%d]" % token)
    assert stage.tokens == [1, 2, 3, 4]
