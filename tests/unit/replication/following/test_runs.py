"""Batches of one row each, handed over in one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from tcprepl import metrics
from tcprepl.ids import Pair, Token
from tcprepl.protocol.events import MixedReceived, RunReceived
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import Caller
from tcprepl.replication.following.runs import Runs
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.streams.registry import Registry

A, B, OTHER = ("alpha", "m"), ("beta", "m"), ("other", "m")


class Stage:
    """Runs, and what the handler was called with."""

    def __init__(
        self,
        way: Callable[[Token], Any] = lambda token: None,
        passed_over: Callable[[Pair, Token], Token | None] | None = None,
    ) -> None:
        self.seen: list[tuple[str, int, list[Any]]] = []
        self.went_back: list[Any] = []
        self.received: dict[str, int] = {}
        self.progress = Progress(MemoryPositionStore({A: 2}))
        self.progress.load()
        self.caller = Caller(self.progress, lambda seconds: succeed(None), None)
        self.caller.running = True
        self.way = way
        registry = Registry()
        self.runs = Runs(
            self.handle,
            self.progress,
            self.caller,
            lambda stream: None if stream == "other" else registry.codec(stream),
            self.received,
            passed_over,
            self.go_back,
        )

    def handle(self, stream: str, instance: str, token: Token, rows: Rows) -> Any:
        """Be called."""
        self.seen.append((stream, token, list(rows)))
        return self.way(token)

    def go_back(self, pair: Pair, known: Token, base: Token) -> Deferred[None]:
        """Note it."""
        self.went_back.append((pair, known, base))
        return succeed(None)


def mixed(*rows: tuple[Pair, Token]) -> MixedReceived:
    """Return rows of several pairs."""
    return MixedReceived(
        [pair for pair, _ in rows], [token for _, token in rows], [b"[%d]" % t for _, t in rows]
    )


def test_what_is_new_is_handed_over_in_order_and_noted_once() -> None:
    stage = Stage()
    waiting, left = stage.runs.mixed(mixed((A, 3), (B, 1), (OTHER, 9), (A, 2), (B, 2), (A, 4)))
    assert (waiting, left) == (None, None)
    assert [(stream, token) for stream, token, _ in stage.seen] == [
        ("alpha", 3),
        ("beta", 1),
        ("beta", 2),
        ("alpha", 4),
    ]
    assert stage.progress.known == {A: 4, B: 2}
    assert stage.received == {"alpha": 2, "beta": 2}


def test_a_run_is_of_one_pair() -> None:
    stage = Stage()
    assert stage.runs.run(RunReceived(*A, [2, 3, 5], [b"2", b"3", b"5"])) == (None, None)
    assert stage.seen == [("alpha", 3, [3]), ("alpha", 5, [5])]
    assert stage.progress.known == {A: 5}


def test_what_follows_a_handler_that_takes_its_time_is_left() -> None:
    done: Deferred[None] = Deferred()
    stage = Stage(lambda token: done if token == 7 else None)
    waiting, left = stage.runs.mixed(mixed((A, 3), (B, 7), (A, 4)))
    assert waiting is not None
    assert left == mixed((A, 4))
    assert stage.progress.known == {A: 3}, "it has not succeeded yet"
    assert stage.received == {"alpha": 1, "beta": 1}
    done.callback(None)
    assert stage.progress.known == {A: 3, B: 7}
    stage = Stage(lambda token: done)
    waiting, left = stage.runs.mixed(mixed((A, 3)))
    assert waiting is not None
    assert left is None


def test_what_a_handler_returns_that_nobody_can_wait_for_counts_as_nothing() -> None:
    stage = Stage(lambda token: True)
    assert stage.runs.run(RunReceived(*A, [3, 4], [b"3", b"4"])) == (None, None)
    assert stage.progress.known == {A: 4}


def test_nothing_follows_once_the_client_stops() -> None:
    stage = Stage()

    def stop(token: Token) -> None:
        stage.caller.running = False

    stage.way = stop
    assert stage.runs.mixed(mixed((A, 3), (B, 7))) == (None, None)
    assert stage.progress.known == {A: 3}


def test_a_token_that_was_told_falsely_is_gone_back_from() -> None:
    stage = Stage(passed_over=lambda pair, token: 0 if pair == A and token == 1 else None)
    waiting, left = stage.runs.mixed(mixed((B, 5), (A, 2), (A, 1), (B, 6)))
    assert waiting is not None
    assert left == mixed((A, 1), (B, 6)), "the row is looked at again"
    assert stage.went_back == [(A, 2, 0)]
    assert stage.progress.known == {A: 2, B: 5}


def test_rows_that_are_known_are_counted_as_such() -> None:
    stage = Stage()
    known = metrics.DROPPED.labels("row", "already_known")
    before = known._value.get()
    stage.runs.mixed(mixed((A, 1), (A, 2), (B, 1), (B, 1), (A, 3)))
    assert known._value.get() == before + 3
    assert stage.received == {"alpha": 1, "beta": 1}
