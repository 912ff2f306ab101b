"""One kit for every process: starting that fails, stopping that hangs or raises, at any step."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tcprepl.addresses import parse_address
from tcprepl.app import lifecycle
from tcprepl.app.lifecycle import STATUS_INTERVAL_S, STOP_WITHIN_S, Lifecycle, run
from tcprepl.app.relay import Relay
from tcprepl.app.sender import FederationWorker
from tcprepl.app.server import Server
from tcprepl.config import build
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.replication.redis.url import parse_redis_url


def server(reactor: Any, where: Path) -> Server:
    raw = {"data_directory": None, "redis": {"url": "redis://127.0.0.1:6379"}}
    return Server(reactor, build(raw, "test").config)


def relay_over_tcp(reactor: Any, where: Path) -> Relay:
    raw = {"data_directory": None, "instances": {"master": "http://127.0.0.1:1"}}
    return Relay(reactor, build(raw, "test").config, parse_address("127.0.0.1:7"))


def relay_over_redis(reactor: Any, where: Path) -> Relay:
    config = build({"data_directory": None}, "test").config
    return Relay(reactor, config, parse_redis_url("redis://127.0.0.1:6379"))


def federation_sender(reactor: Any, where: Path) -> FederationWorker:
    made = FederationWorker(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
        where,
        build({"server_name": "x.example"}, "test").config,
        name="fed1",
    )
    made._run = run_inline  # type: ignore[method-assign]
    return made


ROOTS = (server, relay_over_tcp, relay_over_redis, federation_sender)
MakeRoot = Callable[[Any, Path], Any]


class Planted(Exception):
    """What the kit makes fail."""


class Watched(Lifecycle):
    """Notes which parts there are and which were stopped; fails or hangs where it is told to."""

    def __init__(self, reactor: Any, name: str) -> None:
        super().__init__(reactor, name)
        self.added: list[str] = []
        self.stopped: list[str] = []
        self.fail_at: int | None = None
        self.spoil: dict[int, Callable[[], object]] = {}

    def add(self, part: str, stop: Callable[[], object]) -> None:
        number = len(self.added)
        self.added.append(part)

        def stop_and_note() -> object:
            self.stopped.append(part)
            if number not in self.spoil:
                return stop()
            _ = maybeDeferred(stop)
            return self.spoil[number]()

        super().add(part, stop_and_note)
        if self.fail_at == number:
            raise Planted


class Reactor(MemoryReactorClock):
    """In memory, and called by threads, too."""

    def callFromThread(self, f: Any, *args: Any) -> None:
        self.callLater(0, f, *args)


def watched(make: MakeRoot, where: Path) -> tuple[Any, Watched, MemoryReactorClock]:
    """Return a root whose lifecycle is watched, and its reactor."""
    reactor = Reactor()
    root = make(reactor, where)
    life = Watched(reactor, "test")
    root._life = life
    if hasattr(root, "_listeners"):
        root._listeners._life = life
    return root, life, reactor


def begun(work: Any) -> list[Any]:
    """Start a coroutine, and return the list that will hold its result or Failure."""
    found: list[Any] = []
    _ = Deferred.fromCoroutine(work).addBoth(found.append)
    return found


def parts_of(make: MakeRoot, where: Path) -> int:
    """Return of how many parts a root is made."""
    root, life, reactor = watched(make, where)
    assert begun(root.start()) == [None]
    count = len(life.added)
    stopping = begun(root.stop())
    reactor.pump([0.5] * 40)
    assert stopping == [None]
    assert life.stopped == life.added[::-1]
    assert reactor.getDelayedCalls() == []
    return count


@pytest.mark.parametrize("make", ROOTS)
def test_a_start_that_fails_at_any_step_undoes_the_rest(make: MakeRoot, tmp_path: Path) -> None:
    count = parts_of(make, tmp_path)
    assert count >= 5
    for step in range(count):
        root, life, reactor = watched(make, tmp_path)
        life.fail_at = step
        outcome = begun(root.start())
        reactor.pump([0.5] * 40)
        assert outcome[0].check(Planted), (step, outcome)
        assert len(life.added) == step + 1
        assert life.stopped == life.added[::-1]
        assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize("make", ROOTS)
@pytest.mark.parametrize("how", ["raises", "fails", "hangs", "will not be cancelled"])
def test_a_part_that_does_not_stop_keeps_no_other(make: MakeRoot, how: str, tmp_path: Path) -> None:
    def spoilt() -> object:
        if how == "raises":
            raise Planted
        if how == "hangs":
            return Deferred()
        return stubborn() if how == "will not be cancelled" else failing()

    for step in range(parts_of(make, tmp_path)):
        root, life, reactor = watched(make, tmp_path)
        begun(root.start())
        life.spoil[step] = spoilt
        with structlog.testing.capture_logs() as logs:
            stopping = begun(root.stop())
            reactor.pump([0.1] * int(STOP_WITHIN_S * 10))
        assert stopping == [None], (step, life.stopped)
        assert life.stopped == life.added[::-1]
        told = {entry["event"]: entry["part"] for entry in logs if entry.get("part")}
        overdue = how in ("hangs", "will not be cancelled")
        event = "test.stop_overdue" if overdue else "test.stop_failed"
        assert told == {event: life.added[step]}


async def failing() -> None:
    raise Planted


async def stubborn() -> None:
    try:
        await Deferred()
    except CancelledError:
        await Deferred()


@pytest.mark.parametrize("make", ROOTS)
def test_all_parts_hang_and_it_ends_in_time_all_the_same(make: MakeRoot, tmp_path: Path) -> None:
    count = parts_of(make, tmp_path)
    root, life, reactor = watched(make, tmp_path)
    begun(root.start())
    life.spoil = dict.fromkeys(range(count), stubborn)
    stopping = begun(root.stop())
    reactor.pump([0.01] * int(STOP_WITHIN_S * 100))
    assert stopping == [None]
    assert life.stopped == life.added[::-1]


class Part:
    """Parts that stop when the test lets them."""

    def __init__(self) -> None:
        self.stops: list[Deferred[None]] = []

    def stop(self) -> Deferred[None]:
        self.stops.append(Deferred())
        return self.stops[-1]


def test_who_asks_twice_waits_for_the_one_stop() -> None:
    life, part = Lifecycle(Clock(), "test"), Part()
    life.add("first", part.stop)
    life.add("second", part.stop)
    one, other = begun(life.stop()), begun(life.stop())
    assert len(part.stops) == 1
    part.stops[0].callback(None)
    assert (one, other) == ([], [])
    part.stops[1].callback(None)
    assert (one, other) == ([None], [None])


def test_a_stop_during_the_start_ends_it() -> None:
    life, part = Lifecycle(Clock(), "test"), Part()
    started: list[str] = []

    async def begin() -> None:
        life.add("first", part.stop)
        await Deferred()
        started.append("second")

    starting = begun(life.start(begin))
    stopping = begun(life.stop())
    part.stops[0].callback(None)
    assert starting[0].check(CancelledError)
    assert stopping == [None]
    assert started == []


def test_a_start_that_ends_well_all_the_same_is_undone() -> None:
    """A step that cannot be cancelled does not leave behind what came after it."""
    life, part = Lifecycle(Clock(), "test"), Part()

    async def begin() -> None:
        try:
            await Deferred()
        except CancelledError:
            life.add("late", part.stop)

    starting = begun(life.start(begin))
    begun(life.stop())
    part.stops[0].callback(None)
    assert starting[0].check(CancelledError)


def test_a_hurry_goes_on_with_the_next_part() -> None:
    """Cancelling the stop gives up the part that is waited for, and no other."""
    life, part = Lifecycle(Clock(), "test"), Part()
    life.add("last", part.stop)
    life.add("hanging", part.stop)
    task = Deferred.fromCoroutine(life.stop())
    task.cancel()
    assert len(part.stops) == 2
    part.stops[1].callback(None)
    assert task.called


class Root:
    """A process of nothing."""

    def __init__(self) -> None:
        self.failed: Deferred[None] = Deferred()
        self.events: list[str] = []

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")

    def facts(self) -> dict[str, object]:
        return {"fact": 1}

    def status_line(self) -> str:
        return "fine"

    @property
    def directory(self) -> Path | None:
        return None

    def progress(self) -> Deferred[None]:
        self.events.append("progress")
        return succeed(None)


def test_systemd_hears_of_it(socket_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(socket_directory / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(5.0)
        clock, root = Clock(), Root()
        task = Deferred.fromCoroutine(run(clock, root, "test", lambda: root.events.append("hello")))
        assert systemd.recv(1000) == b"READY=1\nSTATUS=fine"
        clock.advance(STATUS_INTERVAL_S)
        assert systemd.recv(1000) == b"STATUS=fine"
        task.cancel()
        assert systemd.recv(1000) == b"STOPPING=1"
    codes: list[int] = []
    _ = task.addCallback(codes.append)
    assert codes == [0]
    assert root.events == ["start", "hello", "stop"]
    assert clock.getDelayedCalls() == []


def test_systemd_hears_that_it_gets_on(
    socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(socket_directory / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(5.0)
        clock, root = Clock(), Root()
        task = Deferred.fromCoroutine(run(clock, root, "test"))
        assert systemd.recv(1000) == b"READY=1\nSTATUS=fine"
        clock.advance(1.0)
        assert systemd.recv(1000) == b"WATCHDOG=1"
        task.cancel()
        assert systemd.recv(1000) == b"STOPPING=1"
    assert root.events == ["start", "progress", "stop"]
    assert clock.getDelayedCalls() == []


def test_a_failure_is_raised_once_all_is_stopped() -> None:
    root = Root()
    outcome = begun(run(Clock(), root, "test"))
    root.failed.errback(Planted())
    assert outcome[0].check(Planted)
    assert root.events == ["start", "stop"]


def test_stopping_ends_before_whoever_started_us_kills() -> None:
    assert lifecycle.STOP_WITHIN_S < 9.0
