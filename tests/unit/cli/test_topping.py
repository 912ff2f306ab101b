"""What ``top`` shows and what its keys do, without a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli.screen import cut, rendered, width_of
from tcprepl.cli.topping import COLUMNS, HELP, Top


def peer(name: str, number: int, seconds: float = 0.0, **other: Any) -> dict[str, Any]:
    """Return a peer as the status has it."""
    return {
        "conn_id": number,
        "name": name,
        "address": f"10.0.0.{number}:5",
        "dialect": "tcprepl",
        "state": "behind" if seconds else "head",
        "behind_rows": int(seconds * 10),
        "behind_bytes": int(seconds * 1_000),
        "behind_seconds": seconds,
        "behind_stream": "typing" if seconds else None,
        "paused_seconds": 0.0,
        "buffered_bytes": 0,
        "sent_bytes": 5_000,
        "gaps": 0,
        "connected_seconds": 61.0,
        "acked": None,
        "process": None,
        **other,
    }


def stream(name: str, rate: float = 0.0, **other: Any) -> dict[str, Any]:
    """Return a stream as the status has it."""
    return {
        "stream": name,
        "instance": "master",
        "position": 7,
        "floor": 1,
        "rows": 6,
        "bytes": 600,
        "rows_per_second": rate,
        **other,
    }


def status(*peers: dict[str, Any], at: float = 10.0, **other: Any) -> dict[str, Any]:
    """Return a status."""
    return {
        "server_name": "example.com",
        "instance": "master",
        "uptime_seconds": at,
        "rows_per_second": 1_234.0,
        "ready": True,
        "peers": list(peers),
        "streams": [stream("typing", 12.0), stream("events", position=0)],
        **other,
    }


def shown(top: Top, width: int = 100, height: int = 30) -> list[str]:
    """Return the picture as text."""
    return ["".join(span.text for span in line).rstrip() for line in top.lines(width, height)]


def press(top: Top, *keys: str) -> Top:
    """Press keys."""
    for key in keys:
        top.press(key)
    return top


@pytest.fixture
def top() -> Top:
    """Three peers, one of them late."""
    made = Top()
    made.see(status(peer("ann", 1), peer("bob", 2, 90.0), peer("cy", 3, 2.0)))
    return made


def test_the_head_says_who_is_late_and_how_fast_it_goes(top: Top) -> None:
    head = shown(top)[0]
    assert head == "example.com master  up 10 s  3 peers  1 234 rows/s  2 late, bob by 90.0 s"
    assert [span.style for span in top.lines(100, 30)[0]][-1] == "bad"
    top.see(status(peer("ann", 1), ready=False, reason="no room"))
    assert shown(top)[0].endswith("1 peer  1 234 rows/s  nobody is late  not ready: no room")
    links = [{"up": up, "kind": "upstream", "name": f"h:{up:d}"} for up in (True, False)]
    top.see(status(links=links, damage=["typing of master"]))
    assert shown(top)[0].endswith(
        "  upstream h:0 is away  damaged: `tcprepl log verify` on a copy says what"
    )


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (80, "matrix.example.com master  1 peer  1 late, tcprepl-tail by 1.9 s"),
        (60, "matrix.example.com master  1 late, tcprepl-tail by 1.9 s"),
        (50, "matrix.example.com…  1 late, tcprepl-tail by 1.9 s"),
        (29, "1 late, tcprepl-tail by 1.9 s"),
        (24, "1 late, tcprep… by 1.9 s"),
        (18, "1 late by 1.9 s"),
        (6, "1.9 s"),
    ],
)
def test_how_late_somebody_is_stands_in_the_narrowest_head(width: int, head: str) -> None:
    """Half of a number would be another number: whatever else there is goes first."""
    top = Top()
    late = peer("tcprepl-tail", 1, 1.9)
    top.see(
        status(late, server_name="matrix.example.com", at=93_784.0, rows_per_second=1_234_567.0)
    )
    assert shown(top, width)[0] == head


@given(
    st.text("a名\u0301 .", max_size=90),
    st.text("b名\u0301 .", min_size=1, max_size=90),
    st.integers(9, 120),
    st.booleans(),
)
def test_no_name_takes_the_room_of_a_lag(server: str, name: str, width: int, ready: bool) -> None:
    top = Top()
    top.see(status(peer(name, 1, 98_765.4), server_name=server, ready=ready, reason="no room"))
    assert " 98765.4 s" in f" {rendered(top.lines(width, 5)[0], width, colours=False)}"


def test_uptime_and_rates_give_way_to_what_is_wrong(top: Top) -> None:
    top.see(status(peer("ann", 1), ready=False, reason="no room"))
    wrong = "nobody is late  not ready: no room"
    assert shown(top, 64)[0] == f"example.com master  1 peer  {wrong}"
    assert shown(top, 60)[0] == f"example.com master  {wrong}"


def test_peers_come_from_the_latest_and_streams_below(top: Top) -> None:
    lines = shown(top)
    assert lines[1].split()[:3] == ["PEER", "ADDRESS", "DIALECT"]
    assert [line.split()[0] for line in lines[2:5]] == ["bob", "cy", "ann"]
    assert [line[:6] for line in lines if line.startswith(("STREAM", "typing", "events"))] == [
        "STREAM",
        "typing",
    ]
    styles = [line[0].style for line in top.lines(100, 30)[2:5]]
    assert styles == ["selected", "late", ""]


@pytest.mark.parametrize(
    ("width", "peers", "streams"),
    [
        (100, "PEER ADDRESS DIALECT STATE BEHIND ROWS BYTES SENT/S PAUSED", 6),
        (70, "PEER ADDRESS STATE BEHIND ROWS BYTES SENT/S", 6),
        (50, "PEER STATE BEHIND ROWS BYTES", 5),
        (30, "PEER BEHIND ROWS", 3),
        (17, "PEER BEHIND", 2),
        (12, "BEHIND", 1),
        (9, "BEHIND", 1),
    ],
)
def test_a_column_that_does_not_fit_is_left_out(width: int, peers: str, streams: int) -> None:
    """Half of a number would be another number."""
    top = Top()
    top.see(status(peer("worker", 1, 98_765.0)))
    lines = shown(top, width)
    assert lines[1].split() == peers.split()
    assert ("987 650" in lines[2]) is ("ROWS" in lines[1])
    assert len(lines[4].replace("HELD FROM", "FLOOR").split()) == streams


def test_rates_are_those_between_two_looks(top: Top) -> None:
    later = status(peer("bob", 2, 90.0, sent_bytes=9_000), peer("new", 9), at=12.0)
    later["streams"][0]["bytes"] = 4_600
    top.see(later)
    lines = shown(top)
    assert "2.0 kB" in lines[2]
    assert lines[3].split()[0] == "new"
    assert any("2.0 kB" in line for line in lines if line.startswith("typing"))


def test_sorting(top: Top) -> None:
    assert shown(press(top, "s"))[-1].startswith(" q end   ? help   s sort: rows")
    press(top, "S", "r")
    assert [line.split()[0] for line in shown(top)[2:5]] == ["ann", "cy", "bob"]
    assert "(reversed)" in shown(top)[-1]
    for _ in COLUMNS:
        press(top, "s")
        assert len(top.peers()) == 3


def test_a_filter_is_typed(top: Top) -> None:
    press(top, "/", "O", "x", "backspace", "B")
    assert "only with: OB_" in shown(top)[-1]
    assert [line.split()[0] for line in shown(top)[2:3]] == ["bob"]
    press(top, "left", "enter")
    assert "/ only: OB" in shown(top)[-1]
    press(top, "/", "escape")
    assert len(top.peers()) == 3
    press(top, "/", "q", "enter")
    assert not top.over
    assert top.peers() == []
    press(top, "enter")  # there is nobody
    assert "PEER" in shown(top)[1]


def test_choosing_and_looking_closer(top: Top) -> None:
    lines = shown(press(top, "down", "enter"))
    assert lines[1].split() == ["peer", "cy"]
    assert "behind by 2.0 s in typing: it is being served from the log" in "\n".join(lines)
    assert any(line.startswith("lag in seconds, at most 2.0") for line in lines)
    assert "Esc back" in lines[-1]
    press(top, "down")  # nothing to choose here
    top.see(status(peer("cy", 3, 2.0, buffered_bytes=9, acked=4, process={
        "rows_in": 1, "rows_out": 2, "reconnects": 3})))  # fmt: skip
    text = "\n".join(shown(top))
    assert "its socket takes no more" in text
    assert "federation up to 4" in text
    assert "wrote 1 row, got 2, 3 reconnects" in text
    top.see(status(peer("", 3, state="closing")))
    assert "(no name)" in "\n".join(shown(top))
    assert "closing" in "\n".join(shown(top))
    top.see(status(peer("", 3)))
    assert "has everything" in "\n".join(shown(top))
    top.see(status())
    assert "connection 3 has ended" in shown(top)[1]
    assert "PEER" in shown(press(top, "escape"))[1]


def test_looking_at_a_stream(top: Top) -> None:
    lines = shown(press(top, "tab", "enter"))
    assert lines[1] == "typing"
    assert "behind in it: bob by 90.0 s, cy by 2.0 s" in lines
    assert any(line.startswith("rows a second, at most 12.0") for line in lines)
    quiet = status()
    quiet["streams"] = [stream("typing")]
    still = Top()
    still.see(quiet)
    assert "rows a second: 0 in the last 1 looks" in shown(press(still, "tab", "right"))
    assert "Tab peers" in shown(press(still, "left"))[-1]


def figures(lines: list[str]) -> set[str]:
    """Return the figures in a picture: 98765.4, 1 234 567, 10.0.0.1:5."""
    text = "  ".join(lines)
    return set(re.findall(r"(?<![\w…])[0-9]+(?:[.:][0-9]+| [0-9]{3})*(?![\w])", text))


def crowded() -> Top:
    """Return a top with long names and large figures."""
    top = Top()
    late = [peer(f"a reader of a long name {letter}", 987, 98_765.4) for letter in "xyz"]
    late[1] |= {"conn_id": 654, "behind_seconds": 87_654.3, "acked": 7_654_321}
    large = {"position": 7_654_321, "floor": 1_234_567, "rows": 6_543_210, "bytes": 987_654_321}
    at = status(*late, at=98_765.0)
    at["streams"] = [stream("typing", 4_321.0, **large), stream("receipts", 3.0, **large)]
    top.see(at)
    return top


@pytest.mark.parametrize("keys", [(), ("enter",), ("tab", "enter"), ("tab",)])
def test_no_figure_is_cut_however_narrow_it_is(keys: tuple[str, ...]) -> None:
    """Neither in the lists nor in a closer look, and how late somebody is stands there."""
    top = press(crowded(), *keys)
    whole = figures(shown(top, 300, 40))
    for width in range(9, 120):
        lines = [cut(line, width) for line in shown(top, width, 40)]
        assert figures(lines[:-1]) <= whole, width
        if keys:
            assert any("98765.4 s" in line for line in lines[1:]) or keys == ("tab",), width


def test_each_late_reader_of_a_stream_is_told_whole() -> None:
    top = press(crowded(), "tab", "enter")
    lines = shown(top, 40, 40)
    at = lines.index("behind in it:")
    assert lines[at + 1 : at + 4] == [
        "a reader of a long name x by 98765.4 s,",
        "a reader of a long name z by 98765.4 s,",
        "a reader of a long name y by 87654.3 s",
    ]
    at = shown(top, 20, 40).index("behind in it:")
    assert shown(top, 20, 40)[at + 1] == "a rea… by 98765.4 s,"
    assert "98765.4 s" in shown(top, 9, 40)


def test_a_pause_keeps_the_picture(top: Top) -> None:
    press(top, "p")
    top.see(status())
    assert len(top.peers()) == 3
    assert "PAUSED" in shown(top)[-1]
    press(top, " ")
    top.see(status())
    assert top.peers() == []


def test_help_and_the_end(top: Top) -> None:
    lines = shown(press(top, "?"))
    assert all(any(text in line for line in lines) for _, text in HELP)
    assert "PEER" in shown(press(top, "x"))[1]
    assert press(top, "q").over


def test_a_server_that_is_away(top: Top) -> None:
    """What was seen last stays; why there is nothing newer is told."""
    top.see("http://x does not answer: \x1b[2J")
    assert shown(top)[0] == "http://x does not answer: \\u001b[2J"
    assert len(top.peers()) == 3
    fresh = Top()
    assert shown(fresh)[1] == "looking ..."
    assert fresh.peers() == fresh.streams() == []
    fresh.see("away")
    assert shown(fresh)[1] == "no answer yet"


def test_what_peers_call_themselves_is_not_obeyed(top: Top) -> None:
    top.see(status(peer("a\x1b[2J\u202eb", 1, 3.0)))
    for keys in ((), ("enter",)):
        assert "\x1b" not in "\n".join(shown(press(top, *keys)))


def test_many_peers_are_scrolled_through(top: Top) -> None:
    top.see(status(*(peer(f"p{n:03}", n) for n in range(1, 1_001))))
    press(top, "s", "S")
    assert " of 1000" in shown(top, height=26)[1]
    press(top, "end")
    assert any(line.startswith("p1000") for line in shown(top, height=26))
    press(top, "page up", "up", "home")
    assert shown(top, height=26)[2].startswith("p001")
    press(top, "page down", "j", "k")
    assert shown(top, height=26)[2].startswith("p0")


KEYS = ["up", "down", "page down", "end", "home", "enter", "escape", "tab", "s", "r", "/", "p", "?"]


@given(
    st.lists(st.sampled_from([*KEYS, "a", "backspace"]), max_size=12),
    st.integers(1, 200),
    st.integers(1, 60),
    st.integers(0, 80),
)
def test_any_walk_fits_any_terminal(keys: list[str], width: int, height: int, peers: int) -> None:
    """As many lines as there are rows, whatever was pressed, and they can be cut to the width."""
    top = Top()
    top.see(status(*(peer(f"名{n}", n, float(n % 3)) for n in range(peers))))
    press(top, *keys)
    lines = top.lines(width, height)
    assert len(lines) == min(height, max(2, height))
    assert sum(map(width_of, "".join(span.text for span in lines[-1]))) == width or height == 1
