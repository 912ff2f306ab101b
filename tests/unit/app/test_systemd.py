"""What systemd is told, and what it hands over."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tcprepl.app.systemd import sd_notify, sockets_passed


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


def test_sockets_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that were meant for this process count."""
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert sockets_passed() == 0
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    for value, count in (("2", 2), ("", 0), ("x", 0)):
        monkeypatch.setenv("LISTEN_FDS", value)
        assert sockets_passed() == count
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "2")
    assert sockets_passed() == 0
