"""The newest state of each key of a stream, as published: what writer and follower both hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

from tcprepl.ephemeral.change_cache import StreamChangeCache
from tcprepl.errors import TokenTooOld
from tcprepl.ids import StreamName, Token

V = TypeVar("V")

#: Most states that one call of `Board.updates` returns, unless told otherwise.
UPDATES_LIMIT = 100
#: Blank states that are held beyond those that changed lately.
MAX_BLANK = 10_000
#: States that are forgotten at once: what a turn of the reactor has time for, many times over.
FORGOTTEN_AT_ONCE = 500


class Entry(Struct, Generic[V], frozen=True, gc=False):
    """The state of a key, and the token of the row that said so.

    There is one for each user, and nothing in it refers back: it is no garbage collector's work.
    """

    token: Token
    key: str
    state: V


class Updates(NamedTuple, Generic[V]):
    """What `Board.updates` answers.

    Attributes:
        entries: One for each key that changed, with its latest state, by token.
        upto: The token reached; ask on from here.
        limited: Whether more changed up to the token that was asked for.
    """

    entries: list[Entry[V]]
    upto: Token
    limited: bool


class Board(Generic[V]):
    """The newest state of each key, the token of its row, and what changed after a token.

    Invariant: a key that changed after `lost` is held, with its newest state. Keys whose
    state is blank (nobody types; offline) are forgotten in time, which moves `lost` up; those
    with a state to speak of never are.

    Args:
        stream: Name of the stream, for errors.
        is_blank: Whether a state says no more than that there is none.
        lost: The token at or before which a reader cannot go on, only begin anew.
        max_size: Most keys in the change cache.
    """

    __slots__ = (
        "_blank",
        "_cache",
        "_is_blank",
        "_lost",
        "_ordered",
        "_ordered_upto",
        "_states",
        "_stream",
    )

    def __init__(
        self,
        stream: StreamName,
        is_blank: Callable[[V], bool],
        lost: Token = -1,
        *,
        max_size: int = 10_000,
    ) -> None:
        self._stream = stream
        self._is_blank = is_blank
        self._states: dict[str, Entry[V]] = {}
        self._cache = StreamChangeCache(lost, max_size=max_size)
        self._lost = lost
        #: All states up to a token, in its order, for readers that are far behind.
        self._ordered: list[Entry[V]] | None = None
        self._ordered_upto: Token = -1
        #: The keys whose state is blank, by token: whoever looks for them passes no others.
        self._blank: dict[str, Token] = {}

    def __len__(self) -> int:
        """Return how many keys are held, blank ones included."""
        return len(self._states)

    @property
    def newest(self) -> Token:
        """The token of the latest change."""
        return self._cache.newest

    @property
    def lost(self) -> Token:
        """The token at or before which a reader cannot go on, only begin anew."""
        return self._lost

    def post(self, key: str, state: V, token: Token) -> None:
        """Replace the state of *key* by that of its row at *token*."""
        states, blank = self._states, self._blank
        if token <= self._ordered_upto:
            self._ordered = None  # it came late, and is not in there
        states.pop(key, None)
        blank.pop(key, None)
        states[key] = Entry(token, key, state)
        self._cache.entity_has_changed(key, token)
        if self._is_blank(state):
            blank[key] = token
            if len(blank) > 2 * MAX_BLANK:
                self.forget_blank(self._cache.earliest)

    def get(self, key: str) -> V | None:
        """Return the state of *key*; None if none is held."""
        held = self._states.get(key)
        return held.state if held is not None else None

    def token_of(self, key: str) -> Token | None:
        """Return the token of the newest row of *key*; None if none is held."""
        held = self._states.get(key)
        return held.token if held is not None else None

    def states(self) -> dict[str, V]:
        """Return every state that is not blank."""
        is_blank = self._is_blank
        return {
            entry.key: entry.state for entry in self._states.values() if not is_blank(entry.state)
        }

    def updates(
        self,
        after: Token,
        upto: Token | None = None,
        *,
        limit: int = UPDATES_LIMIT,
        compacted: bool = False,
    ) -> Updates[V]:
        """Return the keys whose newest row is in ``(after, upto]``, by token.

        A key that changed often in between appears once, with its newest state; one that
        changed again after *upto* does not appear.

        Args:
            after: Exclusive lower bound; 0 is the start.
            upto: Inclusive upper bound; by default the latest change.
            limit: Most keys to return; exceeded only to finish a token.
            compacted: The reader began at 0 with nothing, and so does not miss the last,
                blank row of a key that was forgotten.

        Raises:
            TokenTooOld: *after* is not above `lost`, and not *compacted*: forget everything
                and ask from 0 with *compacted*.
        """
        if after <= self._lost and not compacted:
            raise TokenTooOld(self._stream, "*", after, self._lost + 1, "memory")
        newest = self._cache.newest
        reached = newest if upto is None or upto > newest else upto
        changed = self._changed(after, reached)
        if changed is None:
            changed = self._changed_long_ago(after, reached, limit)
        end = min(limit, len(changed))
        while 0 < end < len(changed) and changed[end].token == changed[end - 1].token:
            end += 1
        if end == len(changed):
            return Updates(changed, max(reached, after), False)
        del changed[end:]
        return Updates(changed, changed[-1].token if changed else after, True)

    def _changed(self, after: Token, reached: Token) -> list[Entry[V]] | None:
        """Return what changed in the range, by token; None if it was too long ago to know."""
        changes = self._cache.changes_since(after)
        if changes is None:
            return None
        states = self._states
        # The cache may know keys that were forgotten here.
        return [states[key] for key, token in changes if token <= reached and key in states]

    def _changed_long_ago(self, after: Token, reached: Token, limit: int) -> list[Entry[V]]:
        """Return what changed in the range, by token: at least a page, if there is one.

        All states were put in order once; that is good for many pages, for as long as the cache
        knows what has changed since.
        """
        if self._ordered is None or (
            self._cache.earliest >= self._ordered_upto < self._cache.newest
        ):
            self._ordered = sorted(self._states.values(), key=_token_of)
            self._ordered_upto = self._cache.newest
        ordered, states = self._ordered, self._states
        found: list[Entry[V]] = []
        for number in range(bisect_right(ordered, after, key=_token_of), len(ordered)):
            entry = ordered[number]
            if entry.token > reached:
                return found
            if states.get(entry.key) is entry:
                found.append(entry)
                if len(found) > limit and (not limit or entry.token > found[limit - 1].token):
                    return found
        return found + (self._changed(max(after, self._ordered_upto), reached) or [])

    def forget_blank(self, upto: Token) -> int:
        """Forget keys that have been blank since *upto*, the longest ones first.

        Returns:
            How many they were; with `FORGOTTEN_AT_ONCE` there may be more of them.
        """
        gone: list[str] = []
        for key, token in islice(self._blank.items(), FORGOTTEN_AT_ONCE):
            if token > upto:
                break
            gone.append(key)
            self._lost = max(self._lost, token - 1)
        for key in gone:
            del self._states[key]
            del self._blank[key]
        return len(gone)

    def reset(self, lost: Token) -> None:
        """Forget everything; whoever is at or before *lost* has to begin anew."""
        self._states.clear()
        self._cache.reset(lost)
        self._lost = lost
        self._blank.clear()
        self._ordered, self._ordered_upto = None, -1


def _token_of(entry: Entry[V]) -> Token:
    return entry.token
