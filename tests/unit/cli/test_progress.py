"""How far something is: on a terminal a line that goes away, elsewhere nothing."""

from __future__ import annotations

import io

import pytest

from tcprepl.cli import progress
from tcprepl.cli.progress import Progress


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, set by the test."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_done_rate_and_left(clock: list[float]) -> None:
    screen = Screen()
    with Progress("rows", 4_000, screen) as told:
        told.add(500)
        assert screen.getvalue() == ""  # not so soon
        clock[0] += 1.0
        told.add(500)
    assert screen.getvalue() == ("\r\x1b[K1,000 of 4,000 rows, 25 %, 1,000/s, 3.0 s left\r\r\x1b[K")


def test_the_rate_is_that_of_the_last_seconds(clock: list[float]) -> None:
    screen = Screen()
    told = Progress("rows", None, screen)
    for _ in range(20):
        clock[0] += 1.0
        told.add(1_000)
    for _ in range(20):
        clock[0] += 1.0
        told.add(10)
    assert screen.getvalue().endswith("20,200 rows, 10/s\r")


def test_bytes_are_shown_as_sizes(clock: list[float]) -> None:
    screen = Screen()
    told = Progress("bytes", 10_000_000, screen)
    clock[0] += 2.0
    told.at(5_000_000)
    assert "5.0 MB of 10.0 MB, 50 %, 2.5 MB/s, 2.0 s left" in screen.getvalue()
    clock[0] += 2.0
    told.at(10_000_000)
    assert screen.getvalue().endswith("10.0 MB of 10.0 MB, 100 %, 2.5 MB/s\r")


def test_nothing_goes_into_a_pipe(clock: list[float]) -> None:
    pipe = io.StringIO()
    with Progress("rows", 10, pipe) as told:
        clock[0] += 10.0
        told.add(5)
    assert pipe.getvalue() == ""
    assert told.done == 5


def test_a_narrow_terminal_and_one_that_is_gone(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    screen = Screen()
    with Progress("rows", 10, screen) as told:
        clock[0] += 10.0
        told.add(5)
        assert screen.getvalue() == "\r\x1b[K5 of 10 row\r"
        screen.close()
        clock[0] += 10.0
        told.add(5)


def test_parts_have_a_rate_each(clock: list[float]) -> None:
    screen = Screen()
    told = Progress("rows", None, screen)
    told.begin("copying", 100, 40)
    clock[0] += 1.0
    told.at(60)
    assert "copying: 60 of 100 rows, 60 %, 20/s, 2.0 s left" in screen.getvalue()
    told.begin("comparing", 100)
    clock[0] += 1.0
    told.at(50)
    assert "comparing: 50 of 100 rows, 50 %, 50/s, 1.0 s left" in screen.getvalue()


def test_not_where_rows_are_printed(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    for on_screen in (True, False):
        monkeypatch.setattr(progress.sys.stdout, "isatty", lambda shown=on_screen: shown)
        screen = Screen()
        with Progress("rows", None, screen, beside_rows=True) as told:
            clock[0] += 1.0
            told.add(1)
        assert bool(screen.getvalue()) is not on_screen
