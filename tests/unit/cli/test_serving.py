"""A process that serves: welcomed, reloaded, stopped."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from tcprepl.cli import running
from tcprepl.cli.serving import run_process
from tcprepl.config import build
from tcprepl.settings import Config
from tests.unit.cli.test_running import FakeReactor, press


class Root:
    """A process that notes what happens to it, and stops the reactor's steps by itself."""

    reloads = frozenset({"log"})

    def __init__(self) -> None:
        self.config = build({}, "test").config
        self.failed: Deferred[None] = Deferred()
        self.events: list[str] = []

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")

    def facts(self) -> dict[str, object]:
        return {}

    directory = None

    def status_line(self) -> str:
        return ""

    def progress(self) -> Deferred[None]:
        return succeed(None)

    def reload(self, config: Config) -> Any:
        self.events.append("reload")
        return lambda: None


def test_a_process_is_welcomed_reloaded_and_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (press(signal.SIGHUP), press(signal.SIGTERM), lambda: None)
    monkeypatch.setattr(running, "_installed_reactor", lambda: FakeReactor(*steps))
    root = Root()
    assert run_process(lambda _: root, "test", lambda _: "hello\n", None) == 0
    assert root.events == ["start", "reload", "stop"]
    assert capsys.readouterr().out == "hello\n"
