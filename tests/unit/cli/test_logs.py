"""Logs: forms, levels, and Twisted's events among ours."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pytest
import structlog
from twisted.logger import LogLevel, globalLogBeginner
from twisted.python.failure import Failure

from tcprepl.cli import logs


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the process's logging as it was."""
    before = structlog.get_config()
    monkeypatch.setattr(globalLogBeginner, "beginLoggingTo", lambda *args, **kwargs: None)
    monkeypatch.setattr("logging.basicConfig", lambda **kwargs: None)
    yield
    structlog.configure(**before)


def fail() -> Failure:
    """Return a failure with a traceback."""
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        return Failure()


def test_logfmt_where_there_is_no_terminal() -> None:
    """One line an event, time and level first."""
    out = io.StringIO()
    logs.configure("info", "auto", out)
    structlog.get_logger().info("replication.peer.closed", conn_id=1, reason="shut down")
    structlog.get_logger().debug("not.shown")
    (line,) = out.getvalue().splitlines()
    assert line.startswith("timestamp=")
    assert 'level=info event=replication.peer.closed conn_id=1 reason="shut down"' in line


def test_json() -> None:
    """One object an event, with the traceback as text."""
    out = io.StringIO()
    logs.configure("debug", "json", out)
    structlog.get_logger().error("it.failed", exc_info=fail().value)
    found = json.loads(out.getvalue())
    assert found["event"] == "it.failed"
    assert "ZeroDivisionError: by zero" in found["exception"]


def test_console_on_a_terminal() -> None:
    """For eyes."""
    out = Terminal()
    logs.configure("info", "auto", out)
    structlog.get_logger().warning("look")
    assert "look" in out.getvalue()
    assert "timestamp=" not in out.getvalue()


EVIL = "w1\x1b]0;owned\x07\x9b2J\u202e\ud800"


@pytest.mark.parametrize("form", ["logfmt", "console", "json"])
def test_what_peers_send_is_shown_and_not_obeyed(form: str) -> None:
    """In a value, in the event, in a list, in the text of an exception."""
    out = Terminal() if form == "console" else io.StringIO()
    logs.configure("info", form, out)
    structlog.get_logger().info(
        "peer.named", name=EVIL, names=[EVIL], raw=EVIL.encode("utf-8", "replace")
    )
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        structlog.get_logger().error("it.failed", exc_info=error)
    said = out.getvalue()
    if form == "console":
        said = re.sub("\x1b\\[[0-9;]*m", "", said)  # its own colours
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", said)
    assert "owned" in said
    said.encode()


def test_events_of_twisted() -> None:
    """Failures are errors, warnings are warnings, chatter is for debugging."""
    out = io.StringIO()
    logs.configure("debug", "logfmt", out)
    logs.forward_twisted_event({"log_failure": fail(), "log_namespace": "n"})
    logs.forward_twisted_event({"log_format": "hello {who}", "who": "you"})
    logs.forward_twisted_event({"log_format": "hello {missing}", "log_level": LogLevel.warn})
    logs.forward_twisted_event({"format": "old %(style)s", "style": "way"})
    logs.forward_twisted_event({"log_text": "ready made"})
    first, second, third, fourth, fifth = out.getvalue().splitlines()
    assert "level=error event=twisted.failure" in first
    assert "ZeroDivisionError" in first
    assert 'level=debug event=twisted.message namespace= text="hello you"' in second
    assert "level=warning" in third
    assert "hello {missing}" in third
    assert 'text="old way"' in fourth
    assert 'text="ready made"' in fifth


def test_a_full_disk_does_not_stop_the_work() -> None:
    """What cannot be logged is lost, and that is all."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    logs.configure("info", "logfmt", Full())
    structlog.get_logger().error("nobody.hears.this")


def test_at_the_end_only_warnings_are_shown() -> None:
    """A farewell is not news."""
    out = io.StringIO()
    logs.configure("debug", "logfmt", out)
    logs.only_warnings()
    structlog.get_logger().info("replication.client.disconnected")
    structlog.get_logger().warning("something.else")
    assert "something.else" in out.getvalue()
    assert "disconnected" not in out.getvalue()


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color(value: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours on a terminal only, and not for whoever wants none (no-color.org)."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    out = Terminal()
    logs.configure("info", "auto", out)
    structlog.get_logger().info("event")
    assert ("\x1b[" in out.getvalue()) is coloured
