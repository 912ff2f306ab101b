"""Log lines of a library: on nobody's stdout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import tcprepl
from tcprepl.logger import get_logger, is_debugging
from tests.harness import environment


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Nobody has configured structlog."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


def test_who_has_not_configured_structlog_gets_warnings_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = get_logger("tcprepl.here")
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log.bind(n=1), level)(f"event.{level}")
    try:
        raise ValueError("planted")
    except ValueError:
        log.exception("event.exception")
    out, err = capsys.readouterr()
    assert out == ""
    assert "event.debug" not in err
    assert "event.info" not in err
    for told in ("event.warning", "event.error", "event.critical", "event.exception", "planted"):
        assert told in err


def test_who_has_configured_it_gets_everything_as_he_says() -> None:
    """Also when he does so later, and by the name of the module."""
    log = get_logger("tcprepl.here")
    names: list[object] = []

    def factory(*args: object) -> structlog.testing.CapturingLogger:
        names.extend(args)
        return logger

    logger = structlog.testing.CapturingLogger()
    structlog.configure(logger_factory=factory, processors=[])
    log.info("event")
    assert [(call.method_name, call.kwargs) for call in logger.calls] == [
        ("info", {"event": "event"})
    ]
    assert names == ["tcprepl.here"]


def test_every_module_takes_its_logger_from_here() -> None:
    asking = [
        str(path)
        for path in Path(tcprepl.__file__).parent.rglob("*.py")
        if "structlog.get_logger" in path.read_text(encoding="utf-8")
    ]
    assert asking == []


def test_a_program_that_uses_the_library_keeps_its_stdout() -> None:
    """What fails in the background is told, and not where rows go."""
    program = (
        "from tcprepl.background import run_in_background\n"
        "def work(): raise ValueError('planted')\n"
        "run_in_background(work)\n"
        "print('row')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert done.stdout == "row\n"
    assert "planted" in done.stderr


def test_who_asks_whether_debugging_lines_are_told() -> None:
    assert is_debugging()  # structlog's own default tells everything
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    assert not is_debugging()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("debug"))
    assert is_debugging()
