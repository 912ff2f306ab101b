"""``tcprepl top``: the picture, its order, and when it ends."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tcprepl.cli import run, top
from tcprepl.cli.api import ApiFailed


def peer(name: str, seconds: float, rows: int) -> dict[str, Any]:
    """Return a peer as the status has it."""
    return {
        "conn_id": 1,
        "name": name,
        "address": "1.2.3.4:5",
        "dialect": "tcprepl",
        "state": "behind" if rows else "head",
        "behind_rows": rows,
        "behind_bytes": rows * 100,
        "behind_seconds": seconds,
        "paused_seconds": 0.0,
        "sent_bytes": 7,
    }


STATUS = {
    "server_name": "example.com",
    "instance": "master",
    "uptime_seconds": 12.3,
    "peers": [peer("b", 0.0, 0), peer("", 4.25, 10)],
    "streams": [
        {"stream": "typing", "instance": "master", "position": 4, "floor": 1, "rows": 3},
        {"stream": "events", "instance": "master", "position": 0, "floor": 0, "rows": 0},
    ],
}


def answers(monkeypatch: pytest.MonkeyPatch, *results: Any) -> None:
    """Make HTTP answer one after the other."""
    queue = list(results)

    def get(self: Any, path: str) -> Any:
        result = queue.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(top.Api, "get", get)


def test_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of peers, the one most behind first, and of streams that have rows."""
    answers(monkeypatch, STATUS)
    assert run(["top", "--once"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "example.com master  up 12 s  2 peers",
        "PEER  ADDRESS    DIALECT  STATE   ROWS  BYTES  BEHIND  PAUSED  SENT",
        "-     1.2.3.4:5  tcprepl  behind  10    1000   4.2     0.0     7",
        "b     1.2.3.4:5  tcprepl  head    0     0      0.0     0.0     7",
        "",
        "STREAM  INSTANCE  POSITION  HELD FROM  ROWS",
        "typing  master    4         1          3",
    ]


def test_sorted_by_text() -> None:
    """Names come in the order of the alphabet."""
    lines = top.picture(STATUS, "peer").splitlines()
    assert lines[2].startswith("-")
    assert lines[3].startswith("b")


def test_a_name_is_shown_and_not_obeyed() -> None:
    """Whatever a peer calls itself, the picture stays one."""
    drawn = top.picture({**STATUS, "peers": [peer("a\x1b[2J\u202eb", 0, 0)]}, "rows")
    assert "a\\u001b[2J\\u202eb" in drawn
    assert "\x1b" not in drawn


def test_nobody() -> None:
    """A server without peers and rows has a short picture."""
    empty = {**STATUS, "peers": [peer("a", 0, 0)], "streams": []}
    assert top.picture(empty, "rows").splitlines()[0].endswith("1 peer")
    assert len(top.picture({**empty, "peers": []}, "rows").splitlines()) == 2


def test_again_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is away for a moment is said to be; Ctrl-C ends."""
    answers(monkeypatch, ApiFailed("away"), STATUS)
    waits: list[float] = []

    def wait(self: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(threading.Event, "wait", wait)
    assert run(["top", "--interval", "0.5"]) == 0
    assert waits == [0.5, 0.5]
    away, there = capsys.readouterr().out.split("\n\n")[:2]
    assert away == "away"
    assert there.startswith("example.com")


def test_once_and_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture that cannot be had is a failure."""
    answers(monkeypatch, ApiFailed("away"))
    assert run(["top", "--once"]) == 1


def test_processes_on_a_bus_are_shown_with_what_they_did() -> None:
    did = {"rows_in": 11, "rows_out": 2000, "reconnects": 3, "replays": 1}
    did |= {"cache_hits": 8, "cache_misses": 2}
    peers = [{**peer("w1", 0.0, 0), "process": did}, {**peer("", 0.0, 0), "process": None}]
    lines = top.picture({**STATUS, "peers": peers}, "behind").splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("PROCESS"))
    assert lines[head].split("  ")[0] == "PROCESS"
    assert lines[head + 1].split() == ["w1", "11", "2000", "3", "1", "8", "of", "10"]
    assert "PROCESS" not in top.picture(STATUS, "behind")


def test_who_holds_which_instance_of_a_database() -> None:
    held = {"epoch": 3, "holder": "host:12", "held_seconds": 60.0}
    database = {
        "where": "postgresql://db/x",
        "away_seconds": None,
        "reason": None,
        "holders": [
            {**held, "instance": "a", "left_seconds": 8.04},
            {**held, "instance": "b", "left_seconds": -1.0},
        ],
    }
    drawn = top.picture({**STATUS, "database": database}, "rows").splitlines()
    assert drawn[-4:] == [
        "postgresql://db/x  there",
        "INSTANCE  EPOCH  HOLDER   HELD  LEASE ENDS IN",
        "a         3      host:12  60 s  8.0 s",
        "b         3      host:12  60 s  over",
    ]
    away = {**database, "away_seconds": 7.0, "reason": "no route\x1b[2J"}
    drawn = top.picture({**STATUS, "database": away}, "rows").splitlines()
    assert drawn[-4].startswith("postgresql://db/x  away for 7 s: no route")
    assert "\x1b" not in drawn[-4]


def test_json_a_line_each_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status as it is; a server that is away ends it."""
    answers(monkeypatch, STATUS, STATUS, ApiFailed("away"))
    assert run(["top", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert run(["top", "--json", "--interval", "0.001"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_only_some_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, {**STATUS, "peers": [peer("ann", 0, 0), peer("bob", 0, 0)]})
    assert run(["top", "--once", "--filter", "BO"]) == 0
    drawn = capsys.readouterr().out
    assert "bob" in drawn
    assert "ann" not in drawn


class Terminal:
    """Stands for the screen: keys come as the test has them, once there is a picture."""

    def __init__(self, keys: list[str]) -> None:
        self.drawn: list[str] = []
        self.size = (80, 24)
        self.told_of_trouble = threading.Event()
        self._keys = keys
        self._woken = threading.Event()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def wake(self) -> None:
        """Let `keys` return."""
        self._woken.set()

    def draw(self, lines: Any) -> None:
        """Keep the text."""
        self.drawn.append("\n".join("".join(span.text for span in line) for line in lines))
        if "away" in self.drawn[-1]:
            self.told_of_trouble.set()

    def keys(self, timeout_s: float) -> list[str]:
        """Wait for a picture, then press the next key."""
        if "example.com" not in self.drawn[-1]:
            self._woken.wait(timeout_s)
            self._woken.clear()
            return []
        key = self._keys.pop(0)
        if key == "ctrl-c":
            raise KeyboardInterrupt
        return [key]


@pytest.mark.parametrize("last", ["q", "ctrl-c"])
def test_at_a_terminal_it_is_walked_about_in(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """What is looked for comes from a thread, and what goes wrong there is shown."""
    terminal = Terminal(["down", "enter", last])
    monkeypatch.setattr(top.screen, "is_interactive", lambda: True)
    monkeypatch.setattr(top.screen, "Screen", lambda: terminal)
    found = [ApiFailed("away"), {**STATUS, "peers": [{**peer("b", 0, 0), "conn_id": 7}]}]

    def get(*_: Any) -> Any:
        result = found.pop(0) if len(found) > 1 else found[0]
        if result is found[0]:
            assert terminal.told_of_trouble.wait(60.0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(top.Api, "get", get)
    assert run(["top", "--interval", "0.001"]) == 0
    assert "has everything" in terminal.drawn[-1]
