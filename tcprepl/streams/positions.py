"""What a reader holds of each stream, and what news mean for it (protocol.md section 7).

Pure: no I/O, no clock. Per (stream, instance) there is one known token K. Tokens of one
instance are never compared with those of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from tcprepl.ids import InstanceName, StreamName, Token


class Verdict(Enum):
    """What a POSITION or a batch of rows means for what is held."""

    #: Nothing is known of this (stream, instance) yet.
    UNKNOWN = "unknown"
    #: It fits: nothing was missed.
    CURRENT = "current"
    #: Rows after K were missed: fetch ``(K, token]``.
    GAP = "gap"
    #: The stream is behind K: it began anew, so state built from it is void.
    RESET = "reset"
    #: Rows that are held already: drop them.
    STALE = "stale"


class PositionTracker:
    """The known token of each (stream, instance).

    It only judges; moving on is the caller's act (`advance`), once the rows are applied.
    """

    __slots__ = ("_known",)

    def __init__(
        self, known: Mapping[tuple[StreamName, InstanceName], Token] | None = None
    ) -> None:
        """Start from *known*, for instance what a store has loaded."""
        self._known = dict(known or {})

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[StreamName, InstanceName]]:
        return iter(self._known)

    def get(self, stream: StreamName, instance: InstanceName) -> Token | None:
        """Return the known token, None if there is none."""
        return self._known.get((stream, instance))

    def all(self) -> dict[tuple[StreamName, InstanceName], Token]:
        """Return a copy of everything that is known."""
        return dict(self._known)

    def judge_position(
        self, stream: StreamName, instance: InstanceName, prev: Token | None, token: Token
    ) -> Verdict:
        """Judge ``POSITION stream instance prev token``.

        With two tokens nothing was missed if ``prev <= K <= token``: the instance wrote
        nothing in between. With one (*prev* None) only if ``K == token``.

        Returns:
            UNKNOWN, CURRENT, GAP or RESET.
        """
        known = self._known.get((stream, instance))
        if known is None:
            return Verdict.UNKNOWN
        if known > token:
            return Verdict.RESET
        if known < (token if prev is None else prev):
            return Verdict.GAP
        return Verdict.CURRENT

    def judge_rows(self, stream: StreamName, instance: InstanceName, token: Token) -> Verdict:
        """Judge a batch of rows.

        Returns:
            STALE if they are held already, UNKNOWN if no POSITION came first, else CURRENT:
            within one connection, rows cannot be missed.
        """
        known = self._known.get((stream, instance))
        if known is None:
            return Verdict.UNKNOWN
        return Verdict.STALE if token <= known else Verdict.CURRENT

    def advance(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        """Hold everything up to *token* from now on; it may be lower after a reset."""
        self._known[stream, instance] = token

    def forget(self, stream: StreamName, instance: InstanceName) -> None:
        """Know nothing of (stream, instance) any longer."""
        self._known.pop((stream, instance), None)
