"""The SQLite file of a log: its schema, what the writer thread does, how blocks are read.

One row of ``blocks`` is one committed block: its body is msgpack of the tokens and of the very
lines that went out, and of the last token of the block before it, with a CRC-32 of all that.
``pairs`` has the position of each (stream, instance), or for an ephemeral stream the highest
token that may have been given out, and the last token of the newest block: so a block that is
not there any more is missed. ``incarnations`` and ``beginnings`` are the log's `History`;
``producers`` and ``answers`` are written together with the rows that they speak of
(`tcprepl.streams.producers`). Two connections are in use: one that writes, in the writer
thread, and one that reads, in the reactor's; WAL keeps them out of each other's way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from zlib import crc32

from tcprepl import limits
from tcprepl.errors import LogError, LogUnavailable
from tcprepl.ids import ProducerName, StreamName, Token
from tcprepl.storage.sqlite import checked, explained, open_database, open_reader
from tcprepl.streams.block_store import BlockRow, prepare, write_blocks
from tcprepl.streams.bodies import encode_block
from tcprepl.streams.damaged_file import end_of_damage, is_between, oldest_blocks
from tcprepl.streams.engine import Commit, Freed, StoredPair
from tcprepl.streams.history import Beginning, History, Incarnation
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.paging import PageBuilder
from tcprepl.streams.pair_store import read_pairs, token_of
from tcprepl.streams.producer_store import read_producers, write_producers
from tcprepl.streams.producers import Answer, ProducerState
from tcprepl.streams.sqlite_schema import (
    DATABASE_NAME,
    DELETE_BEGINNINGS,
    ENDED,
    INSERT_BEGINNING,
    INSERT_TRANSACTION,
    NEWEST,
    SCHEMA,
    SELECT_BEFORE,
    SELECT_BLOCKS,
    SELECT_NEWEST,
    UPSERT_PAIR,
)
from tcprepl.streams.trimming import Trimming

#: Of a row of ``pairs``: what a damaged file gives back may be of others.
_INCARNATION_TYPES = [int, str, int]
_BEGINNING_TYPES = [str, str, int, int]
_TRANSACTION_TYPES = [str, int, int]


def _block_before(connection: sqlite3.Connection, pair: StoredPair, after: Token) -> Token:
    """Return the last token of a block up to *after*, or *after* if the file does not tell."""
    try:
        found = connection.execute(SELECT_BEFORE, (pair.id, after)).fetchone()
    except sqlite3.DatabaseError:  # a broken page of the file may hold that, too
        return after
    return token_of(found)


class Database:
    """Both connections to the file; `write` is for the writer thread, the rest is not.

    Attributes:
        first_id: The lowest id of a pair.
        over: None: all incarnations of before are over.
        named: The file, as who reads of it knows it.
    """

    first_id = 1
    over = None

    def __init__(self, directory: Path, named: Path | None = None) -> None:
        """Open the database of *directory*, which is created if need be.

        Args:
            directory: Where it is.
            named: The file it is a copy of, if it is one.

        Raises:
            LogCorrupt: the file is not what we wrote.
            LogTooNew: a newer version of tcprepl wrote it.
            LogUnavailable: it cannot be opened or written.
        """
        self.directory = directory
        self.path = directory / DATABASE_NAME
        self.named = named or self.path
        self._writer: sqlite3.Connection | None = self._connect()
        self._reader: sqlite3.Connection | None = None
        self._page_reader: sqlite3.Connection | None = None
        #: By id of the pair, as ``pairs`` has it; for the writer thread.
        self._newest: dict[int, Token] = {}
        self._trimming = Trimming()
        try:
            self._reader = self._connect_reader()
        except LogError:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        return prepare(open_database(self.path, SCHEMA))

    def _connect_reader(self) -> sqlite3.Connection:
        return open_reader(self.path, SCHEMA)

    def explained(self, error: sqlite3.Error) -> LogError:
        """Return *error* as one of ours that says what to do."""
        return explained(error, self.named, SCHEMA)

    # --- in the reactor's thread ----------------------------------------------------------

    @property
    def _read_connection(self) -> sqlite3.Connection:
        if self._reader is None:
            raise LogUnavailable("the log is closed")
        return self._reader

    def pairs(self) -> list[StoredPair]:
        """Return every row of ``pairs``."""
        try:
            return read_pairs(self._read_connection)
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def history(self) -> History:
        """Return the incarnations that were noted; none of them is current yet."""
        try:
            incarnations = self._read_connection.execute(
                f"SELECT number, id, began_ms, {ENDED}"  # noqa: S608 - of our own constants
                " FROM incarnations ORDER BY number"
            ).fetchall()
            beginnings = self._read_connection.execute(
                "SELECT stream, instance, number, token FROM beginnings"
                " JOIN pairs ON pairs.id = beginnings.pair ORDER BY number"
            )
            named = checked((row[:3] for row in incarnations), _INCARNATION_TYPES, "incarnations")
            ended = [(row[0], row[3]) for row in incarnations if row[3] is not None]
            noted = checked(beginnings, _BEGINNING_TYPES, "beginnings")
            return History(
                [Incarnation(*row) for row in named],
                [Beginning((stream, instance), *row) for stream, instance, *row in noted],
                dict(checked(ended, [int, int], "incarnations")),
            )
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def producers(self) -> Iterator[tuple[ProducerName, ProducerState, Iterator[Answer]]]:
        """Yield each producer with its answers, the one that was used last coming last."""
        try:
            yield from read_producers(self._read_connection)
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def newest_ms(self) -> int | None:
        """Return the newest stamp of anything; None if there is nothing."""
        try:
            (newest,) = self._read_connection.execute(NEWEST).fetchone()
            for _ in checked([] if newest is None else [(newest,)], [int], "times (written_ms)"):
                return int(newest)
        except sqlite3.Error as error:
            raise self.explained(error) from error
        return None

    def transaction(
        self, stream: StreamName, transaction_id: str, since_ms: int
    ) -> Appended | None:
        """Return what was answered to a transaction id, unless that was before *since_ms*."""
        try:
            found = self._read_connection.execute(
                "SELECT instance, first, last FROM transactions"
                " WHERE stream = ? AND id = ? AND written_ms >= ?",
                (stream, transaction_id, since_ms),
            ).fetchall()
            for row in checked(found, _TRANSACTION_TYPES, "transactions"):
                return Appended(stream, *row)
        except sqlite3.Error as error:
            raise self.explained(error) from error
        return None

    def oldest(self, pair: StoredPair, after: Token) -> Generator[tuple[Token, int, int, int]]:
        """Yield (last token, rows, bytes, time in ms) of the blocks after *after*.

        What cannot be read is a block of nothing that is older than all: it goes in its turn.
        """
        try:
            yield from oldest_blocks(self._read_connection, pair.id, after, pair.position)
        except sqlite3.Error as error:
            raise self.explained(error) from error

    # --- in the reading thread ------------------------------------------------------------

    def page(self, pair: StoredPair, after: Token, upto: Token) -> DiskPage:
        """Return the blocks that hold rows after *after*: one, or more that fit a page.

        Args:
            pair: The pair.
            after: Exclusive lower bound, at least the floor.
            upto: The position: what is above it has not been published yet.

        Returns:
            The page; before a block that is not what was written it ends, and says so.

        Raises:
            LogUnavailable: the disk refuses.
        """
        if self._page_reader is None:
            self._page_reader = self._connect_reader()
        try:
            return self._page(self._page_reader, pair, after, upto)
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def _page(
        self,
        connection: sqlite3.Connection,
        pair: StoredPair,
        after: Token,
        upto: Token,
        most: int = -1,
    ) -> DiskPage:
        """Return a page of at most *most* blocks; of as many as fit if that is negative."""
        page = PageBuilder(
            pair, after, lambda: _block_before(connection, pair, after), self._damage_in_words
        )
        with closing(connection.cursor()) as cursor:
            try:
                cursor.execute(SELECT_BLOCKS, (pair.id, after, upto, most))
                for last, written_ms, crc, body in cursor:
                    if not is_between(page.reached, last, upto):
                        # the index of the file is not that of its rows
                        if page.blocks:
                            return page.so_far()
                        end = end_of_damage(connection, pair.id, after, upto)
                        return page.damaged(end, f"a block ends at {last!r}, which it cannot")
                    done = page.put(last, written_ms, crc, body)
                    if done is not None:
                        return done
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                # SQLite looks one row ahead: what is there may be well, if looked at alone.
                if page.blocks:
                    return page.so_far()
                if most != 1:
                    return self._page(connection, pair, after, upto, most=1)
                end = end_of_damage(connection, pair.id, after, upto)
                return page.damaged(end, str(error))
        if page.blocks and most == 1:
            return page.so_far()
        return self._ended(connection, pair, page, upto)

    def _ended(
        self, connection: sqlite3.Connection, pair: StoredPair, page: PageBuilder, upto: Token
    ) -> DiskPage:
        """Return *page* up to *upto*, unless what comes behind says that rows are missing."""
        try:
            newest = token_of(connection.execute(SELECT_NEWEST, (pair.id,)).fetchone())
            behind = (pair.id, upto, limits.MAX_TOKEN, 1)
            return page.ended(upto, newest, lambda: connection.execute(SELECT_BLOCKS, behind))
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return page.ended(upto, 0, tuple)  # what comes behind is damaged itself

    def _damage_in_words(self, what: str) -> str:
        return (
            f"{self.named}: {what}; put a good copy of the directory in its place "
            "(`tcprepl restore`), or leave it: the damage goes when retention reaches it"
        )

    def is_trimmed(self, pair: StoredPair) -> bool:
        """Return whether no blocks below the floor of *pair* are left to be removed."""
        try:
            found = self._read_connection.execute(
                "SELECT 1 FROM blocks WHERE pair = ? AND last <= ? LIMIT 1", (pair.id, pair.floor)
            ).fetchone()
        except sqlite3.OperationalError as error:
            raise self.explained(error) from error
        except sqlite3.DatabaseError:
            return False  # there may be some behind the damage
        return found is None

    # --- in the writer thread -------------------------------------------------------------

    def write(self, commit: Commit) -> Freed:
        """Write *commit*, all or nothing, and return once it is on disk.

        Raises:
            LogUnavailable: the disk refused; nothing was written.
            LogCorrupt: the database is damaged; nothing was written.
        """
        try:
            try:
                return self._write(commit, clean=True)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                if not commit.cleans:
                    raise
            self._undo()
            # Who waits is served, whatever a damaged file keeps of what has to go.
            self._write(commit, clean=False)
            return self._clean_around(commit)
        except BaseException as error:
            self._undo()
            if isinstance(error, sqlite3.Error):
                raise self.explained(error) from error
            raise

    def _clean_around(self, commit: Commit) -> Freed:
        """Remove what *commit*, which is on disk, says has to go, from a file that is damaged."""
        freed = Freed()
        try:
            self._trimming.clean_around(self._connected(), commit, freed)
        except sqlite3.Error:  # the disk refuses: what was written is written, the rest comes again
            self._undo()
            done = {pair for pair, *_ in freed.trimmed}
            freed.unfinished |= {p: floor for p, floor in commit.trims.items() if p not in done}
            freed.spare |= commit.shrink
        return self._settled(freed)

    def _write(self, commit: Commit, *, clean: bool) -> Freed:
        """Write *commit* in one transaction, with what has to go or without."""
        connection = self._connected()
        newest: dict[int, Token] = {}
        rows = [self._row(connection, newest, pair, block) for pair, block in commit.blocks]
        connection.execute("BEGIN IMMEDIATE")
        freed = self._trimming.clean(connection, commit) if clean else Freed()
        write_producers(connection, commit.producers, commit.answers, commit.forgotten)
        connection.executemany(
            UPSERT_PAIR,
            [
                (
                    p.id,
                    p.stream,
                    p.instance,
                    p.position,
                    p.floor,
                    p.rows,
                    p.size_bytes,
                    newest.get(p.id, 0),
                )
                for p in commit.pairs
            ],
        )
        write_blocks(connection, rows)
        connection.executemany(
            INSERT_TRANSACTION,
            [
                (stream, id_, answer.instance, answer.first, answer.last, now_ms)
                for stream, id_, answer, now_ms in commit.transactions
            ],
        )
        if commit.begun is not None:
            self._begin(connection, *commit.begun, commit.oldest_incarnation)
        if clean and (commit.shrink or commit.trims):
            self._trimming.shrink(connection, freed)
        connection.execute("COMMIT")
        self._newest |= newest
        return self._settled(freed)

    def _row(
        self,
        connection: sqlite3.Connection,
        newest: dict[int, Token],
        pair: int,
        block: Block,
    ) -> BlockRow:
        """Return what is inserted for *block*, which is the newest of its pair then."""
        before = newest.get(pair) or self._newest.get(pair)
        if before is None:
            before = token_of(connection.execute(SELECT_NEWEST, (pair,)).fetchone())
        newest[pair] = block.last
        body = encode_block(block, before or None, compressed=True)
        size = len(block.lines)
        return pair, block.last, len(block.tokens), size, block.written_ms, crc32(body), body

    def _begin(
        self,
        connection: sqlite3.Connection,
        begun: Incarnation,
        noted: list[Beginning],
        oldest: int,
    ) -> None:
        connection.execute(
            "INSERT INTO incarnations (number, id, began_ms) VALUES (?, ?, ?)", begun
        )
        connection.executemany(
            INSERT_BEGINNING, [(number, token, *pair) for pair, number, token in noted]
        )
        connection.execute("DELETE FROM incarnations WHERE number < ?", (oldest,))
        connection.execute(DELETE_BEGINNINGS, (oldest,))

    def _settled(self, freed: Freed) -> Freed:
        """Let the system have the pages that were given back, once that was the last of them.

        They are the file's until its WAL is copied into it, which else comes with the next
        thousand pages that are written.
        """
        if freed.shrunk:
            with suppress(sqlite3.Error):  # it is on disk, wherever
                self._connected().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return freed

    def _connected(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = self._connect()
        return self._writer

    def _undo(self) -> None:
        """Roll back; if even that fails, begin with a new connection next time."""
        connection = self._writer
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._writer = None
            with suppress(sqlite3.Error):
                connection.close()

    # --- when neither is at work ----------------------------------------------------------

    def close(self) -> None:
        """Close every connection."""
        for connection in (self._reader, self._page_reader, self._writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        self._reader = self._page_reader = self._writer = None
