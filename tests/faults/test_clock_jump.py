"""A wall clock that is set back an hour, or ahead thirty days, under a real server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.harness import Lines, Server

#: What Python runs when it starts: the wall clock, set by a file as an administrator would.
SITECUSTOMIZE = """
import os, time

_time, _path = time.time, os.environ["SET_CLOCK"]

def _shown():
    with open(_path) as file:
        return _time() + float(file.read())

time.time = _shown
time.time_ns = lambda: int(_shown() * 1e9)
"""
HOUR_S = 3_600.0
DAY_S = 86_400.0
TYPING = "/_matrix/client/v3/rooms/%21r%3Aexample.com/typing/%40a%3Aexample.com"


class WallClock:
    """The wall clock of the processes that are started while it exists."""

    def __init__(self, where: Path) -> None:
        self._path = where / "clock"
        self.set(0.0)

    def set(self, ahead_s: float) -> None:
        """Set it, in one step."""
        new = self._path.with_suffix(".new")
        new.write_text(str(ahead_s))
        new.rename(self._path)


@pytest.fixture
def wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """Return the clock of the processes to come."""
    where = tmp_path / "site"
    where.mkdir()
    (where / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = [str(where), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("SET_CLOCK", str(where / "clock"))
    return WallClock(where)


@pytest.mark.parametrize("ahead_s", [-HOUR_S, 30 * DAY_S])
def test_nothing_waits_and_nothing_hurries(wall: WallClock, tmp_path: Path, ahead_s: float) -> None:
    """Typing ends when it is due, pings come, and they say the time of day."""
    with Server(tmp_path) as server, Lines(server.port) as person:
        person.send("REPLICATE typing * NOW\n")
        person.expect("POSITION typing")
        server.request("PUT", TYPING, {"typing": True, "timeout": 14_000})
        began = time.monotonic()
        assert '["!r:example.com",["@a:example.com"]]' in person.expect("RDATA typing")
        wall.set(ahead_s)
        said = int(person.expect("PING").split()[1]) / 1000
        assert said - time.time() == pytest.approx(ahead_s, abs=60)
        assert '["!r:example.com",[]]' in person.expect("RDATA typing")
        assert 11 < time.monotonic() - began < 31
        person.expect("PING")


def test_who_lags_keeps_the_rows(wall: WallClock, tmp_path: Path) -> None:
    """Neither a jump of thirty days nor a start with such a clock is thirty days."""

    def held() -> list[str]:
        with Lines(server.port) as reader:
            reader.send("REPLICATE device_lists * 0\n")
            reader.expect("POSITION device_lists")
            rows = []
            while not (line := reader.expect("")).startswith("POSITION device_lists"):
                rows += [line] if line.startswith("RDATA") else []
            return rows

    with Server(tmp_path) as server:
        for day, ahead_s in enumerate((0.0, 30 * DAY_S, 90 * DAY_S, -HOUR_S, 0.0)):
            wall.set(ahead_s)
            for number in range(3):
                server.publish("device_lists", [f"@{day}-{number}-running:example.com"])
            server.process.kill()
            server.start()
            server.publish("device_lists", [f"@{day}-restarted:example.com"])
            assert len(held()) == 4 * (day + 1)
