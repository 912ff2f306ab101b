"""What systemd is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import structlog
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tcprepl.app.systemd import Watchdog, sd_notify, watchdog_interval_s


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listening, a path, an abstract name, a socket that has gone."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not sd_notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0tcprepl-test-notify-" + tmp_path.name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@tcprepl-test-notify-" + tmp_path.name)
        assert sd_notify("READY=1", "STATUS=fine")
        assert systemd.recv(100) == b"READY=1\nSTATUS=fine"


def test_the_watchdog_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ours, and only if there is one."""
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    for usec, expected in (("30000000", 30.0), ("", None), ("0", None), ("soon", None)):
        monkeypatch.setenv("WATCHDOG_USEC", usec)
        assert watchdog_interval_s() == expected
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval_s() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_silence_while_nothing_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reactor that turns is not enough; a refusal is."""
    name = "tcprepl-test-watchdog-" + tmp_path.name
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    clock = Clock()
    answers: list[Deferred[None]] = [succeed(None), fail(OSError("disk full"))]
    waiting: Deferred[None] = Deferred()
    answers.append(waiting)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.setblocking(False)

        def heard() -> int:
            count = 0
            while True:
                try:
                    assert systemd.recv(100) == b"WATCHDOG=1"
                except BlockingIOError:
                    return count
                count += 1

        looping = Watchdog(
            clock, 30.0, lambda: answers.pop(0) if answers else succeed(None)
        ).start()
        told = []
        with structlog.testing.capture_logs() as logs:
            for _ in range(7):
                clock.advance(10.0)
                told.append(heard())
        assert told == [1, 1, 1, 0, 0, 0, 0]
        assert [entry["event"] for entry in logs] == ["watchdog.held_up"]
        waiting.callback(None)
        with structlog.testing.capture_logs() as logs:
            clock.advance(10.0)
        assert heard() == 1
        assert [entry["event"] for entry in logs] == ["watchdog.getting_on"]
        _ = looping.stop()
    assert clock.getDelayedCalls() == []
