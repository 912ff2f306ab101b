"""Background work: one ERROR per failure, at once; the caller's log context untouched."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from functools import partial

import pytest
import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.typing import EventDict
from twisted.internet.defer import CancelledError, Deferred, fail, inlineCallbacks, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from tcprepl import metrics
from tcprepl.background import (
    TURN_BUDGET_S,
    LoopingProcess,
    looping_background_process,
    run_as_background_process,
    run_in_background,
    spread,
    started,
    stop_all,
    whoever_waits,
)
from tests.ephemeral_world import WorkingClock


class Logs:
    """What structlog was given, each entry with the log context merged in."""

    def __init__(self, entries: list[EventDict]) -> None:
        self.entries = entries

    def failures(self) -> list[EventDict]:
        return [entry for entry in self.entries if entry["event"] == "background.failed"]

    def only_failure(self) -> EventDict:
        failures = self.failures()
        assert len(failures) == 1
        return failures[0]


@pytest.fixture
def logs() -> Iterator[Logs]:
    clear_contextvars()
    with structlog.testing.capture_logs(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
        ]
    ) as entries:
        yield Logs(entries)
    clear_contextvars()


@pytest.fixture
def criticals() -> Iterator[list[str]]:
    """What Twisted logs as CRITICAL, for instance at garbage collection."""
    seen: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_level") is LogLevel.critical:
            seen.append(str(event.get("log_format")))

    globalLogPublisher.addObserver(observe)
    yield seen
    gc.collect()
    globalLogPublisher.removeObserver(observe)


def failed(name: str) -> float:
    return metrics.REGISTRY.get_sample_value("tcprepl_background_failed_total", {"name": name}) or 0


def sample(metric: str, name: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(metric, {"name": name})


class BoomError(Exception):
    """What the work under test raises."""


def raises_at_once() -> None:
    raise BoomError("sync")


async def raises_before_await() -> None:
    bind_contextvars(step="first")
    raise BoomError("before")


async def raises_after_await(gate: Deferred[None]) -> None:
    bind_contextvars(step="second")
    await gate
    raise BoomError("after")


def raise_in_callback(_: object) -> None:
    raise BoomError("callback")


def raises_in_callback(gate: Deferred[None]) -> Deferred[None]:
    return gate.addCallback(raise_in_callback)


@inlineCallbacks
def raises_in_generator(gate: Deferred[None]) -> Generator[Deferred[None], None, None]:
    yield gate
    raise BoomError("generator")


Starter = Callable[..., None]


def start_plain(f: Callable[..., object], *args: object) -> None:
    run_in_background(f, *args)


def start_process(f: Callable[..., object], *args: object) -> None:
    run_as_background_process("work", f, *args)


STARTERS = pytest.mark.parametrize("start", [start_plain, start_process], ids=["plain", "process"])


@STARTERS
@pytest.mark.parametrize("f", [raises_at_once, raises_before_await])
def test_failure_before_first_wait_is_logged_once_at_once(
    start: Starter, f: Callable[[], object], logs: Logs, criticals: list[str]
) -> None:
    start(f)
    entry = logs.only_failure()
    assert entry["log_level"] == "error"
    assert entry["work"] == ("work" if start is start_process else f.__qualname__)
    trace = entry["exception"]
    assert f"in {f.__name__}" in trace
    assert "Boom" in trace
    gc.collect()
    assert len(logs.failures()) == 1
    assert criticals == []


@STARTERS
@pytest.mark.parametrize("f", [raises_after_await, raises_in_callback, raises_in_generator])
def test_failure_after_a_wait_is_logged_once_when_it_happens(
    start: Starter, f: Callable[[Deferred[None]], object], logs: Logs, criticals: list[str]
) -> None:
    gate: Deferred[None] = Deferred()
    start(f, gate)
    assert logs.entries == []
    gate.callback(None)
    entry = logs.only_failure()
    assert entry["log_level"] == "error"
    raiser = "raise_in_callback" if f is raises_in_callback else f.__name__
    assert f"in {raiser}" in entry["exception"]
    del gate
    gc.collect()
    assert len(logs.failures()) == 1
    assert criticals == []


def test_failed_deferred_is_logged(logs: Logs, criticals: list[str]) -> None:
    run_in_background(fail, BoomError("already"))
    assert logs.only_failure()["error"] == "already"
    gc.collect()
    assert criticals == []


def test_failure_of_a_deferred_without_traceback_is_logged(logs: Logs) -> None:
    work: Deferred[None] = Deferred()
    run_in_background(lambda: work)
    work.errback(BoomError("bare"))
    assert "BoomError: bare" in logs.only_failure()["exception"]


def test_log_has_what_the_work_bound(logs: Logs) -> None:
    bind_contextvars(request="r1")
    gate: Deferred[None] = Deferred()
    run_in_background(raises_after_await, gate)
    clear_contextvars()
    gate.callback(None)
    entry = logs.only_failure()
    assert (entry["request"], entry["step"]) == ("r1", "second")


def test_process_log_context_is_its_own(logs: Logs) -> None:
    bind_contextvars(request="r1")
    run_as_background_process("poke", raises_before_await)
    run_as_background_process("poke", raises_at_once)
    first, second = logs.failures()
    assert (first["process"], first["step"]) == ("poke", "first")
    assert "request" not in first
    assert second["process_number"] == first["process_number"] + 1
    assert get_contextvars() == {"request": "r1"}


def bind_something(**_: object) -> None:
    clear_contextvars()
    bind_contextvars(leak="sync")


async def bind_around_an_await(gate: Deferred[None]) -> None:
    bind_contextvars(leak="async")
    await gate
    bind_contextvars(leak="async, later")


@STARTERS
def test_caller_log_context_is_intact(start: Starter, logs: Logs) -> None:
    bind_contextvars(request="r1")
    start(bind_something)
    assert get_contextvars() == {"request": "r1"}
    gate: Deferred[None] = Deferred()
    start(bind_around_an_await, gate)
    assert get_contextvars() == {"request": "r1"}
    gate.callback(None)
    assert get_contextvars() == {"request": "r1"}
    assert logs.entries == []


@STARTERS
def test_log_context_of_an_awaiting_caller_is_intact(start: Starter, logs: Logs) -> None:
    gate: Deferred[None] = Deferred()
    seen: list[dict[str, object]] = []

    async def caller() -> None:
        bind_contextvars(request="r2")
        start(bind_around_an_await, gate)
        seen.append(get_contextvars())
        await gate
        seen.append(get_contextvars())

    done = Deferred.fromCoroutine(caller())
    gate.callback(None)
    assert done.called
    assert seen == [{"request": "r2"}, {"request": "r2"}]
    assert get_contextvars() == {}


def test_failing_errback_context_does_not_leak_into_the_one_who_fires(logs: Logs) -> None:
    gate: Deferred[None] = Deferred()
    run_as_background_process("inner", raises_in_callback, gate)
    bind_contextvars(request="firer")
    gate.callback(None)
    assert get_contextvars() == {"request": "firer"}
    assert logs.only_failure()["process"] == "inner"


def test_arguments_and_results_are_passed_and_ignored(logs: Logs) -> None:
    seen: list[object] = []

    def work(*args: object, **kwargs: object) -> int:
        seen.append((args, kwargs))
        return 7

    run_in_background(work, 1, two=2)
    run_as_background_process("work", work, 3, four=4)
    run_in_background(succeed, "ignored")
    run_as_background_process("work", partial(work, 5), six=6)
    assert seen == [((1,), {"two": 2}), ((3,), {"four": 4}), ((5,), {"six": 6})]
    assert logs.entries == []


def test_partial_is_called_by_the_name_of_its_function(logs: Logs) -> None:
    run_in_background(partial(partial(raises_at_once)))
    assert logs.only_failure()["work"] == "raises_at_once"


def test_object_is_called_by_the_name_of_its_class(logs: Logs) -> None:
    class Work:
        def __call__(self) -> None:
            raise BoomError

    run_in_background(Work())
    assert logs.only_failure()["work"].endswith("Work")


def test_work_that_leaves_with_system_exit_is_not_lost(logs: Logs, criticals: list[str]) -> None:
    async def leave(gate: Deferred[None]) -> None:
        await gate
        raise SystemExit(3)

    gate: Deferred[None] = Deferred()
    run_in_background(leave, gate)
    gate.callback(None)
    assert logs.only_failure()["error"] == "3"
    gc.collect()
    assert criticals == []


def test_work_that_never_ends_is_collected_quietly(logs: Logs, criticals: list[str]) -> None:
    run_in_background(raises_after_await, Deferred())
    gc.collect()
    assert logs.entries == []
    assert criticals == []


def test_keyboard_interrupt_is_not_swallowed() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_background(interrupted)


def test_metrics_count_processes(logs: Logs) -> None:
    name = "counted"
    gate: Deferred[None] = Deferred()
    run_as_background_process(name, raises_after_await, gate)
    run_as_background_process(name, raises_at_once)
    assert sample("synapse_background_process_start_count_total", name) == 2
    assert sample("synapse_background_process_in_flight_count", name) == 1
    assert failed(name) == 1
    gate.callback(None)
    assert sample("synapse_background_process_in_flight_count", name) == 0
    assert failed(name) == 2
    assert (sample("tcprepl_background_process_seconds_total", name) or 0) > 0


def test_metrics_count_failures_of_plain_work(logs: Logs) -> None:
    before = failed("raises_at_once")
    run_in_background(raises_at_once)
    assert failed("raises_at_once") == before + 1


class Turns:
    """Work for a loop: counts its turns, and fails or waits when told to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at: list[float] = []
        self.gate: Deferred[None] | None = None
        self.error: Exception | None = None

    def __call__(self) -> Deferred[None] | None:
        self.at.append(self.clock.seconds())
        if self.error is not None:
            raise self.error
        return self.gate

    def open(self) -> None:
        gate, self.gate = self.gate, None
        assert gate is not None
        gate.callback(None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(clock)


def loop(clock: Clock, turns: Turns, *, now: bool = False) -> LoopingProcess:
    return looping_background_process(clock, "loop", 5.0, turns, now=now)


def test_loop_turns_once_an_interval(clock: Clock, turns: Turns) -> None:
    loop(clock, turns)
    clock.pump([1.0] * 16)
    assert turns.at == [5.0, 10.0, 15.0]


def test_loop_may_start_at_once(clock: Clock, turns: Turns) -> None:
    loop(clock, turns, now=True)
    clock.pump([5.0])
    assert turns.at == [0.0, 5.0]


def test_loop_passes_arguments(clock: Clock) -> None:
    seen: list[int] = []
    looping_background_process(clock, "loop", 1.0, seen.append, 3, now=True)
    assert seen == [3]


def test_loop_survives_failing_turns(clock: Clock, turns: Turns, logs: Logs) -> None:
    turns.error = BoomError("turn")
    loop(clock, turns)
    clock.pump([5.0, 5.0])
    assert turns.at == [5.0, 10.0]
    assert [entry["process"] for entry in logs.failures()] == ["loop", "loop"]
    turns.error, turns.gate = None, Deferred()
    clock.advance(5.0)
    gate, turns.gate = turns.gate, None
    gate.errback(BoomError("later"))
    clock.advance(5.0)
    assert turns.at == [5.0, 10.0, 15.0, 20.0]
    assert len(logs.failures()) == 3


def test_loop_does_not_overlap_and_skips_what_it_missed(clock: Clock, turns: Turns) -> None:
    looping = loop(clock, turns)
    turns.gate = Deferred()
    clock.advance(5.0)
    assert looping.running
    clock.advance(12.0)
    assert turns.at == [5.0]
    turns.open()
    assert not looping.running
    clock.advance(2.9)
    assert turns.at == [5.0]
    clock.advance(0.2)
    assert turns.at == [5.0, pytest.approx(20.1)]


def test_stopped_loop_leaves_nothing_behind(clock: Clock, turns: Turns) -> None:
    looping = loop(clock, turns)
    assert looping.stop().called
    assert looping.stop().called
    assert clock.getDelayedCalls() == []


def test_stop_waits_for_the_running_turn(clock: Clock, turns: Turns) -> None:
    looping = loop(clock, turns)
    turns.gate = Deferred()
    clock.advance(5.0)
    stopped, again = looping.stop(), looping.stop()
    assert not stopped.called
    turns.open()
    assert stopped.called
    assert again.called
    assert clock.getDelayedCalls() == []


def test_loop_may_be_stopped_by_its_own_turn(clock: Clock) -> None:
    stops: list[Deferred[None]] = []
    looping: LoopingProcess

    def turn() -> None:
        stops.append(looping.stop())

    looping = looping_background_process(clock, "loop", 5.0, turn)
    clock.advance(5.0)
    assert stops[0].called
    assert clock.getDelayedCalls() == []


def test_loop_refuses_an_interval_that_never_ends(clock: Clock) -> None:
    with pytest.raises(ValueError, match="above 0"):
        looping_background_process(clock, "loop", 0.0, raises_at_once)


class TestSpread:
    """A lot that is due at once is done over several turns."""

    def test_on_a_clock_that_stands_still_all_is_done_at_once(self) -> None:
        done: list[int] = []
        clock = Clock()
        run_in_background(spread, clock, (done.append(n) for n in range(10_000)))
        assert len(done) == 10_000
        assert not clock.getDelayedCalls()

    def test_each_turn_ends_when_its_time_is_used_up(self) -> None:
        clock = WorkingClock()
        done: list[int] = []
        run_in_background(spread, clock, (done.append(n) for n in range(10_000)))
        assert 0 < len(done) < 1_000
        clock.advance(0)
        assert len(done) == 10_000
        assert clock.calls_done > 10
        assert clock.longest_s < 1.1 * TURN_BUDGET_S

    def test_a_step_that_fails_ends_the_work_and_is_told(self, logs: Logs) -> None:
        def steps() -> Iterator[None]:
            yield
            raise ValueError("no")

        run_in_background(spread, Clock(), steps())
        assert logs.only_failure()["error"] == "no"


def test_all_are_stopped_at_once_and_waited_for_together() -> None:
    clock, working = Clock(), Deferred[None]()
    idle = looping_background_process(clock, "idle", 1.0, lambda: None)
    busy = looping_background_process(clock, "busy", 1.0, lambda: working)
    clock.advance(1.0)
    stopped = stop_all([busy, idle])
    assert not clock.getDelayedCalls()
    assert not stopped.called
    working.callback(None)
    assert stopped.called
    assert stop_all(()).called


async def steps(found: list[object], *awaited: Deferred[object]) -> None:
    """Note what is awaited, and what becomes of it."""
    for one in awaited:
        try:
            found.append(await one)
        except ValueError as error:
            found.append(error)
    if "raise" in found:
        raise ValueError("raise")


def test_a_coroutine_that_never_waits_needs_no_deferred() -> None:
    found: list[object] = []
    assert started(steps(found, succeed(1), succeed(2))) is None
    assert found == [1, 2]
    with pytest.raises(ValueError, match="raise"):
        started(steps(found, succeed("raise")))


def test_a_coroutine_that_waits_goes_on_as_any_other() -> None:
    """Results and failures come to it, and its end, or its failure, to whoever waits for that."""
    first, second, third = Deferred[object](), Deferred[object](), Deferred[object]()
    found: list[object] = []
    ended: list[object] = []
    running = started(steps(found, succeed(0), first, second, third))
    assert running is not None
    running.addBoth(ended.append)
    first.callback(1)
    error = ValueError("it failed")
    second.errback(error)
    assert found == [0, 1, error]
    assert ended == []
    third.callback("raise")
    assert str(ended[0].value) == "raise"  # type: ignore[attr-defined]
    fine = Deferred[object]()
    running = started(steps([], fine))
    assert running is not None
    running.addBoth(ended.append)
    fine.callback(None)
    assert ended[1] is None


def test_a_coroutine_that_waits_can_be_cancelled() -> None:
    cancelled: list[object] = []
    ended: list[object] = []

    async def waits() -> None:
        try:
            await Deferred()
        except CancelledError as error:
            cancelled.append(error)
            raise

    running = started(waits())
    assert running is not None
    running.addBoth(ended.append)
    running.cancel()
    assert len(cancelled) == 1
    assert ended[0].check(CancelledError)  # type: ignore[attr-defined]


@pytest.mark.parametrize("closed", [False, True])
def test_a_coroutine_that_waits_for_ever_may_be_thrown_away(closed: bool) -> None:
    """Whichever part of it the garbage collector comes by first."""
    ended: list[int] = []

    async def waits() -> None:
        try:
            await Deferred()
        finally:
            ended.append(1)

    coroutine = waits()
    running = started(coroutine)
    assert running is not None
    if closed:
        coroutine.close()
    del coroutine, running
    gc.collect()
    assert ended == [1]


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_started_has_a_log_context_of_its_own(waits: bool) -> None:
    clear_contextvars()
    bind_contextvars(whose="ours")
    found: list[object] = []
    waiting: Deferred[None] = Deferred()

    async def binds() -> None:
        found.append(get_contextvars())
        bind_contextvars(whose="its")
        await (waiting if waits else succeed(None))
        found.append(get_contextvars())

    started(binds())
    bind_contextvars(whose="others")
    if waits:
        waiting.callback(None)
    assert found == [{"whose": "ours"}, {"whose": "its"}]
    assert get_contextvars() == {"whose": "others"}
    clear_contextvars()


def test_work_goes_on_when_nobody_waits_for_it(logs: Logs) -> None:
    """Its failure is told to who waits, and logged when nobody does."""
    cancelled: list[Deferred[None]] = []
    for outcome in ("done", RuntimeError("told"), RuntimeError("logged")):
        work: Deferred[str] = Deferred(cancelled.append)  # type: ignore[arg-type]
        found: list[object] = []
        waiting = whoever_waits(work)
        waiting.addBoth(found.append)
        if str(outcome) == "logged":
            waiting.cancel()
            assert found[0].check(CancelledError)  # type: ignore[attr-defined]
        if isinstance(outcome, str):
            work.callback(outcome)
            assert found == ["done"]
        else:
            work.errback(outcome)
            assert len(found) == 1
    assert not cancelled
    assert logs.only_failure()["error"] == "logged"
