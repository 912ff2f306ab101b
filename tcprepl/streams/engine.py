"""What a log asks of the database that holds it, and the pieces that go in and out.

`tcprepl.streams.stored.StoredLog` is the log; an `Engine` is the SQLite file or the PostgreSQL
database below it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tcprepl.ids import InstanceName, ProducerName, StreamName, Token
from tcprepl.streams.history import Beginning, History, Incarnation
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.producers import Answer, ProducerState

#: Most pairs of which one commit removes blocks, most blocks of each, and bytes of lines in all: a
#: publish that comes meanwhile waits for that, and not for millions of rows.
TRIMMED_PAIRS = 100
TRIMMED_BLOCKS = 1_000
TRIMMED_BYTES = 524_288
#: Expired transaction ids removed in one commit: more than a minute brings.
EXPIRED_AT_ONCE = 50_000


class KnownTransactions(Exception):
    """Transaction ids of a commit were answered by another server meanwhile; nothing is written.

    Attributes:
        answers: What was answered to each.
    """

    def __init__(self, answers: Mapping[tuple[StreamName, str], Appended]) -> None:
        super().__init__(f"{len(answers)} transaction ids are taken")
        self.answers = answers


@dataclass(slots=True)
class StoredPair:
    """A row of ``pairs``.

    Attributes:
        writer: The server that writes it, where there are several.
    """

    id: int
    stream: StreamName
    instance: InstanceName
    position: Token
    floor: Token
    rows: int = 0
    size_bytes: int = 0
    writer: str = ""


@dataclass(slots=True)
class Commit:
    """What is written in one transaction.

    Attributes:
        pairs: The position and the floor of each pair that moved; rows and bytes are added.
        blocks: (id of the pair, block).
        trims: Id of a pair, and the floor up to which its blocks go, a bounded part at a time.
        shrink: Whether the file gives some pages back that it does not need any more.
        transactions: (stream, transaction id, answer, time in ms).
        expire_before_ms: Transaction ids from before this time go; None leaves them.
        producers: The state of each producer that was used; what is older than what the disk
            has changes nothing.
        answers: What is answered to each producer, in the order of its numbers.
        at_once: Those of *answers* that were given without waiting for this.
        forgotten: Producers that go, before all else.
        staged: What is taken of what was published in the database, where that can be.
        refused: What of it no reader could read, with the reason.
        begun: What `History.begin` returned.
        oldest_incarnation: The number of the oldest incarnation that is remembered.
    """

    pairs: list[StoredPair] = field(default_factory=list)
    blocks: list[tuple[int, Block]] = field(default_factory=list)
    trims: dict[int, Token] = field(default_factory=dict)
    shrink: bool = False
    transactions: list[tuple[StreamName, str, Appended, int]] = field(default_factory=list)
    expire_before_ms: int | None = None
    producers: dict[ProducerName, ProducerState] = field(default_factory=dict)
    answers: dict[ProducerName, list[Answer]] = field(default_factory=dict)
    at_once: dict[ProducerName, list[Answer]] = field(default_factory=dict)
    forgotten: set[ProducerName] = field(default_factory=set)
    staged: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    begun: tuple[Incarnation, list[Beginning]] | None = None
    oldest_incarnation: int = 1

    def note(self, name: ProducerName, state: ProducerState) -> None:
        """Write that *state* of a producer, or what is newer in one noted before."""
        known = self.producers.get(name, state)
        self.producers[name] = ProducerState(*map(max, known, state))

    @property
    def cleans(self) -> bool:
        """Whether something has to go that is in the database."""
        return bool(self.trims or self.shrink or self.expire_before_ms is not None)

    def __bool__(self) -> bool:
        return bool(
            self.pairs
            or self.blocks
            or self.cleans
            or self.transactions
            or self.producers
            or self.forgotten
            or self.staged
            or self.refused
            or self.begun is not None
        )


@dataclass(slots=True)
class Freed:
    """What a commit freed, and what is left for later ones.

    Attributes:
        trimmed: Id of a pair, rows and bytes that went.
        unfinished: The trims of which blocks are left, as in `Commit.trims`.
        spare: Whether the file has pages that it could give back.
        shrunk: Whether it has given back the last of them.
        damaged: What could not be freed for damage, in words, and the id of its pair if it has one.
    """

    trimmed: list[tuple[int, int, int]] = field(default_factory=list)
    unfinished: dict[int, Token] = field(default_factory=dict)
    spare: bool = False
    shrunk: bool = False
    damaged: list[tuple[int | None, str]] = field(default_factory=list)


class Engine(Protocol):
    """A database that holds a log.

    `write` is called in the writing thread, `page` in the reading one, all else in the reactor's;
    the first four before anything is written.

    Attributes:
        first_id: The lowest id that a new pair may get.
        over: Which incarnations are over when ours begins; None if all of them are.
    """

    @property
    def first_id(self) -> int: ...  # noqa: D102 - see the class
    @property
    def over(self) -> Collection[int] | None: ...  # noqa: D102

    def pairs(self) -> list[StoredPair]:
        """Return every pair that is stored."""
        ...

    def history(self) -> History:
        """Return the incarnations that were noted; none of them is current yet."""
        ...

    def producers(self) -> Iterator[tuple[ProducerName, ProducerState, Iterator[Answer]]]:
        """Yield each producer with its answers, the one that was used last coming last."""
        ...

    def newest_ms(self) -> int | None:
        """Return the newest stamp of anything; None if there is nothing."""
        ...

    def is_trimmed(self, pair: StoredPair) -> bool:
        """Return whether no blocks below the floor of *pair* are left to be removed."""
        ...

    def transaction(
        self, stream: StreamName, transaction_id: str, since_ms: int
    ) -> Appended | None:
        """Return what was answered to a transaction id, unless that was before *since_ms*."""
        ...

    def oldest(self, pair: StoredPair, after: Token) -> Generator[tuple[Token, int, int, int]]:
        """Yield (last token, rows, bytes, time in ms) of the blocks after *after*."""
        ...

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
        ...

    def write(self, commit: Commit) -> Freed:
        """Write *commit*, all or nothing, and return once it is as safe as the engine makes it.

        Raises:
            LogUnavailable: it refused; nothing was written.
            LogCorrupt: the database is damaged; nothing was written.
        """
        ...

    def close(self) -> None:
        """Close every connection, once neither thread is at work."""
        ...
