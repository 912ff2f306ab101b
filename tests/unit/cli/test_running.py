"""The runner: results, failures, Ctrl-C once and twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ReactorNotRunning
from twisted.internet.task import Clock

from tcprepl.cli import running
from tcprepl.cli.running import run_until_done
from tests.harness import environment


class FakeReactor(Clock):
    """Runs what it was given, then whatever the test does, until stopped."""

    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self.steps = list(steps)
        self.pending: list[Any] = []
        self.running = False

    def callWhenRunning(self, function: Any) -> None:
        """Call it in `run`."""
        self.pending.append((function, ()))

    def callFromThread(self, function: Any, *args: Any) -> None:
        """Call it in the next turn."""
        self.pending.append((function, args))

    def run(self) -> None:
        """Run until stopped, or until there is nothing left to do."""
        self.running = True
        while self.running:
            while self.pending:
                function, args = self.pending.pop(0)
                function(*args)
            if not self.steps:
                return
            self.steps.pop(0)()

    def stop(self) -> None:
        """Stop."""
        if not self.running:
            raise ReactorNotRunning
        self.running = False


def press(number: signal.Signals) -> Any:
    """Return a step that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


async def forever(reactor: Any) -> int:
    """Wait for the end."""
    await Deferred()
    return 5


def test_result_is_the_exit_code() -> None:
    """What the coroutine returns, at once or later."""

    async def main(reactor: Any) -> int:
        return 3

    assert run_until_done(main, FakeReactor(lambda: None)) == 3


def test_failures_are_raised() -> None:
    """The caller decides what they look like."""

    async def main(reactor: Any) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_until_done(main, FakeReactor(lambda: None))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels(number: signal.Signals) -> None:
    """Being ended by its user is no failure; the old handlers come back."""
    before = signal.getsignal(number)
    assert run_until_done(forever, FakeReactor(press(number), lambda: None, lambda: None)) == 0
    assert signal.getsignal(number) is before


def test_tidying_up_may_take_time_and_return_a_code() -> None:
    """A cancelled coroutine goes on to its end."""
    tidying: Deferred[None] = Deferred()

    async def main(reactor: Any) -> int:
        try:
            await Deferred()
        except CancelledError:
            await tidying
        return 4

    reactor = FakeReactor(press(signal.SIGINT), lambda: tidying.callback(None), lambda: None)
    assert run_until_done(main, reactor) == 4


def test_a_second_signal_does_not_wait() -> None:
    """Who insists is let go at once, whatever the tidying does."""

    async def main(reactor: Any) -> int:
        try:
            await Deferred()
        except CancelledError:
            await Deferred()
        return 0

    ends: list[int] = []
    steps = (press(signal.SIGINT), press(signal.SIGTERM), lambda: None)
    assert run_until_done(main, FakeReactor(*steps), end=ends.append) == 1
    assert ends == [1]


def test_hanging_up_is_heard_and_ends_nothing() -> None:
    """SIGHUP calls what it is to call, as often as it comes; without that it is left alone."""
    heard: list[bool] = []
    before = signal.getsignal(signal.SIGHUP)
    steps = (press(signal.SIGHUP), press(signal.SIGHUP), press(signal.SIGTERM), lambda: None)
    code = run_until_done(forever, FakeReactor(*steps), on_hangup=lambda: heard.append(True))
    assert (code, heard) == (0, [True, True])
    assert signal.getsignal(signal.SIGHUP) is before


def test_interrupted_while_connecting_is_a_good_end() -> None:
    """What an endpoint makes of a cancellation is one, too."""

    async def main(reactor: Any) -> int:
        try:
            await Deferred()
        except CancelledError:
            raise ConnectingCancelledError(None) from None
        return 5

    assert run_until_done(main, FakeReactor(press(signal.SIGINT), lambda: None)) == 0


def test_stopping_twice_is_fine() -> None:
    """A second signal may come when the reactor has stopped already."""
    reactor = FakeReactor(lambda: None)

    async def main(given: Any) -> int:
        given.running = False
        return 0

    assert run_until_done(main, reactor) == 0


def test_cancelled_by_itself_is_a_failure() -> None:
    """Only a signal makes a cancellation a good end."""

    async def main(reactor: Any) -> int:
        raise CancelledError

    with pytest.raises(CancelledError):
        run_until_done(main, FakeReactor(lambda: None))


def test_with_the_real_reactor() -> None:
    """In a process of its own."""
    code = (
        "import os, signal, sys\n"
        "from twisted.internet.task import deferLater\n"
        "from tcprepl.cli.running import run_until_done\n"
        "async def main(reactor):\n"
        "    reactor.callLater(0, os.kill, os.getpid(), signal.SIGINT)\n"
        "    try:\n"
        "        await deferLater(reactor, 60)\n"
        "    finally:\n"
        "        await deferLater(reactor, 0.01)\n"
        "        print('tidy')\n"
        "sys.exit(run_until_done(main))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "tidy\n", "")


def test_who_does_not_end_when_asked_to_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it hangs: the limit is watched from beside the reactor."""
    monkeypatch.setattr(running, "END_WITHIN_S", 0.01)
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    async def main(reactor: Any) -> int:
        with contextlib.suppress(CancelledError):
            await Deferred()
        await Deferred()
        return 5

    steps = (press(signal.SIGTERM), lambda: None, lambda: ended.wait(10))
    run_until_done(main, FakeReactor(*steps), end=end)
    assert codes == [1]


def test_who_is_overdue_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    ends: list[int] = []
    running._end_overdue(ends.append)
    assert ends == [1]
    assert "not everything could be stopped within 9 s" in capfd.readouterr().err
