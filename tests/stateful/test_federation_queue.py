"""The outbox and a destination against plain dictionaries, for any order of what may happen."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred

from tcprepl.federation.sending.commit_queue import OutboxUnavailable, run_inline
from tcprepl.federation.sending.journal import Journal
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import QUARANTINED, Refusal, StoredTransaction
from tcprepl.federation.wire.edu import build_edu

NAMES = st.sampled_from(["a.example", "b.example"])
KEYS = st.none() | st.sampled_from(["k1", "k2"])


def now(done: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired."""
    found: list[Any] = []
    done.addBoth(found.append)
    return found[0]


class OutboxMachine(RuleBasedStateMachine):
    """What waits, per destination, is a list of (id, key, number); in flight is another."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "outbox.sqlite"
        self.outbox = Outbox(self.path, run_inline)
        self.waiting: dict[str, list[tuple[int, str | None]]] = {}
        self.flying: dict[str, list[tuple[int, str | None]]] = {}
        self.entries: dict[int, Entry] = {}
        self.quarantined: dict[str, list[tuple[int, str | None]]] = {}
        self.ids: dict[str, str] = {}
        self.number = 0
        self.position = 0

    def teardown(self) -> None:
        """Close everything."""
        now(self.outbox.close())
        self.directory.cleanup()

    @rule(name=NAMES, keys=st.lists(KEYS, min_size=1, max_size=4))
    def add(self, name: str, keys: list[str | None]) -> None:
        """Add some EDUs in one commit."""
        entries = []
        waiting = self.waiting.setdefault(name, [])
        for edu_id, key in zip(self.outbox.take_ids(len(keys)), keys, strict=True):
            keyed = None if key is None else (key,)
            edu = build_edu("x.example", name, "m.test", {"n": edu_id}, keyed)
            entries.append((edu_id, 0, edu))
            self.entries[edu_id] = entries[-1]
            if key is not None:
                waiting[:] = [found for found in waiting if found[1] != key]
                aside = self.quarantined.get(name, [])
                aside[:] = [found for found in aside if found[1] != key]
            waiting.append((edu_id, key))
        self.position += 1
        now(self.outbox.add(entries, 0, {("federation", "master"): self.position}))

    @rule(name=NAMES, count=st.integers(1, 4), held=st.booleans())
    def begin(self, name: str, count: int, held: bool) -> None:
        """Begin a transaction with the oldest, from memory or from disk, unless one is under way.

        Of one that is under way, the disk refuses another.
        """
        if name in self.flying:
            refused = now(self.outbox.begin([(name, StoredTransaction("again", 1, []))]))
            assert isinstance(refused.value, OutboxUnavailable)
            return
        if not self.waiting.get(name):
            return
        entries = [self.entries[edu_id] for edu_id, _ in self.waiting[name][:count]]
        if not held:
            entries = now(self.outbox.load(name, 0, count))
        self.number += 1
        self.ids[name] = f"t{self.number}"
        now(self.outbox.begin([(name, StoredTransaction(self.ids[name], self.number, entries))]))
        self.flying[name] = self.waiting[name][:count]
        self.waiting[name] = self.waiting[name][count:]

    @rule(name=NAMES, how=st.sampled_from(["finish", "dissolve", "quarantine"]))
    def end(self, name: str, how: str) -> None:
        """End the transaction under way in one of the ways there are."""
        if name not in self.flying:
            return
        transaction_id = self.ids[name]
        if how == "quarantine":
            now(self.outbox.set_aside(name, transaction_id, QUARANTINED, Refusal(1, "no")))
        elif how == "finish":
            now(self.outbox.finish([(name, transaction_id)]))
        else:
            now(self.outbox.dissolve(name, transaction_id))
        gone = self.flying.pop(name)
        waiting = self.waiting[name]
        newer = {key for _, key in waiting if key is not None}
        if how == "dissolve":
            kept = [found for found in gone if found[1] is None or found[1] not in newer]
            self.waiting[name] = sorted([*kept, *waiting])
        elif how == "quarantine":
            kept = [found for found in gone if found[1] is None or found[1] not in newer]
            self.quarantined.setdefault(name, []).extend(kept)

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        """Let what is in quarantine wait again; of each key only the newest, under way or not."""
        now(self.outbox.release(name, QUARANTINED))
        waiting = self.waiting.get(name, [])
        merged = sorted([*self.quarantined.pop(name, ()), *waiting], key=lambda found: found[0])
        everywhere = sorted([*merged, *self.flying.get(name, ())], key=lambda found: found[0])
        newest = {key: edu_id for edu_id, key in everywhere if key is not None}
        self.waiting[name] = [
            found for found in merged if found[1] is None or newest[found[1]] == found[0]
        ]

    @rule(name=NAMES)
    def purge(self, name: str) -> None:
        """Throw everything away."""
        now(self.outbox.purge(name))
        self.waiting.pop(name, None)
        self.flying.pop(name, None)
        self.quarantined.pop(name, None)

    @precondition(lambda self: self.position)
    @rule()
    def restart(self) -> None:
        """Close the file and open it again."""
        now(self.outbox.close())
        self.outbox = Outbox(self.path, run_inline)

    @precondition(lambda self: self.position)
    @rule()
    def refuse(self) -> None:
        """Let a commit fail: what is on disk is what was there, and memory is that."""
        failed = now(self.outbox.submit(lambda cursor: cursor.execute("nonsense")))
        assert isinstance(failed.value, OutboxUnavailable)

    @rule(name=NAMES)
    def look(self, name: str) -> None:
        """Read what is there, which gives it its rows."""
        found = [entry[0] for entry in now(self.outbox.load(name, 0, 1_000))]
        assert found == [edu_id for edu_id, _ in self.waiting.get(name, [])]
        stored = now(self.outbox.load_transaction(name))
        flying = [edu_id for edu_id, _ in self.flying.get(name, [])]
        assert ([entry[0] for entry in stored.entries] if stored else []) == flying
        summary = now(self.outbox.summary(name)).get(name, {})
        aside = summary["quarantined"].edus if "quarantined" in summary else 0
        assert aside == len(self.quarantined.get(name, ()))
        total = sum(lane.edus for lane in summary.values())
        assert total == len(found) + len(flying) + aside

    @invariant()
    def what_is_on_disk_is_what_should_be(self) -> None:
        """A copy of the file, opened by somebody else, and the dictionaries agree at any time."""
        expected = {("federation", "master"): self.position} if self.position else {}
        assert self.outbox.positions() == expected
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            self.outbox._connection.backup(copy)
            cursor = copy.cursor()
            Journal(cursor).settle(cursor)
            rows = cursor.execute("SELECT destination, id, transaction_id FROM edus ORDER BY id")
            found: dict[tuple[str, str | None], list[int]] = {}
            for name, edu_id, transaction_id in rows:
                found.setdefault((name, transaction_id), []).append(edu_id)
        wanted = [((name, None), of) for name, of in self.waiting.items()]
        wanted += [((name, QUARANTINED), of) for name, of in self.quarantined.items()]
        wanted += [((name, self.ids[name]), of) for name, of in self.flying.items()]
        assert found == {where: sorted(edu_id for edu_id, _ in of) for where, of in wanted if of}


TestOutbox = OutboxMachine.TestCase
