"""Where processes stood, over restarts and after damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcprepl.replication.bus import places as module
from tcprepl.replication.bus.delivered import Stand
from tcprepl.replication.bus.places import Place, Places

EVENTS = ("events", "w1")


def test_a_place_outlives_the_bus(tmp_path: Path) -> None:
    now = [100.0]
    places = Places(tmp_path, lambda: now[0])
    places.load({})
    places.leave("gw", Place(99.0, {EVENTS: Stand(7, told=False)}, rows=3, counted_at=9, pid=5))
    places.at_head("ew1", 6)
    places.alive({EVENTS})
    now[0] = 105.0
    places.alive({EVENTS})  # too soon to write the time again
    places._database.close()  # kill -9
    for head in (20, 30):  # the second time, too: what was at the head stays where that was
        again = Places(tmp_path, lambda: now[0])
        again.load({EVENTS: head})
        assert again.said == {EVENTS}
        found = dict(again.away())
        assert found["gw"] == Place(99.0, {EVENTS: Stand(7, told=False)}, rows=3, pid=5)
        assert found["ew1"] == Place(100.0, {EVENTS: Stand(20)}, pid=6)
        again._database.close()


def test_one_that_is_here_is_away_no_longer(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 1.0)
    places.load({})
    places.leave("gw", Place(1.0, {EVENTS: Stand(7)}))
    assert places.take("gw") == Place(1.0, {EVENTS: Stand(7)})
    assert places.take("gw") is None
    places.forget("gw")
    places.close()
    again = Places(tmp_path, lambda: 1.0)
    again.load({EVENTS: 9})
    assert again.away() == []


def test_what_was_written_by_nobody_knows_whom_is_nothing(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 1.0)
    places._put("gw", None)  # type: ignore[arg-type]
    places._fact("said", "nonsense")
    places.close()
    again = Places(tmp_path, lambda: 1.0)
    again.load({EVENTS: 9})
    assert again.away() == []
    assert again.said == set()


def test_there_are_not_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PLACES", 3)
    places = Places(None, lambda: 1.0)
    for number in range(6):
        places.leave(f"p{number}", Place(1.0, {}))
    assert [process for process, _ in places.away()] == ["p3", "p4", "p5"]


def test_a_disk_that_refuses_costs_no_more_than_a_fetch(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 1.0)
    places._database.close()
    places._database = sqlite3.connect(f"file:{tmp_path}/bus.sqlite3?mode=ro", uri=True)
    with capture_logs() as logs:
        places.leave("gw", Place(1.0, {}))
    assert [line["event"] for line in logs] == ["bus.place.not_written"]
    assert places.take("gw") is not None
    places._database.close()


def test_places_survive_the_death_of_the_process(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 1.0)
    assert places._database.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    places.load({})
    places.close()


class Refusing:
    """A database that refuses some statements, and then takes what there is."""

    def __init__(self, database: sqlite3.Connection, refusals: int) -> None:
        self.database = database
        self.refusals = refusals

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        if self.refusals:
            self.refusals -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return self.database.execute(*statement)


#: What is noted, and what the next run of the bus finds of it.
NOTES: list[tuple[Callable[[Places], object], Callable[[Places], object], object]] = [
    (lambda p: p.is_instance("gw", "w1"), lambda p: p.instances, {"gw": "w1"}),
    (lambda p: p.alive({EVENTS}), lambda p: p.said, {EVENTS}),
    (
        lambda p: p.leave("gw", Place(9.0, {EVENTS: Stand(7)}, pid=5)),
        lambda p: dict(p.away()),
        {"gw": Place(9.0, {EVENTS: Stand(7)}, pid=5)},
    ),
    (
        lambda p: p.stay("gw", Place(9.0, {EVENTS: Stand(7)})),
        lambda p: dict(p.away()),
        {"gw": Place(9.0, {EVENTS: Stand(7)})},
    ),
]


@pytest.mark.parametrize(("note", "found", "wanted"), NOTES)
def test_what_the_disk_refuses_is_written_with_the_next_look(
    tmp_path: Path, note: Callable[[Places], object], found: Callable[[Places], object], wanted: Any
) -> None:
    places = Places(tmp_path, lambda: 100.0)
    places.load({})
    database = places._database
    refusing = Refusing(database, 2)
    places._database = refusing  # type: ignore[assignment]
    note(places)
    refusing.refusals = 0
    places.alive(places.said)  # nothing is new
    database.close()  # kill -9
    again = Places(tmp_path, lambda: 101.0)
    again.load({EVENTS: 9})
    assert found(again) == wanted
    assert not places._owed
    again.close()


def test_of_what_the_disk_has_refused_the_newest_is_written(tmp_path: Path) -> None:
    places = Places(tmp_path, lambda: 100.0)
    places.load({})
    database = places._database
    refusing = Refusing(database, 2)
    places._database = refusing  # type: ignore[assignment]
    places.leave("gw", Place(9.0, {EVENTS: Stand(7)}))
    places.forget("gw")
    places.leave("ew1", Place(9.0, {EVENTS: Stand(8)}))
    database.close()
    again = Places(tmp_path, lambda: 101.0)
    again.load({EVENTS: 9})
    assert [process for process, _ in again.away()] == ["ew1"]
    again.close()
