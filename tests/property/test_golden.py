"""What four generations of real mains wrote means the same however it is cut and copied.

The captures under ``tests/data`` were made by real processes (`tests.interop.golden`), so
that this covers the peers where none of them is installed.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import Command, PositionCommand, RdataCommand, ReplicateCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import CommandReceived, Event, RowsReceived, in_batches
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import serialize
from tcprepl.streams.registry import Registry
from tests.harness import DATA
from tests.sessions import receive

#: Each capture with the dialect that it is in.
CAPTURES = {
    "synapse-1.66.0-main.txt": "1.22",
    "golden-1.66.0.txt": "1.22",
    "golden-1.12.4.txt": "2017",
    "golden-1.12.4-catchup.txt": "2017",
    "golden-1.0.0.txt": "2017",
    "golden-1.0.0-catchup.txt": "2017",
    "golden-newest-redis.txt": "redis",
}
OVER_TCP = sorted(name for name, dialect in CAPTURES.items() if dialect != "redis")


@cache
def lines(name: str) -> list[bytes]:
    """Return the lines of a capture, without LF."""
    return (DATA / name).read_bytes().split(b"\n")[:-1]


@cache
def commands(name: str) -> list[Command]:
    """Return what the lines of a capture mean, one by one."""
    return [parse_line(line, DIALECTS[CAPTURES[name]]) for line in lines(name)]


@cache
def plainly(name: str) -> list[tuple[str, int, list[bytes]]]:
    """Return the batches of a capture by the simplest reading: what a batch is, and no more."""
    pending: dict[str, list[bytes]] = {}
    batches = []
    for command in commands(name):
        if isinstance(command, RdataCommand):
            held = pending.setdefault(command.stream, [])
            held.append(command.row)
            if command.token is None:
                continue
            rows = pending.pop(command.stream)
            if (
                name.endswith("-catchup.txt")
                and batches
                and batches[-1][:2]
                == (
                    command.stream,
                    command.token,
                )
            ):
                batches[-1][2].extend(rows)  # in band, a batch repeats its number
            else:
                batches.append((command.stream, command.token, rows))
    return batches


def client(name: str) -> ClientSession:
    """Return a client that has asked for every stream, as the capturing one had."""
    session = ClientSession(0.0, dialect=CAPTURES[name])
    greeting = b"\n".join(lines(name)[:2]) + b"\n"
    receive(session, greeting, 0.0)
    legacy = CAPTURES[name] == "2017"
    ask = ReplicateCommand("ALL", now=True) if legacy else ReplicateCommand()
    session.send(ask, 0.0)
    return session


def feed(session: ClientSession, pieces: list[bytes]) -> list[Event]:
    """Return what *pieces* mean to a session."""
    events: list[Event] = []
    for piece in pieces:
        events += receive(session, piece, 1.0)
    return events


@pytest.mark.parametrize("name", sorted(CAPTURES))
def test_every_line_of_a_real_main_keeps_its_meaning_when_written_again(name: str) -> None:
    dialect = DIALECTS[CAPTURES[name]]
    for line, command in zip(lines(name), commands(name), strict=True):
        again = serialize(command, dialect)
        assert parse_line(again[:-1], dialect) == command
        assert again[:-1].rstrip() == line.rstrip()


@pytest.mark.parametrize("name", sorted(CAPTURES))
def test_every_row_of_a_real_main_is_a_row_of_its_stream(name: str) -> None:
    registry = Registry()
    for command in commands(name):
        if isinstance(command, RdataCommand):
            row = registry.decode_row(command.stream, command.row)
            again = registry.encode_rows(command.stream, [row])[0]
            assert same(json.loads(again), json.loads(command.row)), command


@pytest.mark.parametrize("name", OVER_TCP)
@given(data=st.data())
def test_a_capture_cut_anywhere_gives_the_same_batches(name: str, data: st.DataObject) -> None:
    raw = b"\n".join(lines(name)[2:]) + b"\n"
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=12).map(sorted))
    bounds = [0, *places, len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(bounds)]
    session = client(name)
    events = feed(session, pieces)
    found = [
        (e.stream, e.token, list(e.rows)) for e in in_batches(events) if isinstance(e, RowsReceived)
    ]
    assert found == plainly(name)
    positions = [c for c in commands(name) if isinstance(c, PositionCommand)]
    heard = [e.command for e in events if isinstance(e, CommandReceived)]
    assert [c for c in heard if isinstance(c, PositionCommand)] == positions
    assert session.held_rows == 0


@pytest.mark.parametrize("name", sorted(n for n, d in CAPTURES.items() if d != "2017"))
def test_a_capture_of_the_newer_form_reads_the_same_in_our_own_dialect(name: str) -> None:
    ours = DIALECTS["tcprepl"]
    for command in commands(name):
        if isinstance(command, (RdataCommand, PositionCommand)):
            assert parse_line(serialize(command, ours)[:-1], ours) == command


def same(ours: Any, theirs: Any) -> bool:
    """Whether two rows say the same.

    An SQLite main's 0 and 1 are false and true, and fields that came later say nothing.
    """
    if isinstance(ours, list) and isinstance(theirs, list):
        later = ours[len(theirs) :]
        return len(ours) >= len(theirs) and all(map(same, ours, theirs)) and not any(later)
    return bool(ours == theirs)
