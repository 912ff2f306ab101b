"""Several servers over one database, and readers who go from one to another.

Each server writes as itself and serves the rows of all. Readers say with which token they come,
and in which incarnations they got what they have, as our clients do. Whatever happens to servers,
and however late they hear of each other, a reader has exactly the rows of the model, each once
and in order, and is never told to forget anything.
"""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tcprepl import limits
from tcprepl.errors import LogFenced, LogUnavailable
from tcprepl.streams.cursor import AT_HEAD, Limits
from tcprepl.streams.lineage import Lineage
from tcprepl.streams.log import Block, Page
from tcprepl.streams.pages import Reading
from tcprepl.streams.retention import Retention
from tests import postgres_world
from tests.log_kit import DURABLE, PostgresStore, result, row, rows_in

NAMES = ("a", "b", "c")
SMALL = Retention(recent_bytes=120)
names = st.sampled_from(NAMES)


class Reader:
    """Who follows one pair, at any server."""

    def __init__(self, pair: tuple[str, str]) -> None:
        self.pair = pair
        self.at = 0
        self.rows: list[tuple[int, bytes]] = []
        self.lineage = Lineage()


class ServersMachine(RuleBasedStateMachine):
    """Servers, their operator, and readers."""

    def __init__(self) -> None:
        super().__init__()
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()
        self.servers: dict[str, PostgresStore] = {}
        self.zombies: list[PostgresStore] = []
        self.truth: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
        self.heard: dict[str, dict[tuple[str, str], list[int]]] = {}
        self.count = 0
        self.readers = [Reader((DURABLE, name)) for name in NAMES for _ in "12"]
        self.patches = [
            mock.patch.object(limits, "PAGE_ROWS", 9),
            mock.patch("tcprepl.streams.postgres_news.NEWS_BYTES", 200),
            mock.patch("tcprepl.streams.postgres_news._NEWS_BLOCKS", 3),
        ]
        for patch in self.patches:
            patch.start()

    @initialize()
    def begin(self) -> None:
        """Start two of them."""
        self.start("a")
        self.start("b")

    def start(self, name: str) -> None:
        """Start a server."""
        store = PostgresStore(self.url, self.schema, SMALL, writer=name)
        self.servers[name] = store
        heard = self.heard[name] = {}

        def hear(block: Block) -> None:
            heard.setdefault((block.stream, block.instance), []).extend(block.tokens)

        store.log.add_listener(hear)

    def teardown(self) -> None:
        """Let everybody come to the head, and end."""
        if not self.servers:
            self.start("a")
        for reader in self.readers:
            for name in list(self.servers):
                self.servers[name].log.look()
                self.read(reader, name, 1_000, 50)
            assert reader.rows == self.truth.get(reader.pair, [])
        for store in (*self.servers.values(), *self.zombies):
            store.close()
        for patch in self.patches:
            patch.stop()

    @rule(name=names, count=st.integers(1, 6), batch=st.booleans())
    def append(self, name: str, count: int, batch: bool) -> None:
        """Write at a server."""
        if name not in self.servers:
            return
        rows = [row(str(self.count + n)) for n in range(count)]
        self.count += count
        pair = (DURABLE, name)
        answer = result(self.servers[name].log.append(*pair, rows, batch=batch))
        tokens = [answer.first] * count if batch else range(answer.first, answer.last + 1)
        self.truth.setdefault(pair, []).extend(zip(tokens, rows, strict=True))

    @rule(name=names)
    def hear(self, name: str) -> None:
        """Let a server hear of what others have written."""
        if name in self.servers:
            self.servers[name].log.look()

    @rule(number=st.integers(0, 5), name=names, answers=st.integers(1, 5), rows=st.integers(1, 9))
    def follow(self, number: int, name: str, answers: int, rows: int) -> None:
        """Read at a server, wherever that was done before."""
        if name in self.servers:
            self.read(self.readers[number], name, answers, rows)

    def read(self, reader: Reader, name: str, answers: int, rows: int) -> None:
        """Ask for some answers."""
        log = self.servers[name].log
        cursor = log.cursor(reader.pair, reader.at, reader.lineage.places(reader.at))
        for _ in range(answers):
            answer = cursor.next(Limits(rows=rows))
            if answer is AT_HEAD:
                return
            if isinstance(answer, Reading):
                assert answer.done
                continue
            assert isinstance(answer, Page), answer
            reader.rows += rows_in(answer)
            reader.lineage = reader.lineage.entered(log.history.current, reader.at, answer.upto)
            reader.at = answer.upto
            truth = self.truth.get(reader.pair, [])
            assert reader.rows == [item for item in truth if item[0] <= reader.at]

    @rule(name=names)
    def stop(self, name: str) -> None:
        """Stop a server as it should be."""
        if name in self.servers:
            self.servers.pop(name).close()

    @rule(name=names)
    def kill(self, name: str) -> None:
        """Let a server be gone, and its lease be over."""
        if name in self.servers:
            store = self.servers.pop(name)
            postgres_world.sql(
                self.url,
                self.schema,
                "UPDATE writers SET held_until = clock_timestamp() WHERE name = %s",
                (name,),
            )
            self.zombies.append(store)

    @rule(name=names)
    def start_again(self, name: str) -> None:
        """Start a server that is not there; who was killed as it is a zombie from now on."""
        if name not in self.servers:
            self.start(name)

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """Let one that was gone write: it may have been overtaken, and then it writes nothing."""
        if not self.zombies:
            return
        store = data.draw(st.sampled_from(self.zombies), label="zombie")
        epoch = postgres_world.sql(
            self.url, self.schema, "SELECT epoch FROM writers WHERE name = %s", (store.writer,)
        )
        overtaken = epoch != [(store.log._database.held.epoch,)]
        if not overtaken:
            return
        with pytest.raises(LogFenced):
            result(store.log.append(DURABLE, store.writer, [row("never")]))
        with pytest.raises((LogFenced, LogUnavailable)):
            result(store.log.failed)
        store.log.failed.addErrback(lambda _: None)
        self.zombies.remove(store)
        store.close()

    @invariant()
    def nobody_hears_anything_twice(self) -> None:
        """Listeners of a server hear of each row once, in order."""
        for name, heard in self.heard.items():
            if name in self.servers:
                for tokens in heard.values():
                    assert tokens == sorted(tokens)
        for name in self.servers:
            mine = (DURABLE, name)
            truth = self.truth.get(mine, [])
            assert self.servers[name].log.position(*mine) == (truth[-1][0] if truth else 0)


TestServers = pytest.mark.postgresql(ServersMachine.TestCase)
TestServers.settings = settings(max_examples=max(8, settings.default.max_examples // 15))
