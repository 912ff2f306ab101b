"""``twist tcprepl``: options as those of serve, and a service that starts and stops a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.defer import Deferred
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from tcprepl.cli import twist
from tcprepl.cli.serve import command
from tcprepl.errors import LogUnavailable


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twist.logs, "configure", lambda *_: None)


def service_of(*words: str) -> twist.ServerService:
    """Return the service that a command line makes."""
    options = twist.Options()
    options.parseOptions(list(words))
    made = twist.makeService(options)
    assert isinstance(made, twist.ServerService)
    return made


def test_every_option_of_serve_is_one() -> None:
    names = {option.opts[0].removeprefix("--") for option in command.params}
    assert {name.rstrip("=") for name in twist.Options().longOpt} - {"help", "version"} == names


def test_options_make_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "tcprepl.yaml"
    config.write_text("server_name: a.example\ninstance: w1\n", encoding="utf-8")
    made = service_of("--config", str(config), "--server-name", "b.example", "--data", "none")
    settings = made.server.config
    assert (settings.server_name, settings.instance) == ("b.example", "w1")
    assert not service_of().server.config.standby


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--listen", "nonsense"], "nonsense"),
        (["--config", "/no/such/file"], "/no/such/file"),
        (["--server-name", "a b"], "server_name"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        service_of(*words)


class FakeServer:
    """A server that starts and fails when it is told to."""

    def __init__(self) -> None:
        self.starting: Deferred[None] = Deferred()
        self.failed: Deferred[None] = Deferred()
        self.stopped = 0

    async def start(self) -> None:
        await self.starting

    async def stop(self) -> None:
        self.stopped += 1


class FakeReactor:
    """Counts what it is asked for."""

    stops = 0

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        """Call it: it runs."""
        call()

    def stop(self) -> None:
        """Note it."""
        self.stops += 1


@pytest.mark.parametrize("when", ["starting", "running", "stopped"])
def test_a_server_that_fails_ends_the_process(when: str) -> None:
    """Unless it is to end anyway."""
    server: Any = FakeServer()
    reactor: Any = FakeReactor()
    made = twist.ServerService(reactor, server)
    made.startService()
    if when == "starting":
        server.starting.errback(LogUnavailable("in use"))
    else:
        server.starting.callback(None)
        if when == "stopped":
            assert made.stopService().called
        server.failed.errback(LogUnavailable("gone"))
    assert reactor.stops == (when != "stopped")
    assert server.stopped == (when == "stopped")


def test_twisted_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tcprepl" in {maker.tapname for maker in getPlugins(IServiceMaker)}
