"""The log of a stream: what every store promises (protocol.md section 7).

A stream is a log. Per (stream, instance) there is an ordered sequence of *(token, row)*;
tokens only grow, across restarts too; rows that share a token are a *batch* and are never
parted. Intervals are half-open: ``(after, upto]``.

Rows enter as JSON bytes and are rendered once, on append, into the very lines that go out
on the wire in the newest dialect (``RDATA stream instance token row``). A `Block` is what
one append made; the hub fans the same bytes out to everybody, and reading back is slicing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from operator import add
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName, Token
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.history import History
from tcprepl.streams.holding import DatabaseStatus
from tcprepl.streams.lineage import Places

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from tcprepl.streams.cursor import Cursor
    from tcprepl.streams.producers import Produced, ProducerState
    from tcprepl.streams.retention import Retention


class Block(Struct, gc=False, eq=False):
    """The rows of one append, rendered: immutable, and shared by everybody who sends it.

    A log holds many, and nothing in them refers back: the garbage collector, which holds the
    whole process while it looks, passes them over.

    Attributes:
        stream: Name of the stream.
        instance: Name of the instance that wrote it.
        tokens: The token of each row, ascending; the rows of a batch repeat theirs.
        lines: All RDATA lines, each ended by LF.
        written_ms: Wall-clock time of the append in ms since 1970.
        keys: The key of each row, where it is known already (`JsonRows.keys`).
    """

    stream: StreamName
    instance: InstanceName
    tokens: Sequence[Token]
    lines: bytes
    written_ms: int
    keys: Sequence[str] | None = None
    _ends: Sequence[int] | None = None

    @property
    def first(self) -> Token:
        """Token of the first row."""
        return self.tokens[0]

    @property
    def last(self) -> Token:
        """Token of the last row."""
        return self.tokens[-1]

    @property
    def ends(self) -> Sequence[int]:
        """For each row the offset in *lines* just past its LF.

        Nearly all blocks are sent whole, and nobody asks.
        """
        if self._ends is None:
            self._ends = line_ends(self.lines)
        return self._ends


#: Why rows are gone that everybody has who was to have them.
ACKNOWLEDGED: Final = "acknowledged"


class Appended(Struct, frozen=True, gc=False):
    """What an append answers: the tokens that its rows got."""

    stream: StreamName
    instance: InstanceName
    first: Token
    last: Token


@dataclass(frozen=True, slots=True)
class Page:
    """What a read answers.

    Attributes:
        tokens: The token of each row, ascending.
        lines: The RDATA lines of these rows, each ended by LF (newest dialect).
        upto: The token reached; read on from here.
        limited: Whether there may be rows between there and the token that was asked for.
    """

    tokens: Sequence[Token]
    lines: bytes
    upto: Token
    limited: bool

    def rows(self) -> Iterator[tuple[Token, bytes]]:
        """Yield (token, row as JSON bytes) of each row."""
        return zip(self.tokens, map(row_of, self.lines.split(b"\n")), strict=False)


def row_of(line: bytes) -> bytes:
    """Return the row of an RDATA line as JSON; nothing of an empty line."""
    return line.split(b" ", 4)[-1]


def line_ends(lines: bytes) -> list[int]:
    """Return for each line the offset just past its LF; the last line has one too."""
    lengths = map(len, lines.split(b"\n"))
    return list(map(add, accumulate(lengths), count(1)))[:-1]


class Log(Protocol):
    """Every stream of one data directory; all calls are made in the reactor's thread.

    Attributes:
        history: The incarnations of the log, this one the current.
        gaps: Where rows are missing; whoever notes a gap does so before the position moves
            over it.
        failed: Fires with the reason when the log can take no more, ever; most logs never do.
    """

    history: History
    gaps: Gaps
    failed: Deferred[None]

    @property
    def trouble(self) -> str | None:
        """Why nothing can be appended now; None as far as is known that it can."""
        ...

    @property
    def database(self) -> DatabaseStatus | None:
        """The database that the log shares with other servers; None where it shares none."""
        ...

    def elsewhere(self, pair: Pair) -> str | None:
        """Return which other server alone serves the rows of *pair*, from its memory."""
        ...

    def wait_no_longer(self) -> None:
        """Refuse what is in doubt because the database is away: the process is about to end."""
        ...

    def pairs(self) -> list[tuple[StreamName, InstanceName]]:
        """Return every (stream, instance) that the log knows, in a stable order."""
        ...

    def ensure(self, stream: StreamName, instance: InstanceName) -> None:
        """Make (stream, instance) known, at position 0 unless the log remembers better."""
        ...

    def position(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return the newest published token; 0 for a pair that the log does not know."""
        ...

    def floor(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return the oldest token from which a read is complete (everything after it is held)."""
        ...

    def restart_point(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return where a reader that cannot be resumed starts anew.

        That is 0 for a keyed ephemeral stream (typing, presence), which keeps the newest
        row of each key: such a reader forgets its state and reads with ``compacted=True``
        until a page is not limited. The floor may rise meanwhile; that does not matter.
        For every other stream it is the floor.
        """
        ...

    def goes_on_after(self, pair: Pair, shared: Token) -> Token:
        """Return after what a reader reads on whose rows after *shared* are void.

        That is *shared*, unless the rows are of states (typing, presence): a state cannot be
        undone row by row, so it is read again from 0, wherever the log keeps it (protocol.md
        section 7.3).
        """
        ...

    def append(
        self,
        stream: StreamName,
        instance: InstanceName,
        rows: Sequence[bytes],
        *,
        batch: bool = False,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        """Append rows that are JSON already, and give each a token.

        The answer comes, and the listeners hear of it, once the rows are safe: on disk for
        a durable stream, at once for an ephemeral one. Tokens are given out in call order.

        Args:
            stream: Name of the stream.
            instance: Name of the writing instance.
            rows: Rows as JSON bytes without raw line ends; at least one.
            batch: Whether all rows share one token.
            tokens: The tokens to use, ascending and all above the position, for a relay;
                equal neighbours are a batch. By default the next ones are taken.
            transaction_id: Makes the call safe to retry: the same id on the same stream is
                answered with the first call's tokens, after a restart too.
            produced: Which append of which producer this is (`tcprepl.streams.producers`): it
                is taken once, in order, and committed together with the rows. Not together
                with a transaction id. For a run `may_begin` must have been true just now.

        Raises:
            TokenOrder: *tokens* go backwards.
            ProducerError: (in the Deferred) it is not the turn of *produced*.
            LogUnavailable: (in the Deferred) the disk refused; nothing was published.
        """
        ...

    def claim(self, producer: ProducerName, epoch: int | None = None) -> Deferred[ProducerState]:
        """Take a producer's name, and fence whoever had it.

        The answer comes once that is on disk, and what was under way is settled.

        Args:
            producer: The name.
            epoch: The epoch to hold; by default one that nobody has had.

        Raises:
            EpochFenced: (in the Deferred) *epoch* is below the present one.
            TooManyProducers: (in the Deferred) there is no room for another name.
            LogUnavailable: (in the Deferred) the disk refused.
        """
        ...

    def may_begin(self, stream: StreamName, produced: Produced) -> bool:
        """Return whether a run of appends may be made as one: each would be taken, and none wait.

        If not, they are to be made one by one.
        """
        ...

    def producers(self) -> int:
        """Return how many names of producers are remembered."""
        ...

    def advance(self, stream: StreamName, instance: InstanceName, token: Token) -> Deferred[None]:
        """Move the position to *token* without rows (a no-op when it is there already)."""
        ...

    def cursor(
        self,
        pair: Pair,
        after: Token,
        places: Places = (),
        *,
        compacted: bool = False,
    ) -> Cursor:
        """Return a reader's place after *after*: what it is told comes from there.

        Args:
            pair: The (stream, instance); it need not be known yet.
            after: The last token that the reader has; 0 if it has nothing.
            places: In which incarnations of the log it got what it has, if it says.
            compacted: Whether the reader takes, of a stream of states, the newest row of each
                key where other rows are gone; otherwise it is told to begin anew there.
        """
        ...

    def read(
        self,
        stream: StreamName,
        instance: InstanceName,
        after: Token,
        upto: Token,
        *,
        limit_rows: int = 1_000,
        limit_bytes: int = 262_144,
        compacted: bool = False,
    ) -> Page:
        """Return the rows in ``(after, upto]``, waiting for the disk: for programs that may wait.

        It knows nothing of gaps. Whoever serves others uses a `Cursor`.

        Args:
            stream: Name of the stream.
            instance: Name of the writing instance.
            after: Exclusive lower bound.
            upto: Inclusive upper bound; taken as the position when it is above it.
            limit_rows: Most rows to return.
            limit_bytes: Most bytes of lines to return.
            compacted: As for `cursor`.

        Raises:
            TokenTooOld: *after* is below the floor (and not *compacted*); or the reader is
                *compacted*, under way, and so slow that it missed a key that went blank:
                it begins again at the restart point.
            TokenFromFuture: *after* is above the position.
            LogCorrupt: the block after *after* is not what was written.
            LogUnavailable: the disk refuses.
        """
        ...

    def trim(
        self, stream: StreamName, instance: InstanceName, upto: Token, why: str = ACKNOWLEDGED
    ) -> None:
        """Forget rows whose token is at most *upto*; readers who ask for them are told *why*."""
        ...

    def retain(self, retention: Retention) -> None:
        """Keep what *retention* says from now on."""
        ...

    def add_listener(self, listener: Callable[[Block], None]) -> None:
        """Call *listener* with each block, in order, the moment it is safe to publish."""
        ...

    def add_position_listener(
        self, listener: Callable[[StreamName, InstanceName, Token, Token], None]
    ) -> None:
        """Call *listener* (stream, instance, before, now) when a position moves without rows."""
        ...

    def flush(self) -> Deferred[None]:
        """Fire once everything appended so far is safe."""
        ...

    def close(self) -> Deferred[None]:
        """Flush, release the lock and the files."""
        ...
