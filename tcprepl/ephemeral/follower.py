"""A worker's copy of a writer's state, made from rows alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from tcprepl.ephemeral.board import Board
from tcprepl.ids import InstanceName, StreamName, Token

V = TypeVar("V")


class Follower(ABC, Generic[V]):
    """Follows a keyed stream: each row is the whole state of one key.

    `handle_rows` and `on_reset` are what a `tcprepl.replication.following.client.ReplicationClient`
    calls. A reset, or a token that goes back (the writer of another implementation was
    restarted), forgets everything that the instance had said; the rows that follow rebuild
    it. Applying a row twice does no harm.

    Several instances may write the stream, each its own keys: they are kept apart, so that
    no token is ever compared with one of another instance.
    """

    def __init__(self) -> None:
        self._boards: dict[InstanceName, Board[V]] = {}
        self._positions: dict[InstanceName, Token] = {}

    def handle_rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: Iterable[Any]
    ) -> None:
        """Apply the rows of one token."""
        board = self.board(instance)
        known = self._positions.get(instance, 0)
        if token < known:
            self.on_reset(stream, instance, known, token)
        self._positions[instance] = token
        for row in rows:
            key, state = self._read(row)
            before = self._state_of(key)
            board.post(key, state, token)
            self._changed(key, before)

    def on_reset(
        self, stream: StreamName, instance: InstanceName, known: Token | None, token: Token
    ) -> None:
        """Forget what *instance* had said: what still holds follows as rows after *token*."""
        board = self.board(instance)
        states = {key: self._state_of(key) for key in board.states()}
        board.reset(max(board.newest, known or 0))
        self._positions[instance] = token
        for key, before in states.items():
            self._changed(key, before)

    def board(self, instance: InstanceName) -> Board[V]:
        """Return what *instance* has said, with its tokens and changes."""
        board = self._boards.get(instance)
        if board is None:
            board = self._boards[instance] = self._make_board()
        return board

    def states(self) -> dict[str, V]:
        """Return every state that is not blank."""
        if len(self._boards) == 1:
            (board,) = self._boards.values()
            return board.states()
        keys = {key for board in self._boards.values() for key in board.states()}
        return {key: self._state_of(key) for key in sorted(keys)}

    def _state_of(self, key: str) -> V:
        """Return the present state of *key*, a blank one if nothing is known."""
        if len(self._boards) == 1:
            (board,) = self._boards.values()
            state = board.get(key)
            return self._blank(key) if state is None else state
        held = (board.get(key) for board in self._boards.values())
        states = [state for state in held if state is not None]
        return self._merge(states) if states else self._blank(key)

    @abstractmethod
    def _make_board(self) -> Board[V]:
        """Return an empty board."""

    @abstractmethod
    def _read(self, row: Any) -> tuple[str, V]:
        """Return the key of a row, and the state."""

    @abstractmethod
    def _blank(self, key: str) -> V:
        """Return the state of a key of which nothing is known."""

    @abstractmethod
    def _merge(self, states: Sequence[V]) -> V:
        """Return one state from what several instances say of a key; there is at least one."""

    @abstractmethod
    def _changed(self, key: str, before: V) -> None:
        """Hear that the state of *key* was *before* and may have changed."""
