"""What the other servers of a database have written: read, and heard of.

`NewsReader` reads, in a thread of its own, what was committed since it last looked: whole blocks of
the pairs of other servers, where these pairs stand, incarnations that began or ended. All of it is
of one moment. `Listener` is the one connection of a process that listens: it calls when
another server has committed, and now and then if it heard nothing, for a notification may get lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tcprepl.errors import LogError
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.storage.postgresql import Link
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.history import Beginning, Incarnation
from tcprepl.streams.holding import Holder
from tcprepl.streams.log import Block
from tcprepl.streams.paging import opened
from tcprepl.streams.postgres_schema import CHANNEL, HOLDERS, STAGED

logger = get_logger(__name__)

#: How long to wait for a notification before looking all the same.
POLL_S: Final = 1.0
#: How often it is read who holds each instance.
HOLDERS_S: Final = 0.9
#: Bytes of blocks that are read in one go; what is left is read next.
NEWS_BYTES: Final = 8 * 1024 * 1024
_NEWS_BLOCKS: Final = 64
#: Calls of ``tcprepl_publish`` that are taken at once, and the rest of their transactions.
STAGED_CALLS: Final = 1_000

_PAIRS = (
    "SELECT id, stream, instance, position, floor, rows, bytes, writer FROM pairs"
    " WHERE writer <> %s ORDER BY id"
)
_BLOCKS = (
    "SELECT last, written_ms, crc, body FROM blocks"
    " WHERE pair = %s AND last > %s AND last <= %s ORDER BY last LIMIT %s"
)
_INCARNATIONS = (
    "SELECT number, id, began_ms, ended FROM incarnations"
    " WHERE number > %s OR ended > %s ORDER BY number"
)
_BEGINNINGS = (
    "SELECT stream, instance, number, token FROM beginnings"
    " JOIN pairs ON pairs.id = beginnings.pair WHERE number > %s ORDER BY number"
)


class Staged(NamedTuple):
    """What one call of ``tcprepl_publish`` gave.

    Attributes:
        id: Its place.
        stream: The stream.
        instance: The instance.
        batch: Whether all rows share a token.
        rows: The rows, as a JSON array.
    """

    id: int
    stream: StreamName
    instance: InstanceName
    batch: bool
    rows: str


@dataclass(slots=True)
class News:
    """What was committed since the last look.

    Attributes:
        pairs: The pairs of others that moved, with where they are, and the blocks up to there.
            Where more follow, a position is that of the last block.
        damaged: The last block of a pair, by its id, that is not what was written.
        incarnations: Those that began.
        beginnings: Where.
        staged: What was published to us in SQL and not taken yet, in order.
        ends: Those that ended, with the number of the one at whose beginning.
        elsewhere: Pairs that were met and are not wanted.
        holders: Who holds each instance; None where that was read a moment ago.
        more: Whether there is more to read at once.
    """

    pairs: list[tuple[StoredPair, list[Block]]] = field(default_factory=list)
    damaged: dict[int, Gap] = field(default_factory=dict)
    incarnations: list[Incarnation] = field(default_factory=list)
    beginnings: list[Beginning] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    staged: list[Staged] = field(default_factory=list)
    elsewhere: list[StoredPair] = field(default_factory=list)
    holders: list[Holder] | None = None
    more: bool = False


class NewsReader:
    """Reads what others have written, each row once and in order.

    Args:
        link: The connection.
        mine: The name of our writer.
        newest: The number of our incarnation: those up to it are known.
    """

    def __init__(self, link: Link, mine: str, newest: int) -> None:
        self._link = link
        self._mine = mine
        self._newest = newest
        self._seen: dict[int, tuple[Token, Token]] = {}
        self._held_at = float("-inf")

    def begin(self, pair: StoredPair) -> None:
        """Note where a pair of another server stands that is known already."""
        self._seen[pair.id] = pair.position, pair.floor

    def read(self, wanted: Callable[[Pair], bool], *, take: bool = False) -> News:
        """Return what is new; what fails is read the next time.

        Args:
            wanted: Whether the rows of a pair are to be read.
            take: Whether what was published in SQL is wanted; not while some is being taken.

        Raises:
            LogError: The database refuses, or is away.
        """
        news = News()
        seen = dict(self._seen)
        with self._link.using() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            newest = self._newest
            for number, id_, began_ms, ended in connection.execute(
                _INCARNATIONS, (newest, newest)
            ).fetchall():
                if number > newest:
                    news.incarnations.append(Incarnation(number, id_, began_ms))
                if ended is not None:
                    news.ends[number] = ended
            if news.incarnations:
                found = connection.execute(_BEGINNINGS, (newest,)).fetchall()
                news.beginnings = [Beginning((row[0], row[1]), row[2], row[3]) for row in found]
            left = NEWS_BYTES
            for row in connection.execute(_PAIRS, (self._mine,)).fetchall():
                pair = StoredPair(*row)
                position, floor = seen.get(pair.id, (0, 0))
                if (pair.position, pair.floor) == (position, floor) and pair.id in seen:
                    continue
                if not wanted((pair.stream, pair.instance)):
                    if pair.id not in seen:
                        news.elsewhere.append(pair)
                        seen[pair.id] = 0, 0
                    continue
                blocks: list[Block] = []
                after = max(position, pair.floor)
                while after < pair.position and left > 0:
                    found = connection.execute(
                        _BLOCKS, (pair.id, after, pair.position, _NEWS_BLOCKS), binary=True
                    ).fetchall()
                    for last, written_ms, crc, body in found:
                        try:
                            block, before = opened(pair, last, written_ms, crc, body)
                        except ValueError as error:
                            news.damaged[pair.id] = Gap(after, last, Cause.DAMAGE, str(error))
                            after = last
                            break
                        if before is not None and before > after:
                            text = f"no block has the rows up to token {before}"
                            news.damaged[pair.id] = Gap(after, before, Cause.DAMAGE, text)
                            after = before
                            break
                        after = last
                        blocks.append(block)
                        left -= len(block.lines)
                        if left <= 0:
                            break
                    else:
                        if len(found) < _NEWS_BLOCKS:
                            after = pair.position
                        continue
                    break
                if after < pair.position:
                    news.more = True
                    pair.position = after
                seen[pair.id] = pair.position, pair.floor
                news.pairs.append((pair, blocks))
            if take:
                asked = {"writer": self._mine, "most": STAGED_CALLS}
                news.staged = [Staged(*row) for row in connection.execute(STAGED, asked).fetchall()]
            if time.monotonic() - self._held_at >= HOLDERS_S:
                news.holders = [Holder(*row) for row in connection.execute(HOLDERS).fetchall()]
                self._held_at = time.monotonic()
            connection.execute("COMMIT")
        self._seen = seen
        self._newest = max([newest, *(known.number for known in news.incarnations)])
        return news


class Listener:
    """Calls when another server has committed, in a thread of its own.

    Args:
        link: The connection.
        mine: What our own notifications say.
        call: Called, in that thread, when it is time to look.
        poll_s: How often to look all the same.
    """

    def __init__(
        self, link: Link, mine: str, call: Callable[[], object], poll_s: float = POLL_S
    ) -> None:
        self._link = link
        self._mine = mine
        self._call = call
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcprepl-listen", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._link.using() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._tell()
                    while not self._stopped.is_set():
                        heard = list(connection.notifies(timeout=self._poll_s, stop_after=1))
                        if not heard or any(note.payload != self._mine for note in heard):
                            self._tell()
            except LogError as error:
                logger.debug("postgresql.listen_failed", reason=str(error))
                self._stopped.wait(self._poll_s)
        self._link.close()

    def _tell(self) -> None:
        if not self._stopped.is_set():
            self._call()

    def stop(self) -> None:
        """End soon; nobody waits for that."""
        self._stopped.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()
