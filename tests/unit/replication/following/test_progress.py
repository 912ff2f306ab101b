"""Positions: what is noted, what is saved, and what is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import structlog

from tcprepl.replication.following.progress import Progress
from tcprepl.streams.position_store import SqlitePositionStore

ALPHA, BETA = ("alpha", "master"), ("beta", "master")


class Store:
    """A position store that notes what it is told."""

    def __init__(self, *, atomic: bool) -> None:
        self.atomic = atomic
        self.calls: list[Any] = []
        self.error: Exception | None = None

    def load(self) -> dict[tuple[str, str], int]:
        """Return what was saved long ago."""
        return {ALPHA: 3}

    def places(self, pair: tuple[str, str], token: int) -> tuple[tuple[int, str], ...]:
        """Return something."""
        return ((token, pair[0]),)

    def save(self, positions: Any, incarnation: str | None = None) -> None:
        """Note it."""
        if self.error is not None:
            raise self.error
        self.calls.append(dict(positions) if incarnation is None else (positions, incarnation))

    def rollback(self) -> None:
        """Note it."""
        if self.error is not None:
            raise self.error
        self.calls.append("rollback")

    def close(self) -> None:
        """Do nothing."""


def made(*, atomic: bool) -> tuple[Progress, Store]:
    """Return a progress that is loaded, and its store."""
    store = Store(atomic=atomic)
    progress = Progress(store)
    progress.load()
    return progress, store


def test_an_atomic_store_commits_each_step() -> None:
    progress, store = made(atomic=True)
    progress.advance(ALPHA, 4)
    progress.advance(BETA, 1)
    progress.advance(BETA, None)
    progress.save()
    assert store.calls == [{ALPHA: 4}, {BETA: 1}, {}]
    assert progress.known == {ALPHA: 4, BETA: 1}
    progress.undo()
    assert store.calls[-1] == "rollback"


def test_a_step_that_an_atomic_store_refuses_did_not_happen() -> None:
    """Not even later, with what comes next."""
    progress, store = made(atomic=True)
    store.error = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        progress.advance(ALPHA, 4)
    store.error = None
    assert progress.known == {ALPHA: 3}
    progress.save()
    progress.advance(BETA, 1)
    assert store.calls == [{BETA: 1}]


def test_another_store_saves_once_for_all_and_keeps_what_was_refused() -> None:
    progress, store = made(atomic=False)
    progress.advance(ALPHA, 4)
    progress.advance(ALPHA, None)
    progress.advance(BETA, 1)
    store.error = OSError("disk full")
    with structlog.testing.capture_logs() as logs:
        progress.save()
    assert [entry["event"] for entry in logs] == ["replication.positions.not_saved"]
    store.error = None
    progress.advance(BETA, 2)
    progress.advance(BETA, 2)
    progress.save()
    progress.save()
    progress.undo()
    assert store.calls == [{ALPHA: 4, BETA: 2}]


def test_loading_forgets_what_was_not_saved() -> None:
    progress, store = made(atomic=False)
    progress.advance(ALPHA, 4)
    progress.load()
    progress.save()
    assert not store.calls
    assert progress.known == {ALPHA: 3}


@pytest.mark.parametrize("atomic", [True, False])
def test_the_incarnation_is_saved_with_the_position(atomic: bool) -> None:
    progress, store = made(atomic=atomic)
    progress.incarnation = "x"
    progress.advance(ALPHA, 4)
    progress.save()
    assert store.calls == [({ALPHA: 4}, "x")]
    assert progress.places(ALPHA) == ((4, "alpha"),)


def test_what_was_refused_is_saved_in_the_incarnation_in_which_it_came() -> None:
    progress, store = made(atomic=False)
    progress.incarnation = "x"
    progress.advance(ALPHA, 9)
    store.error = OSError("disk full")
    with structlog.testing.capture_logs():
        progress.save()
    progress.incarnation = "y"
    with structlog.testing.capture_logs():
        progress.save()
    progress.advance(BETA, 1)
    store.error = None
    progress.save()
    progress.incarnation = "z"
    progress.save()
    assert store.calls == [({ALPHA: 9}, "x"), ({BETA: 1}, "y")]


def test_what_was_refused_does_not_count_as_rows_of_a_server_that_was_put_back(
    tmp_path: Path,
) -> None:
    """Killed before it has said where it is: it would have other rows up to there."""
    path = tmp_path / "positions.sqlite3"
    store = SqlitePositionStore(path)
    progress = Progress(store)
    progress.load()
    progress.incarnation = "x"
    progress.advance(ALPHA, 9)
    with (
        mock.patch.object(store, "save", side_effect=OSError("disk full")),
        structlog.testing.capture_logs(),
    ):
        progress.save()
    progress.incarnation = "y"
    progress.advance(BETA, 1)
    progress.save()
    store.close()
    again = SqlitePositionStore(path)
    assert again.load() == {ALPHA: 9, BETA: 1}
    assert again.places(ALPHA, 9) == ((9, "x"),)
    assert again.places(BETA, 1) == ((1, "y"),)
    again.close()


def test_what_does_not_go_back_waits_to_be_saved() -> None:
    progress, store = made(atomic=False)
    for pair, token in ((ALPHA, 4), (ALPHA, 4), (BETA, 0), (ALPHA, 5)):
        progress.advance(pair, token)
    assert store.calls == []
    progress.save()
    assert store.calls == [{ALPHA: 5, BETA: 0}]


def test_a_position_that_goes_back_is_saved_at_once() -> None:
    progress, store = made(atomic=False)
    progress.advance(ALPHA, 1)
    progress.advance(ALPHA, 9)
    assert store.calls == [{ALPHA: 1}]


def test_what_cannot_be_undone_is_said_and_raised() -> None:
    progress, store = made(atomic=True)
    store.error = OSError("gone")
    with structlog.testing.capture_logs() as logs, pytest.raises(OSError, match="gone"):
        progress.undo()
    assert [entry["event"] for entry in logs] == ["replication.handler.not_undone"]
