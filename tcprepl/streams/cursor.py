"""A reader's place in the log of one pair, and what it can be told there (protocol.md section 7.3).

Whoever serves readers asks a `Cursor` for what comes next and words the answer in its own way:
the line protocol, the long poll, the catch-up of workers. It is one of five:

* a `Page`: rows, and the token reached;
* a `Gap`: nothing is known of ``(after, upto]``, and why;
* a `Restart`: what the reader has is void, it begins anew after a token;
* `AT_HEAD`: everything has been said up to the token that was asked for;
* a `Reading`: the page is on its way from the disk; ask again when it tells.

Each answer but the last two moves the cursor, so that nothing is said twice and nothing is
passed in silence.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from tcprepl import limits as bounds
from tcprepl.ids import Pair, Token
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.history import History
from tcprepl.streams.lineage import Places
from tcprepl.streams.log import Page
from tcprepl.streams.pages import Reading


class Void(Enum):
    """Why what a reader has is void."""

    #: Its token is above the position: it comes from a log that is gone.
    AHEAD = "ahead"
    #: It has rows that are none of this log's, which was restored from a copy, or is another one.
    FORKED = "forked"
    #: Rows of a stream of states are gone that it would have to have.
    STATES = "states"


class Restart(NamedTuple):
    """The reader forgets what it has of the pair above *start*, and reads on from there.

    Attributes:
        after: The token that the reader had.
        start: Where it begins anew, and where the cursor is now.
        why: What made its state void.
        held: The token nearest to *after* that this log has: its position, its floor, or the
            last that the reader shares with it.
        bound: What made rows go, for people: the setting that bounds them, for instance.
        compacted: Whether it begins with the newest row of each key, for a stream of states.
    """

    after: Token
    start: Token
    why: Void
    held: Token
    bound: str
    compacted: bool


class AtHead(Enum):
    """The type of `AT_HEAD`."""

    AT_HEAD = "at the head"


#: Everything has been said up to the token that was asked for.
AT_HEAD: Final = AtHead.AT_HEAD

Answer: TypeAlias = Page | Gap | Restart | AtHead | Reading


class Limits(NamedTuple):
    """What one answer may hold; a token is finished even if it exceeds them.

    Attributes:
        upto: The last token that is asked for; the position if that is lower.
        rows: Most rows.
        size_bytes: Most bytes of lines.
    """

    upto: Token = bounds.MAX_TOKEN
    rows: int = bounds.PAGE_ROWS
    size_bytes: int = bounds.PAGE_BYTES


class Source(Protocol):
    """The log of one pair, as a cursor reads it.

    Attributes:
        position: The newest published token.
        floor: The oldest token from which a read is complete.
        restart_point: Where a reader that cannot be resumed begins anew.
        bound: What made the rows up to the floor go.
        size_bytes: Bytes of the lines that are held.
    """

    @property
    def position(self) -> Token: ...  # noqa: D102 - see the class
    @property
    def floor(self) -> Token: ...  # noqa: D102
    @property
    def restart_point(self) -> Token: ...  # noqa: D102
    @property
    def bound(self) -> str: ...  # noqa: D102
    @property
    def size_bytes(self) -> int: ...  # noqa: D102

    def compactable(self, after: Token) -> bool:
        """Return whether *after*, which is below the floor, has a complete compacted read."""
        ...

    def page(
        self, after: Token, upto: Token, rows: int, size_bytes: int, reading: Reading | None
    ) -> Page | Reading:
        """Return the rows in ``(after, upto]``, at most so many, or what tells when to ask again.

        Args:
            after: A token from which there is a read, at least the floor or `compactable`.
            upto: Above *after*, and at most the position.
            rows: Most rows.
            size_bytes: Most bytes.
            reading: What was answered last, if that was a `Reading`.

        Raises:
            LogError: The disk refuses.
        """
        ...


class _Logs(Protocol):
    """What a cursor uses of its log."""

    gaps: Gaps
    history: History

    def source(self, pair: Pair) -> Source | None: ...
    def goes_on_after(self, pair: Pair, shared: Token) -> Token: ...
    def look(self) -> Reading | None: ...


class Cursor:
    """A reader's place in one pair.

    It costs a few integers, needs no closing, and reads only in `next`.

    Attributes:
        pair: The (stream, instance).
        token: Up to where everything has been said.
    """

    __slots__ = ("_compacted", "_log", "_look", "_places", "_reading", "pair", "token")

    def __init__(
        self,
        log: _Logs,
        pair: Pair,
        after: Token,
        places: Places = (),
        *,
        compacted: bool = False,
    ) -> None:
        """Stand after *after*; `Log.cursor` is the way to get one.

        Args:
            log: The log.
            pair: The (stream, instance); it need not be known yet.
            after: The last token that the reader has.
            places: In which incarnations of the log it got what it has, if it says.
            compacted: Whether the reader takes, below the floor of a stream of states, the
                newest row of each key for all of them. Otherwise it is told to begin anew.
        """
        self._log = log
        self.pair = pair
        self.token = after
        self._places = places
        self._compacted = compacted
        self._reading: Reading | None = None
        self._look: Reading | None = None

    def next(self, limits: Limits = Limits()) -> Answer:  # noqa: B008 - it is immutable
        """Return what comes next, and move over it.

        Raises:
            LogUnavailable: The disk refuses; the cursor is where it was.
        """
        source = self._log.source(self.pair)
        token = self.token
        position = source.position if source is not None else 0
        look, self._look = self._look, None
        if look is None and self._is_ahead(position):
            look = self._log.look()
        if look is not None:
            if not look.done:
                self._look = look
                return look
            if look.error is not None:
                raise look.error
            source = self._log.source(self.pair)
            position = source.position if source is not None else 0
        if self._places:
            forked = self._forked(source)
            if forked is not None:
                return forked
        if token > position:
            return self._restart(source, Void.AHEAD, position)
        upto = min(limits.upto, position)
        if token >= upto or source is None:
            return AT_HEAD
        floor = source.floor
        if token < floor and not (self._compacted and source.compactable(token)):
            if source.restart_point < floor:
                return self._restart(source, Void.STATES, floor)
            self.token = min(floor, upto)
            return Gap(token, self.token, Cause.RETENTION, source.bound)
        gap = self._log.gaps.next(self.pair, max(token, floor))
        if gap is not None:
            if gap.after <= token:
                self.token = min(gap.upto, upto)
                return Gap(token, self.token, gap.cause, gap.detail)
            upto = min(upto, gap.after)
        reading, self._reading = self._reading, None
        page = source.page(token, upto, limits.rows, limits.size_bytes, reading)
        if isinstance(page, Reading):
            self._reading = page
            return page
        if page.upto <= token:
            return self.next(limits)  # the next block is damaged: that is a gap by now
        self.token = page.upto
        return page

    def bytes_to(self, upto: Token) -> int:
        """Return about how many bytes of lines there are from here up to *upto*.

        That is known without a look at the disk, as a share of all that are held: as if each
        token had as many.
        """
        source = self._log.source(self.pair)
        if source is None:
            return 0
        floor, position = source.floor, source.position
        tokens = min(upto, position) - max(self.token, floor)
        return source.size_bytes * tokens // (position - floor) if tokens > 0 else 0

    def _is_ahead(self, position: Token) -> bool:
        """Return whether the reader has what this log, as far as it knows, does not have.

        It may come from another server of the same log, which heard of it a moment earlier.
        """
        if self.token > position or not self._places:
            return self.token > position
        shared = self._log.history.common(self.pair, self._places)
        return shared is None or shared < self.token

    async def arrived(
        self,
        limits: Limits = Limits(),  # noqa: B008 - it is immutable
    ) -> Page | Gap | Restart | AtHead:
        """Return as `next` does, once what is on its way from the disk is there.

        Cancelling what awaits this is no trouble: the page is for others, too.

        Raises:
            LogUnavailable: The disk refuses; the cursor is where it was.
        """
        while isinstance(answer := self.next(limits), Reading):
            there: Deferred[None] = Deferred()
            answer.tell(partial(_arrive, there))
            await there
        return answer

    def _forked(self, source: Source | None) -> Restart | None:
        """Return the restart of a reader whose rows are not all of this history."""
        places, self._places = self._places, ()
        if not self.token:
            return None
        shared = self._log.history.common(self.pair, places)
        if shared is not None and shared >= self.token:
            return None
        return self._restart(source, Void.FORKED, shared or 0)

    def _restart(self, source: Source | None, why: Void, held: Token) -> Restart:
        """Begin anew: with the last token that both have, if there is one, or as the log can.

        A state cannot be undone row by row: it is read again whole.
        """
        after, start, floor, bound = self.token, 0, 0, ""
        if source is not None:
            start, floor, bound = source.restart_point, source.floor, source.bound
        compacted = start < floor
        if why is Void.FORKED and not compacted:
            start = self._log.goes_on_after(self.pair, held)
        self.token = start
        self._compacted = self._compacted or compacted
        return Restart(after, start, why, floor if compacted else held, bound, compacted)


def _arrive(there: Deferred[None]) -> None:
    if not there.called:  # unless whoever waited has left
        there.callback(None)
