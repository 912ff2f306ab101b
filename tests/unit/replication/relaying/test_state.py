"""What a relay keeps beside its log: on disk at once, and honest after a kill."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.errors import LogCorrupt, LogError, LogUnavailable
from tcprepl.replication.relaying import state as module
from tcprepl.replication.relaying.state import FILE_NAME, Epoch, RelayState
from tcprepl.streams.gaps import Cause, Gap

PAIR = ("typing", "master")


def test_everything_survives(tmp_path: Path) -> None:
    state = RelayState(tmp_path / "new")
    assert state.epoch(PAIR) == Epoch(0, 0)
    state.set_epoch(PAIR, Epoch(7, 8))
    state.add_gap(PAIR, Gap(1, 2, Cause.UPSTREAM))
    state.add_gap(PAIR, Gap(8, 12, Cause.UPSTREAM))
    state.add_stream("odd")
    state.add_stream("odd")
    # No close: the process is killed.
    again = RelayState(tmp_path / "new")
    assert again.epoch(PAIR) == Epoch(7, 8)
    assert again.streams() == ["odd"]
    assert len(list(again.gaps)) == 2
    again.settle(PAIR, 2, 11)
    assert list(again.gaps) == []
    state.close()
    again.close()
    third = RelayState(tmp_path / "new")
    assert list(third.gaps) == []
    third.close()


def test_memory_only() -> None:
    state = RelayState(None)
    state.set_epoch(PAIR, Epoch(1, 1))
    assert state.epoch(PAIR).offset == 1
    state.close()
    with pytest.raises(LogCorrupt):
        state.add_stream("x")


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogUnavailable, match="file"):
        RelayState(tmp_path / "file")
    (tmp_path / FILE_NAME).write_bytes(b"no database at all, but some text" * 100)
    with pytest.raises(LogCorrupt, match=FILE_NAME):
        RelayState(tmp_path)


def test_lineages_outlive_the_process(tmp_path: Path) -> None:
    pair = ("s", "i")
    state = RelayState(tmp_path)
    assert state.places(pair, 5) == ()
    state.enter(pair, "x", 0, 5)
    state.enter(pair, "x", 5, 6)
    state.enter(pair, "y", 6, 7)
    state.close()
    state = RelayState(tmp_path)
    assert state.places(pair, 9) == ((9, "y"), (6, "x"))
    state.close()


def _refuse(state: RelayState, table: str, operation: str = "INSERT") -> None:
    """Let the disk refuse what is written into *table* from now on."""
    state._connection.execute(
        f"CREATE TEMP TRIGGER refuses BEFORE {operation} ON {table}"
        " BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
    )


def _accept(state: RelayState) -> None:
    state._connection.execute("DROP TRIGGER refuses")


def test_what_the_disk_refused_is_written_when_it_is_told_again(tmp_path: Path) -> None:
    pair = ("s", "i")
    state = RelayState(tmp_path)
    state.enter(pair, "x", 0, 5)
    _refuse(state, "lineages")
    with pytest.raises(LogError, match="the disk refuses"):
        state.enter(pair, "y", 5, 7)
    assert state.places(pair, 5) == ((5, "x"),)
    _accept(state)
    state.enter(pair, "y", 5, 7)
    _refuse(state, "followed")
    with pytest.raises(LogError, match="the disk refuses"):
        state.follow()
    _accept(state)
    assert not state.follow()
    state.close()
    state = RelayState(tmp_path)
    assert state.places(pair, 9) == ((9, "y"), (5, "x"))
    assert state.follow()


@pytest.mark.parametrize("table", ["lineages", "gaps", "epochs"])
def test_a_pair_begins_anew_in_one_transaction(tmp_path: Path, table: str) -> None:
    pair = ("s", "i")
    state = RelayState(tmp_path)
    state.enter(pair, "x", 0, 9)
    _refuse(state, table)

    def begin() -> None:
        state.begin_anew(pair, "y", 9, 4, gap=Gap(9, 10, Cause.ANEW), epoch=Epoch(6, 10))

    with pytest.raises(LogError, match="the disk refuses"):
        begin()
    assert (state.places(pair, 9), list(state.gaps), state.epoch(pair)) == (
        ((9, "x"),),
        [],
        Epoch(),
    )
    state.close()
    state = RelayState(tmp_path)
    assert (state.places(pair, 9), list(state.gaps), state.epoch(pair)) == (
        ((9, "x"),),
        [],
        Epoch(),
    )
    begin()
    for _ in range(2):
        assert state.places(pair, 5) == ((5, "y"), (4, "x"))
        assert [gap.after for _, gap in state.gaps] == [9]
        assert state.epoch(pair) == Epoch(6, 10)
        state.close()
        state = RelayState(tmp_path)


def test_that_the_upstream_was_listened_to_is_kept(tmp_path: Path) -> None:
    state = RelayState(tmp_path)
    assert not state.follow()
    assert state.follow()
    state.close()
    assert RelayState(tmp_path).follow()


def test_streams_keep_the_order_in_which_they_were_met(tmp_path: Path) -> None:
    """Places of a token that is out there count on it: a restart must not move them."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:  # of the first schema
        old.executescript(
            f"{module._CREATE} INSERT INTO streams VALUES ('n'), ('m'); PRAGMA user_version = 1;"
        )
    for name in ("b", "a", "b"):
        met = RelayState(tmp_path)
        met.add_stream(name)
        met.close()
    assert RelayState(tmp_path).streams() == ["m", "n", "b", "a"]


def test_it_survives_a_power_cut(tmp_path: Path) -> None:
    """As its log does, which it must not fall behind."""
    with closing(RelayState(tmp_path)) as state:
        assert state._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
