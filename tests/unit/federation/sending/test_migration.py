"""An outbox that went to PostgreSQL, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcprepl.app.migrating import migrate_data
from tcprepl.errors import LogLocked
from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox, StoredOutbox
from tcprepl.federation.sending.outbox_postgres import PostgresOutbox, outbox_database
from tcprepl.federation.sending.stored import QUARANTINED, StoredTransaction
from tests import postgres_world
from tests.unit.federation.sending.test_outbox import now, numbers, put, set_aside

pytestmark = pytest.mark.postgresql


def held(outbox: StoredOutbox) -> dict[str, Any]:
    """Return all that a sender finds in an outbox."""
    destinations = outbox.destinations()
    flying = {name: now(outbox.load_transaction(name)) for name in destinations}

    def shown(entries: list[Entry]) -> list[Any]:
        return [(*one[:2], one[2].edu_type, one[2].key, one[2].content_bytes) for one in entries]

    return {
        "destinations": destinations,
        "positions": outbox.positions(),
        "lineages": {name: kept.stored() for name, kept in outbox.lineages().items()},
        "waiting": {name: shown(now(outbox.load(name, 0, 99))) for name in destinations},
        "flying": {
            name: (one.transaction_id, one.origin_server_ts, shown(one.entries))
            for name, one in flying.items()
            if one is not None
        },
        "quarantined": {name: now(outbox.quarantined(name)) for name in destinations},
        "newest": outbox.newest_ms(),
        "next": outbox.take_ids(1)[0],
    }


def test_all_of_it_is_there_and_back_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a" / "outbox.sqlite", run_inline)
    set_aside(outbox, [put(outbox, "y", 1)], QUARANTINED)
    put(outbox, "y", 2, "key")
    now(outbox.begin([("z", StoredTransaction("t1", 77, [put(outbox, "z", 3)]))]))
    now(outbox.put_off("z", "t1"))
    now(outbox.begin([("z", StoredTransaction("t2", 78, [put(outbox, "z", 4)]))]))
    now(outbox.set_backoff("w", Backoff(2, 5, 6, 7, "why")))
    now(outbox.set_paused("v", True))
    entry = put(outbox, "u", 5)  # this one is in the journal only
    now(outbox.begin([("u", StoredTransaction("t3", 79, [entry]))]))
    put(outbox, "u", 6, "key")
    now(outbox.add([], 0, {("federation", "other"): 4}, {("federation", "other"): b"\x90"}))
    url = postgres_world.fresh_url()
    with pytest.raises(LogLocked):
        migrate_data(tmp_path / "a", url, "fed1", lambda _: None, sender=True)
    now(outbox.close())
    moved = migrate_data(tmp_path / "a", url, "fed1", lambda _: None, sender=True)
    assert moved.counts["journal"] > 0
    back = migrate_data(url, tmp_path / "b", "fed1", lambda _: None, sender=True)
    assert back.counts == moved.counts
    database = outbox_database(url, "fed1")
    database.take()
    there = PostgresOutbox(database, url, run_inline)
    found = []
    for opened in (
        Outbox(tmp_path / "a" / "outbox.sqlite", run_inline),
        there,
        Outbox(tmp_path / "b" / "outbox.sqlite", run_inline),
    ):
        found.append(held(opened))
        assert found[-1]["flying"]["u"][:2] == ("t3", 79)
        put(opened, "u", 7)
        now(opened.finish([("u", "t3")]))
        assert numbers(now(opened.load("u", 0, 9))) == [6, 7]
        now(opened.close())
    assert found[0] == found[1] == found[2]
