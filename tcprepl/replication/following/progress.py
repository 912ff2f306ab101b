"""How far a reader is: what is applied, what of it is saved, and how to go back to that.

The invariant of a store that shares the transaction of the handlers (`PositionStore.atomic`):
whatever was written since the last position was saved is either committed with the next one
(`Progress.advance`) or undone (`Progress.undo`). Nothing in between lasts longer than one
call of a handler.
"""

from __future__ import annotations

from tcprepl.ids import IncarnationId, Pair, Token
from tcprepl.logger import get_logger
from tcprepl.streams.lineage import Places
from tcprepl.streams.position_store import PositionStore

log = get_logger(__name__)


class Progress:
    """The positions of one reader.

    Attributes:
        known: The token up to which each pair is applied. To be read only.
        atomic: Whether each `advance` commits what a handler wrote.
    """

    def __init__(self, store: PositionStore) -> None:
        self.known: dict[Pair, Token] = {}
        self.atomic = store.atomic
        self._incarnation: IncarnationId | None = None
        self._store = store
        self._unsaved: dict[Pair, Token] = {}
        #: What the store has refused of earlier incarnations, oldest first.
        self._earlier: list[tuple[IncarnationId | None, dict[Pair, Token]]] = []

    @property
    def incarnation(self) -> IncarnationId | None:
        """That of the log whose rows come now; None if its server names none.

        To be set before the first of them; what is not saved yet came in the one before.
        """
        return self._incarnation

    @incarnation.setter
    def incarnation(self, incarnation: IncarnationId | None) -> None:
        if self._unsaved and incarnation != self._incarnation:
            self._earlier.append((self._incarnation, self._unsaved))
            self._unsaved = {}
        self._incarnation = incarnation

    def load(self) -> None:
        """Go back to what is saved; call it before anything else, and after each stop."""
        self.known = dict(self._store.load())
        self._unsaved.clear()
        self._earlier.clear()

    def advance(self, pair: Pair, token: Token | None) -> None:
        """Note that *pair* is applied up to *token*; None says that rows were, which have none yet.

        An atomic store commits here. Any other is told by the next `save`.

        Raises:
            Exception: The store refused. Nothing was noted; the caller must `undo`.
        """
        if self.atomic:
            self._store.save({} if token is None else {pair: token}, self._incarnation)
        elif token is not None and self.known.get(pair) != token:
            self._unsaved[pair] = token
        if token is None:
            return
        before, self.known[pair] = self.known.get(pair, 0), token
        if token < before:
            self.save()  # what was above is void, wherever it goes from here

    def save(self) -> bool:
        """Save what `advance` noted; what the disk refuses is kept for the next time.

        Returns:
            Whether all of it is saved.
        """
        if not (self._unsaved or self._earlier):
            return True
        try:
            while self._earlier:
                incarnation, positions = self._earlier[0]
                self._store.save(positions, incarnation)
                del self._earlier[0]
            if self._unsaved:
                self._store.save(dict(self._unsaved), self._incarnation)
        except Exception as error:
            log.error("replication.positions.not_saved", exc_info=error)
            return False
        self._unsaved.clear()
        return True

    def places(self, pair: Pair) -> Places:
        """Return in which incarnations of the server's log *pair* was read, newest first."""
        return self._store.places(pair, self.known[pair])

    def undo(self) -> None:
        """Undo what was written since the last `advance`, if the store shares that transaction.

        Raises:
            Exception: It could not be undone: nothing may be committed on top of it.
        """
        if self.atomic:
            try:
                self._store.rollback()
            except Exception as error:
                log.error("replication.handler.not_undone", exc_info=error)
                raise
