"""The names of a log's history (protocol.md section 7.11).

A token means something only within the history that gave it out. Each start of a log begins an
*incarnation* with a name of its own, and notes at which token each (stream, instance) then was.
So a directory that is restored from an older copy goes on under a name that the lost future
never had, and whoever comes from there is recognised, though its token may exist again by then.

The notes are part of the log and are copied with it. They are bounded: an incarnation that was
forgotten counts as unknown.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from tcprepl.ids import IncarnationId, Pair, Token
from tcprepl.streams.lineage import Places

#: Incarnations that a log remembers, the oldest go first.
MAX_INCARNATIONS: Final = 10_000
#: Notes of where an incarnation began that a log remembers, all pairs together.
MAX_BEGINNINGS: Final = 100_000


def new_incarnation_id() -> IncarnationId:
    """Return a name that no other incarnation has: 16 hexadecimal digits, at random."""
    return secrets.token_hex(8)


class Incarnation(NamedTuple):
    """One start of a log.

    Attributes:
        number: Its place among those of this log, from 1; a copy counts on by itself.
        id: Its name.
        began_ms: Wall-clock time in ms since 1970.
    """

    number: int
    id: IncarnationId
    began_ms: int


class Beginning(NamedTuple):
    """Where an incarnation began for a pair; noted only if an earlier one began elsewhere.

    Attributes:
        pair: The (stream, instance).
        number: The number of the incarnation.
        token: The position of the pair when it began.
    """

    pair: Pair
    number: int
    token: Token


class History:
    """The incarnations of a log, of which the *current* one is that of this process.

    Where one process at a time has the log, each ends when the next begins. Where several have it
    at once, each ends when it is found, at the beginning of a later one, that its process is gone.
    A pair that was not known when an incarnation began, began in it at 0.
    """

    def __init__(
        self,
        incarnations: Sequence[Incarnation] = (),
        beginnings: Iterable[Beginning] = (),
        ends: Mapping[int, int] | None = None,
    ) -> None:
        """Take over what was noted; `begin` comes next, before anybody asks anything.

        Args:
            incarnations: Those remembered, oldest first.
            beginnings: What was noted of them, oldest first for each pair.
            ends: For each incarnation that is over, the number of the one at whose beginning it
                was found to be; where several run at once. By default each was ended by the next.
        """
        self._incarnations: list[Incarnation] = []
        self._numbers: dict[IncarnationId, int] = {}
        self._ends: dict[int, int] = {}
        self._began: dict[Pair, tuple[list[int], list[Token]]] = {}
        if ends is None:
            ends = {one.number: following.number for one, following in pairwise(incarnations)}
        self.merge(incarnations, beginnings, ends)

    def merge(
        self,
        incarnations: Iterable[Incarnation],
        beginnings: Iterable[Beginning],
        ends: Mapping[int, int],
    ) -> None:
        """Take over what was noted since, by other processes of the same log."""
        for known in incarnations:
            self._incarnations.append(known)
            self._numbers[known.id] = known.number
        for beginning in beginnings:
            self._note(beginning)
        self._ends.update(ends)

    def _note(self, beginning: Beginning) -> None:
        numbers, tokens = self._began.setdefault(beginning.pair, ([], []))
        numbers.append(beginning.number)
        tokens.append(beginning.token)

    def begin(
        self,
        positions: Mapping[Pair, Token],
        now_ms: int,
        new_id: IncarnationId | None = None,
        over: Collection[int] | None = None,
    ) -> tuple[Incarnation, list[Beginning]]:
        """Begin an incarnation; what this returns has to be on disk before anybody hears of it.

        Args:
            positions: Where each pair is; all that have rows.
            now_ms: Wall-clock time in ms since 1970.
            new_id: Its name; a new one by default.
            over: The numbers of those that are over with it; by default all before it are.

        Returns:
            The incarnation, and what is to be noted of it.
        """
        number = self._incarnations[-1].number + 1 if self._incarnations else 1
        begun = Incarnation(number, new_id or new_incarnation_id(), now_ms)
        for known in self._incarnations:
            if over is None or known.number in over:
                self._ends.setdefault(known.number, number)
        self._incarnations.append(begun)
        self._numbers[begun.id] = number
        self._current = begun
        noted = [
            Beginning(pair, number, token)
            for pair, token in positions.items()
            if token != self._began_at(pair, number)
        ]
        for beginning in noted:
            self._note(beginning)
        self._forget()
        return begun, noted

    def _forget(self) -> None:
        """Forget the oldest incarnations beyond the bounds, but never the current one."""
        known = self._incarnations
        excess = max(0, len(known) - MAX_INCARNATIONS)
        count = sum(len(numbers) for numbers, _ in self._began.values())
        if count > MAX_BEGINNINGS:
            # of each pair the newest of the forgotten ones stays: it still says where it was
            noted = sorted(n for numbers, _ in self._began.values() for n in numbers)
            oldest = noted[count - MAX_BEGINNINGS] + 1
            excess = max(excess, sum(one.number < oldest for one in known[:-1]))
        for gone in known[:excess]:
            del self._numbers[gone.id]
            self._ends.pop(gone.number, None)
        del known[:excess]
        for numbers, tokens in self._began.values():
            stale = bisect_right(numbers, known[0].number) - 1
            if stale > 0:
                del numbers[:stale]
                del tokens[:stale]

    def _began_at(self, pair: Pair, number: int) -> Token:
        """Return where *pair* was when incarnation *number* began."""
        numbers, tokens = self._began.get(pair, ([], []))
        index = bisect_right(numbers, number)
        return tokens[index - 1] if index else 0

    @property
    def current(self) -> IncarnationId:
        """The name of the incarnation that this process began."""
        return self._current.id

    @property
    def number(self) -> int:
        """The number of the current incarnation."""
        return self._current.number

    @property
    def incarnations(self) -> Sequence[Incarnation]:
        """Those remembered, oldest first."""
        return self._incarnations

    def shared(self, pair: Pair, token: Token, incarnation: IncarnationId) -> Token | None:
        """Return up to which token a reader's rows are rows of this history.

        Args:
            pair: The (stream, instance).
            token: The token that the reader got last.
            incarnation: The incarnation in which it got that.

        Returns:
            *token*, if this history has all that the reader has: it goes on. A lower token, if
            the reader's incarnation went on elsewhere after it: the reader forgets, or does
            again, what it got above it. None, if the incarnation is not known: nothing can be
            said of what the reader has, and it begins anew at the log's restart point.

        A token above the position in the current incarnation is returned as it is: a read from
        there is refused as ever (`TokenFromFuture`).
        """
        number = self._numbers.get(incarnation)
        if number is None:
            return None
        end = self._ends.get(number)
        return token if end is None else min(token, self._began_at(pair, end))

    def common(self, pair: Pair, places: Places) -> Token | None:
        """Return up to which token a reader that tells its lineage shares this history.

        Args:
            pair: The (stream, instance).
            places: What the reader says, newest first; it has all that it got in any of them.

        Returns:
            As `shared` of the first incarnation that is known; None, if none of them is.
        """
        for token, incarnation in places:
            shared = self.shared(pair, token, incarnation)
            if shared is not None:
                return shared
        return None
