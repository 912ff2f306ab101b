"""The driver itself: it is green when nothing is done, and turns red when a row is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.app.migrating import migrate_data
from tcprepl.errors import LogUnavailable
from tests import invariants, postgres_world
from tests.harness import wait_until
from tests.invariants import History, Purge, Row, Told
from tests.log_kit import SqliteStore
from tests.torture import shim
from tests.torture.actors import EXCEPTION, TRACEBACK, last_line
from tests.torture.layouts import ServeWorld, was_done
from tests.torture.publishing import BusPublisher, Subscriber
from tests.torture.world import Moves, position

HELD = History([Row(1, "a"), Row(2, "b"), Row(2, "c"), Row(3, "d")])


@pytest.mark.parametrize(
    ("diary", "wrong"),
    [
        ([Row(1, "a"), Row(2, "b"), Row(2, "c"), Row(3, "d")], ""),
        ([Told(0, 1), Row(2, "b"), Row(2, "c"), Row(3, "d")], ""),
        ([Row(1, "a"), Told(1, 3)], ""),
        ([Row(1, "x"), Row(2, "y"), Told(2, 0), Told(0, 2), Row(3, "d")], ""),
        ([Row(1, "a"), Row(3, "d")], "neither seen nor told as missing: b at 2"),
        ([Row(1, "a"), Row(2, "b"), Row(3, "d")], "other than what is held"),
        ([Row(1, "a"), Row(1, "a"), Told(1, 3)], "other than what is held"),
        ([Row(2, "b"), Row(2, "c"), Row(1, "a"), Row(3, "d")], "out of order"),
        ([Told(None, 3), Row(4, "e")], "seen, but not held by the writer: e at 4"),
        ([Row(1, "a"), Told(1, 3), Told(3, 1)], "neither seen nor told"),
    ],
)
def test_a_reader(diary: invariants.Diary, wrong: str) -> None:
    faults = invariants.reader_faults(diary, HELD)
    assert (wrong in faults[0]) if wrong else not faults


def test_a_reader_that_came_late() -> None:
    late = [Row(2, "b"), Row(2, "c"), Row(3, "d")]
    assert invariants.reader_faults(late, HELD)
    assert not invariants.reader_faults(late, HELD, from_start=False)
    assert invariants.reader_faults([late[0], late[2]], HELD, from_start=False)


def test_a_reader_of_a_relay_whose_upstream_went_back() -> None:
    anew = [Row(1, "a"), Row(2, "x"), Told(2, 3), Row(4, "b"), Row(4, "c"), Row(5, "d")]
    assert not invariants.renumbered_faults(anew, HELD)
    assert not invariants.renumbered_faults(anew[2:], HELD, whole=False)
    assert invariants.renumbered_faults(anew[2:], HELD) == ["never seen: a at 1"]
    assert invariants.renumbered_faults([*anew[:4], anew[5]], HELD)


def test_a_writer() -> None:
    assert not invariants.writer_faults({"a": 1, "c": 2}, HELD)
    assert not invariants.writer_faults({"z": 9}, History(HELD.rows, [(8, 9)]))
    assert invariants.writer_faults({"z": 9, "b": 3}, HELD) == [
        "answered, but not held there: z at 9; b at 3, which is at 2"
    ]
    twice = History([Row(1, "a"), Row(2, "a")])
    assert invariants.writer_faults({}, twice) == ["held twice: a (2 times)"]


def test_tokens_that_grow() -> None:
    assert not invariants.growing_faults([1, 2, 9])
    assert invariants.growing_faults([1, 9, 9]) == ["tokens that do not grow: 9 behind 9"]


def test_a_producer() -> None:
    assert not invariants.producer_faults({"x": [1, 3], "y": [2, 4]})
    assert not invariants.producer_faults({"x": [3], "y": [4]}, without_hole=False)
    assert invariants.producer_faults({"x": [1, 4], "y": [3, 1]}) == [
        "of a producer, out of its order: 1 behind 3 on y",
        "of a producer, held twice: 1",
        "of a producer, passed over: 2 to 2",
    ]


def test_a_remote() -> None:
    good = [("t1", [1, 2]), ("t1", [1, 2]), ("t2", [3])]
    assert not invariants.remote_faults(good, [1, 2, 3], [1, 2, 3, 4], [1, 2, 3])
    assert invariants.remote_faults([*good, ("t2", [4])], [1, 1, 5], [1, 2], [2]) == [
        "of a remote: transaction t2 came with two contents",
        "EDUs that were lost: 2",
        "EDUs that nobody queued: 5",
        "EDUs that came twice: 1 (2 times)",
    ]
    twice = invariants.remote_faults((), [1, 1, 2, 2], [1, 2], [1, 2], may_be_twice={2})
    assert twice == ["EDUs that came twice: 1 (2 times)"]


def test_what_is_purged() -> None:
    purges = [Purge({1, 2, 3}, 1), Purge({1, 2, 3, 4}, 1)]
    assert not invariants.purged_faults([1, 2, 3, 4, 5], [1, 3], purges)
    assert not invariants.purged_faults([1, 2, 3, 4], [], [Purge({1, 2}, None), *purges])
    assert invariants.purged_faults([1, 2, 3, 4, 5], [], [Purge({1}, None), *purges])
    assert invariants.purged_faults([1, 2, 3, 4], [3], purges) == [
        "EDUs that are missing: 3; purged: 2"
    ]


def test_what_is_paused() -> None:
    assert not invariants.paused_faults(["t1"])
    assert invariants.paused_faults(["t1", "t1"]) == ["came while it was paused: t1"]


def test_what_is_in_quarantine() -> None:
    refused = {1: 2, 2: 1, 3: 2}
    assert not invariants.quarantine_faults(1, 1, refused, {2, 3})
    assert not invariants.quarantine_faults(0, 1, {}, {1})
    assert invariants.quarantine_faults(2, 1, refused, {2, 3}) == [
        "EDUs in quarantine: 2; refused alone and again: 1",
        "EDUs in quarantine: 2; told of in the log: 1",
    ]


@pytest.mark.postgresql
def test_a_migration_that_was_done_is_told_from_one_that_failed(tmp_path: Path) -> None:
    log, database, back = tmp_path / "log", postgres_world.fresh_url(), tmp_path / "back"
    SqliteStore(log).close()
    for source, target in ((log, database), (database, back)):
        migrate_data(source, target, "master", lambda _: None)
        with pytest.raises(LogUnavailable) as caught:
            migrate_data(source, target, "master", lambda _: None)
        assert was_done(str(caught.value))
    with pytest.raises(LogUnavailable) as caught:
        migrate_data(tmp_path / "nothing", database, "master", lambda _: None)
    assert not was_done(str(caught.value))


def test_a_stack_in_a_log() -> None:
    text = (
        "2026 event=x\nTraceback (most recent call last):\n  File 'x', line 1\n    f()\n"
        "tests.faults.worker.Fault: a fault\nnext\n"
    )
    assert [found["error"] for found in TRACEBACK.finditer(text)] == [
        "tests.faults.worker.Fault: a fault"
    ]


def test_a_stack_in_a_structured_log() -> None:
    text = r"""x exception="Traceback (last):\n  File \"a.py\"\n    f()\nOSError: no" y"""
    (found,) = EXCEPTION.finditer(text)
    assert last_line(found["stack"]) == "OSError: no"


class SmallWorld(ServeWorld):
    """A server, who publishes, and a worker behind a wire."""

    streams = ("device_lists",)

    def build_rest(self) -> None:
        """Add the worker."""
        self.wire = self.wires.to(self.port)
        self.add_worker("worker", "twisted", f"127.0.0.1:{self.wire.port}")


@pytest.mark.timeout(120)
def test_a_row_that_a_wire_loses_turns_it_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notices it but the invariants, and those do."""
    with SmallWorld(tmp_path / "round", shim.build(tmp_path), 1) as world:
        wait_until(lambda: position(world.url, "device_lists") > 10, "rows")
        world.wire.lose_rows(1)
        wait_until(lambda: world.wire.dropped, "one is lost")
        lost = world.wire.dropped[0].decode().split(" ", 4)[4].strip()
        upto = position(world.url, "device_lists")
        wait_until(lambda: position(world.url, "device_lists") > upto, "rows behind it")
        monkeypatch.setattr("tests.torture.world.LEVEL_S", 1.0)
        world.check()
    # On a loaded machine more may be late.
    found = [told for told in world.failures if told.startswith("worker, device_lists: ")]
    assert any(lost in told for told in found), world.failures


def test_a_round_ends_when_every_stream_has_moved() -> None:
    """Else a relay that came up last of all has nothing that its readers could be compared with."""
    answered: dict[str, dict[str, int]] = {"a": {"1": 1}, "b": {}}
    moves = Moves(answered)
    assert moves.least() == 0
    answered["a"]["2"] = 2
    assert moves.least() == 0
    answered["b"]["3"] = 3
    assert [moves.least(), moves.least()] == [1, 1]


def test_a_process_on_a_bus_takes_rows_behind_a_position() -> None:
    """What it misses before one it asks its database for, as a process of Synapse does."""
    reader = Subscriber(1, "reader", BusPublisher(1, "w1", 1, ("a",), 0.0))
    for line in ("RDATA a w1 5 [5]", "POSITION a w1 6 6", "RDATA a w1 7 [7]", "RDATA a w2 8 [8]"):
        reader.hear(line.encode())
    assert reader.diary("a") == [Told(0, 6), Row(7, "[7]")]
