"""Rows that are published in SQL, within the transactions of their writers, against a model.

Eight connections begin, publish, commit and roll back in any order, while the server takes what is
committed whenever it comes by, may be refused by its database, and is started again. The log has
exactly the committed rows, each once; those of a transaction together and in their order; what
was committed before another began comes before it; and what was read is never corrected.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tcprepl.errors import LogUnavailable
from tests import postgres_world
from tests.log_kit import DURABLE, PostgresStore, read_all

CONNECTIONS = 8
numbers = st.integers(0, CONNECTIONS - 1)


class PublishMachine(RuleBasedStateMachine):
    """Writers, each with a connection of its own, and a server."""

    def __init__(self) -> None:
        super().__init__()
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()
        self.store = PostgresStore(self.url, self.schema)
        self.connections: list[psycopg.Connection[Any]] = []
        #: What is open of each connection: when it began, and its rows.
        self.open: dict[int, tuple[int, list[str]]] = {}
        #: (when it began, when it was committed, its rows) of each transaction.
        self.committed: list[tuple[int, int, list[str]]] = []
        self.read: list[str] = []
        self.moment = 0
        self.count = 0

    @initialize()
    def connect(self) -> None:
        """Connect all of them."""
        for _ in range(CONNECTIONS):
            connection = psycopg.connect(self.url, autocommit=True)
            connection.execute(f"SET search_path TO {self.schema}".encode())
            self.connections.append(connection)

    def teardown(self) -> None:
        """Take what is left, and compare."""
        for number in list(self.open):
            self.end(number, commit=True)
        self.take()
        self.compare(complete=True)
        for connection in self.connections:
            connection.close()
        self.store.close()

    @rule(number=numbers, count=st.integers(1, 4), batch=st.booleans())
    def publish(self, number: int, count: int, batch: bool) -> None:
        """Publish in a transaction, which begins if there is none."""
        self.moment += 1
        connection = self.connections[number]
        if number not in self.open:
            connection.execute("BEGIN")
            self.open[number] = self.moment, []
        rows = [f"@{self.count + n}:x" for n in range(count)]
        self.count += count
        connection.execute(
            "SELECT tcprepl_publish(%s, %s::jsonb, batch => %s)",
            (DURABLE, json.dumps([[row] for row in rows]), batch),
        )
        self.open[number][1].extend(rows)

    @rule(number=numbers, commit=st.sampled_from([True, True, False]))
    def end(self, number: int, commit: bool) -> None:
        """Commit, or roll back."""
        if number not in self.open:
            return
        self.moment += 1
        began, rows = self.open.pop(number)
        self.connections[number].execute("COMMIT" if commit else "ROLLBACK")
        if commit:
            self.committed.append((began, self.moment, rows))

    @rule()
    def take(self) -> None:
        """Let the server come by."""
        self.store.log.look()

    @rule()
    def be_refused(self) -> None:
        """Let it come by while the database takes nothing."""
        refusal = mock.patch.object(
            self.store.log._database, "write", side_effect=LogUnavailable("full")
        )
        with refusal:
            self.store.log.look()

    @rule()
    def restart(self) -> None:
        """Start the server again."""
        self.store.reopen()

    def compare(self, *, complete: bool = False) -> None:
        """The log has whole transactions, in an order that fits, and grows at its end alone."""
        found = [
            json.loads(row)[0] for _, row in read_all(self.store.log, DURABLE, 0, instance="master")
        ]
        assert found[: len(self.read)] == self.read
        self.read = found
        places = {row: place for place, row in enumerate(found)}
        assert len(places) == len(found)
        spans = []
        for began, ended, rows in self.committed:
            if rows[0] in places:
                first = places[rows[0]]
                assert found[first : first + len(rows)] == rows
                spans.append((first, began, ended))
            else:
                assert not complete
                assert not places.keys() & set(rows)
        assert sum(len(rows) for _, _, rows in self.committed if rows[0] in places) == len(found)
        spans.sort()
        for index, (_, _, ended) in enumerate(spans):
            assert all(ended > began for _, began, _ in spans[:index])

    @invariant()
    def what_is_read_is_right(self) -> None:
        """Whatever has been taken is as it has to be."""
        self.compare()


TestPublishInSql = pytest.mark.postgresql(PublishMachine.TestCase)
TestPublishInSql.settings = settings(max_examples=max(8, settings.default.max_examples // 15))
