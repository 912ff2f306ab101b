"""The PostgreSQL database of a log: what the writing, reading and listening threads do in it.

Everything that a commit writes goes to the server in one piece, and one answer comes back. The
first thing in it is the fence (`tcprepl.storage.fenced`): a server that was asleep for
longer than its lease, and whose name another has taken, writes nothing.

What is written and what reads it back change together: so this may be longer than other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from zlib import crc32

import psycopg

from tcprepl import limits
from tcprepl.errors import LogUnavailable
from tcprepl.ids import ProducerName, StreamName, Token
from tcprepl.storage.fenced import GATE, LEASE_S, FencedDatabase
from tcprepl.storage.postgresql import Connection, Link
from tcprepl.streams.bodies import encode_block
from tcprepl.streams.engine import (
    EXPIRED_AT_ONCE,
    TRIMMED_BLOCKS,
    TRIMMED_BYTES,
    Commit,
    Freed,
    KnownTransactions,
    StoredPair,
)
from tcprepl.streams.history import Beginning, History, Incarnation
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.paging import PageBuilder
from tcprepl.streams.postgres_news import Listener, NewsReader
from tcprepl.streams.postgres_schema import (
    CHANNEL,
    DELETE_ANSWERS,
    DELETE_BEGINNINGS,
    DELETE_TRANSACTIONS,
    INSERT_BLOCKS,
    KNOWN,
    NEWEST,
    PAIRS,
    REFUSE,
    SCHEMA,
    SCHEMA_NAME,
    SELECT_BLOCKS,
    SELECT_PAGE,
    TRIM,
    UPSERT_ANSWERS,
    UPSERT_PAIRS,
    UPSERT_PRODUCERS,
)
from tcprepl.streams.producer_store import decode_answers, encode_answers
from tcprepl.streams.producers import ANSWERS_KEPT, Answer, ProducerState

#: Blocks that are fetched at once for a page.
_PAGE_BLOCKS: Final = 64
#: Pages that are fetched at once, and for how many readers the rest is kept meanwhile.
_PAGES: Final = 4
_KEPT: Final = 8


class PostgresDatabase(FencedDatabase):
    """The database of a log, for one server; an `Engine`."""

    def __init__(
        self,
        url: str,
        writer: str,
        *,
        schema: str = SCHEMA_NAME,
        lease_s: float = LEASE_S,
        transaction_age_s: float = limits.TRANSACTION_AGE_S,
    ) -> None:
        """Connect to nothing yet: `take` comes first.

        Args:
            url: ``postgresql://...``.
            writer: The name under which this server writes.
            schema: The schema of the database.
            lease_s: How long the name belongs to this server without being renewed.
            transaction_age_s: How long a transaction id is remembered.
        """
        super().__init__(url, writer, schema, SCHEMA, lease_s)
        self._reading = Link(url, schema)
        self._looking = Link(url, schema)
        self._transaction_age_ms = int(transaction_age_s * 1000)
        #: Rows and bytes of each of our pairs, as the last commit has left them.
        self._sizes: dict[int, tuple[int, int]] = {}
        #: The last token of the newest block of each pair, as the last commit has left it.
        self._newest: dict[int, Token] = {}
        self._over: list[int] = []
        #: Blocks behind a place of a pair, which have come with those before it.
        self._kept: dict[tuple[int, Token], list[tuple[Any, ...]]] = {}

    @property
    def first_id(self) -> int:
        """The lowest id of a pair of ours."""
        return self.held.number << 32

    # --- before the first commit ---------------------------------------------------------------

    def pairs(self) -> list[StoredPair]:
        """Return every pair, those of others, too; nobody commits until the first `write`.

        Until then all is read in the transaction that begins our incarnation.
        """
        with self._writing.using() as connection:
            connection.execute("BEGIN")
            connection.execute(f"SELECT pg_advisory_xact_lock({GATE})")
            self.fence(connection, 0)
            found = connection.execute(f"{PAIRS} ORDER BY id").fetchall()
            self._newest = dict(connection.execute("SELECT id, newest FROM pairs").fetchall())
        pairs = [StoredPair(*row) for row in found]
        self._sizes = {p.id: (p.rows, p.size_bytes) for p in pairs if self.is_ours(p)}
        return pairs

    def is_ours(self, pair: StoredPair) -> bool:
        """Return whether this server writes *pair*."""
        return pair.writer == self.writer

    def history(self) -> History:
        """Return the incarnations that were noted; which of them are over is in `over`."""
        with self._writing.using() as connection:
            found = connection.execute(
                "SELECT i.number, i.id, i.began_ms, i.ended, i.ended IS NULL AND"
                " (w.number IS NULL OR w.number = %s OR w.held_until <= clock_timestamp())"
                " FROM incarnations AS i LEFT JOIN writers AS w ON w.number = i.writer"
                " ORDER BY i.number",
                (self.held.number,),
            ).fetchall()
            beginnings = connection.execute(
                "SELECT stream, instance, number, token FROM beginnings"
                " JOIN pairs ON pairs.id = beginnings.pair ORDER BY number"
            ).fetchall()
        self._over = [number for number, _, _, _, over in found if over]
        return History(
            [Incarnation(*row[:3]) for row in found],
            [Beginning((stream, instance), *row) for stream, instance, *row in beginnings],
            {number: ended for number, _, _, ended, _ in found if ended is not None},
        )

    @property
    def over(self) -> Sequence[int]:
        """The incarnations whose servers are gone, and that end with ours."""
        return self._over

    def producers(self) -> Iterator[tuple[ProducerName, ProducerState, Iterator[Answer]]]:
        """Yield each producer with its answers, the one that was used last coming last."""
        mine = (self.held.number,)
        with self._writing.using() as connection:
            found = connection.execute(
                "SELECT name, epoch, sequence, used_ms FROM producers WHERE writer = %s"
                " ORDER BY used_ms",
                mine,
            ).fetchall()
            bodies = connection.execute(
                "SELECT producer, body FROM answers WHERE writer = %s ORDER BY producer, last", mine
            ).fetchall()
        answers = {
            name: [answer for _, body in rows for answer in decode_answers(body)]
            for name, rows in groupby(bodies, itemgetter(0))
        }
        for name, *state in found:
            yield name, ProducerState(*state), iter(answers.get(name, ()))

    def newest_ms(self) -> int | None:
        """Return the newest stamp of anything; None if there is nothing."""
        with self._writing.using() as connection:
            (newest,) = connection.execute(NEWEST).fetchone() or (None,)
        return None if newest is None else int(newest)

    def is_trimmed(self, pair: StoredPair) -> bool:
        """Return whether no blocks below the floor of *pair* are left to be removed."""
        with self._writing.using() as connection:
            found = connection.execute(
                "SELECT 1 FROM blocks WHERE pair = %s AND last <= %s LIMIT 1", (pair.id, pair.floor)
            ).fetchone()
        return found is None

    # --- in the reading thread -----------------------------------------------------------------

    def transactions(
        self, wanted: Sequence[tuple[StreamName, str]], since_ms: int
    ) -> dict[tuple[StreamName, str], Appended]:
        """Return what was answered to transaction ids, unless that was before *since_ms*."""
        with self._reading.using() as connection:
            return self._answered(connection, wanted, since_ms)

    def _answered(
        self, connection: Connection, wanted: Sequence[tuple[StreamName, str]], since_ms: int
    ) -> dict[tuple[StreamName, str], Appended]:
        found = connection.execute(
            "SELECT t.stream, t.id, t.instance, t.first, t.last FROM transactions AS t"
            " JOIN unnest(%s::text[], %s::text[]) AS asked (stream, id) USING (stream, id)"
            " WHERE t.written_ms >= %s",
            ([stream for stream, _ in wanted], [id_ for _, id_ in wanted], since_ms),
        ).fetchall()
        return {(row[0], row[1]): Appended(row[0], *row[2:]) for row in found}

    def transaction(
        self, stream: StreamName, transaction_id: str, since_ms: int
    ) -> Appended | None:
        """Return what was answered to a transaction id, unless that was before *since_ms*."""
        key = (stream, transaction_id)
        return self.transactions([key], since_ms).get(key)

    def oldest(self, pair: StoredPair, after: Token) -> Generator[tuple[Token, int, int, int]]:
        """Yield (last token, rows, bytes, time in ms) of the oldest blocks after *after*."""
        with self._reading.using() as connection:
            found = connection.execute(
                "SELECT last, rows, bytes, written_ms FROM blocks"
                " WHERE pair = %s AND last > %s ORDER BY last LIMIT %s",
                (pair.id, after, TRIMMED_BLOCKS),
            ).fetchall()
        yield from found

    def page(self, pair: StoredPair, after: Token, upto: Token) -> DiskPage:
        """Return the blocks that hold rows after *after*, as `Engine.page` says."""
        page = PageBuilder(
            pair, after, lambda: self._block_before(pair, after), self._damage_in_words
        )
        is_end = False
        while not is_end:
            found, is_end = self._blocks_after(pair, page.reached, upto)
            for place, (last, written_ms, crc, body, _) in enumerate(found):
                done = page.put(last, written_ms, crc, body)
                if done is not None:
                    if done.damage is None:
                        self._keep(pair, page.reached, found[place:])
                    return done
        with self._reading.using() as connection:
            (newest,) = connection.execute(
                "SELECT newest FROM pairs WHERE id = %s", (pair.id,)
            ).fetchone() or (0,)
            behind = (pair.id, upto, limits.MAX_TOKEN, 1)
            return page.ended(upto, newest, lambda: connection.execute(SELECT_BLOCKS, behind))

    def _blocks_after(
        self, pair: StoredPair, reached: Token, upto: Token
    ) -> tuple[list[tuple[Any, ...]], bool]:
        """Return the next blocks, some pages of them at a time, and whether these are the last."""
        kept = self._kept.pop((pair.id, reached), None)
        if kept is not None and kept[-1][0] <= upto:
            return kept, False
        wanted = (pair.id, reached, upto, _PAGE_BLOCKS, _PAGES * limits.PAGE_BYTES)
        with self._reading.using() as connection:
            found = connection.execute(SELECT_PAGE, wanted, binary=True).fetchall()
        return found, not found or len(found) == found[0][-1] < _PAGE_BLOCKS

    def _keep(self, pair: StoredPair, reached: Token, blocks: list[tuple[Any, ...]]) -> None:
        """Keep what has come for the next pages of who reads on."""
        self._kept[pair.id, reached] = blocks
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]

    def _block_before(self, pair: StoredPair, after: Token) -> Token:
        with self._reading.using() as connection:
            (last,) = connection.execute(
                "SELECT coalesce(max(last), 0) FROM blocks WHERE pair = %s AND last <= %s",
                (pair.id, after),
            ).fetchone() or (0,)
        return int(last)

    def _damage_in_words(self, what: str) -> str:
        return (
            f"{self.where}: {what}; restore the database, or leave it: the damage "
            "goes when retention reaches it"
        )

    # --- in the writing thread ----------------------------------------------------------------

    def write(self, commit: Commit) -> Freed:
        """Write *commit*, all or nothing, and return once it is committed.

        Raises:
            LogFenced: Another process has taken the name: nothing was, or ever will be written.
            KnownTransactions: Transaction ids of it have been answered; nothing was written.
            LogUnavailable: The database refused, or is away; nothing was written.
        """
        beginning = commit.begun is not None
        newest: dict[int, Token] = {}
        blocks = [self._row(newest, pair, block) for pair, block in commit.blocks]
        try:
            freed = self.commit(
                lambda connection, number: self._write(
                    connection, commit, number, blocks, newest, beginning=beginning
                ),
                lambda connection: self._freed(connection, commit),
                beginning=beginning,
            )
        except LogUnavailable as error:
            if isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate == KNOWN:
                raise self._known(commit) from None
            raise
        self._count(commit, freed)
        self._newest |= newest
        return freed

    def _row(self, newest: dict[int, Token], pair: int, block: Block) -> tuple[Any, ...]:
        """Return what is inserted for *block*, which is the newest of its pair then."""
        body = encode_block(block, newest.get(pair) or self._newest.get(pair) or None)
        newest[pair] = block.last
        size = len(block.lines)
        return pair, block.last, len(block.tokens), size, block.written_ms, crc32(body), body

    def renew(self) -> None:
        """Keep the lease while nothing is written, and see whether the database is there.

        Raises:
            LogFenced: Another process has taken the name.
            LogUnavailable: The database refused, or is away.
        """
        _ = self.write(Commit())

    def _write(
        self,
        connection: Connection,
        commit: Commit,
        number: int,
        blocks: Sequence[tuple[Any, ...]],
        newest: Mapping[int, Token],
        *,
        beginning: bool,
    ) -> Freed:
        execute = connection.execute
        mine = self.held.number
        moved = bool(commit.blocks or commit.pairs or beginning)
        with connection.pipeline():
            if not beginning:  # its transaction is open
                execute("BEGIN")
            self.fence(connection, number)
            trims = [
                execute(
                    TRIM,
                    {
                        "pair": pair,
                        "floor": floor,
                        "blocks": TRIMMED_BLOCKS,
                        "size": TRIMMED_BYTES,
                    },
                )
                for pair, floor in commit.trims.items()
            ]
            if commit.expire_before_ms is not None:
                execute(DELETE_TRANSACTIONS, (commit.expire_before_ms, EXPIRED_AT_ONCE))
            self._write_producers(connection, commit)
            if commit.pairs:
                rows = [
                    (
                        *(p.id, p.stream, p.instance, p.position, p.floor, p.rows, p.size_bytes),
                        newest.get(p.id, 0),
                    )
                    for p in commit.pairs
                ]
                execute(UPSERT_PAIRS, (self.writer, *_columns(rows)))
            if blocks:
                execute(INSERT_BLOCKS, _columns(blocks))
            if commit.transactions:
                asked = sorted(commit.transactions, key=itemgetter(0, 1))
                now_ms = asked[0][3]
                execute(
                    "SELECT remember(%s, %s, %s, %s, %s, %s, %s)",
                    (
                        [stream for stream, _, _, _ in asked],
                        [id_ for _, id_, _, _ in asked],
                        [answer.instance for _, _, answer, _ in asked],
                        [answer.first for _, _, answer, _ in asked],
                        [answer.last for _, _, answer, _ in asked],
                        now_ms,
                        now_ms - self._transaction_age_ms,
                    ),
                )
            if commit.staged:
                execute("DELETE FROM staged WHERE id = ANY (%s::bigint[])", (commit.staged,))
            for id_, reason in commit.refused.items():
                execute(REFUSE, (id_, reason))
            if commit.begun is not None:
                self._begin(connection, *commit.begun, commit.oldest_incarnation)
            if moved:
                execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(mine)))
            execute("COMMIT")
        freed = Freed()
        for (pair, floor), cursor in zip(commit.trims.items(), trims, strict=True):
            rows, size, unfinished = cursor.fetchone() or (0, 0, False)
            freed.trimmed.append((pair, rows, size))
            if unfinished:
                freed.unfinished[pair] = floor
        return freed

    def _write_producers(self, connection: Connection, commit: Commit) -> None:
        mine = self.held.number
        if commit.forgotten:
            names = list(commit.forgotten)
            connection.execute(
                "DELETE FROM answers WHERE writer = %s AND producer = ANY (%s)", (mine, names)
            )
            connection.execute(
                "DELETE FROM producers WHERE writer = %s AND name = ANY (%s)", (mine, names)
            )
        if commit.producers:
            rows = [(name, *state) for name, state in commit.producers.items()]
            connection.execute(UPSERT_PRODUCERS, (mine, *_columns(rows)))
        if commit.answers:
            names = list(commit.answers)
            lasts = [given[-1].last for given in commit.answers.values()]
            bodies = [encode_answers(given) for given in commit.answers.values()]
            connection.execute(UPSERT_ANSWERS, (mine, names, lasts, bodies))
            kept = [last - ANSWERS_KEPT for last in lasts]
            connection.execute(DELETE_ANSWERS, (names, kept, mine))

    def _begin(
        self, connection: Connection, begun: Incarnation, noted: list[Beginning], oldest: int
    ) -> None:
        execute = connection.execute
        execute(
            "INSERT INTO incarnations (number, id, began_ms, writer) VALUES (%s, %s, %s, %s)",
            (*begun, self.held.number),
        )
        if noted:
            execute(
                "INSERT INTO beginnings (pair, number, token) SELECT id, %s, t"
                " FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS new (s, n, t)"
                " JOIN pairs ON stream = s AND instance = n",
                (
                    begun.number,
                    [pair[0] for pair, _, _ in noted],
                    [pair[1] for pair, _, _ in noted],
                    [token for _, _, token in noted],
                ),
            )
        # who was found gone, and comes back, writes nothing more
        execute(
            "UPDATE writers SET epoch = epoch + 1 WHERE number <> %s AND number IN"
            " (SELECT writer FROM incarnations WHERE number = ANY (%s::bigint[]))",
            (self.held.number, self._over),
        )
        execute(
            "UPDATE incarnations SET ended = %s WHERE number = ANY (%s::bigint[])",
            (begun.number, self._over),
        )
        execute("DELETE FROM incarnations WHERE number < %s", (oldest,))
        execute(DELETE_BEGINNINGS, (oldest,))

    def _known(self, commit: Commit) -> KnownTransactions:
        """Return which transaction ids of *commit* have been answered, by another server."""
        asked = [(stream, id_) for stream, id_, _, _ in commit.transactions]
        since_ms = commit.transactions[0][3] - self._transaction_age_ms
        with self._writing.using() as connection:
            return KnownTransactions(self._answered(connection, asked, since_ms))

    def _freed(self, connection: Connection, commit: Commit) -> Freed:
        """Return what a commit freed that went through, though its answer was lost."""
        freed = Freed(unfinished=dict(commit.trims))
        added = {pair.id: (pair.rows, pair.size_bytes) for pair in commit.pairs}
        found = connection.execute(
            "SELECT id, rows, bytes FROM pairs WHERE id = ANY (%s::bigint[])", (list(commit.trims),)
        ).fetchall()
        for pair, rows, size in found:
            (held_rows, held_bytes), (new_rows, new_bytes) = (
                self._sizes[pair],
                added.get(pair, (0, 0)),
            )
            freed.trimmed.append((pair, held_rows + new_rows - rows, held_bytes + new_bytes - size))
        return freed

    def _count(self, commit: Commit, freed: Freed) -> None:
        for pair in commit.pairs:
            rows, size = self._sizes.get(pair.id, (0, 0))
            self._sizes[pair.id] = rows + pair.rows, size + pair.size_bytes
        for number, gone_rows, gone_bytes in freed.trimmed:
            rows, size = self._sizes[number]
            self._sizes[number] = rows - gone_rows, size - gone_bytes

    # --- other servers ------------------------------------------------------------------------

    def news(self, newest: int) -> NewsReader:
        """Return what reads, in a thread of its own, what others write.

        Args:
            newest: The number of our incarnation.
        """
        return NewsReader(self._looking, self.writer, newest)

    def listener(self, call: Callable[[], object]) -> Listener:
        """Return what calls, in its own thread, when others have written."""
        return Listener(Link(self._url, self._name), str(self.held.number), call)

    # --- when neither is at work --------------------------------------------------------------

    def close(self) -> None:
        """Give the name back, and close every connection."""
        self.release()
        self._reading.close()
        self._looking.close()


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of *rows*, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]
