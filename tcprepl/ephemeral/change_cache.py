"""Which entities changed after a token, at the cost of what changed and not of what exists.

One insertion-ordered dict from entity to the token of its latest change. A change moves its
entity to the end, so the dict is always in the order of the tokens, and "what changed after
T" is a walk from the end that stops at T. There is no second structure to keep in step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from tcprepl.ids import Token


class StreamChangeCache:
    """The latest change of each of the most recently changed entities.

    It answers for tokens above `earliest` only; at or below it the answer is "unknown",
    which every method gives as the safe side: something may have changed.

    Invariant: the dict's order is that of its tokens, and every change with a token above
    `earliest` is in it, unless a later change of the same entity is.

    Args:
        earliest: The token at or before which nothing is known.
        max_size: Most entities to remember. Beyond it the oldest ones go, a tenth of all at
            a time, and `earliest` moves up.
        changes: Changes that are known at the start, in any order.
    """

    __slots__ = ("_earliest", "_max_size", "_newest", "_tokens")

    def __init__(
        self,
        earliest: Token,
        *,
        max_size: int = 10_000,
        changes: Iterable[tuple[str, Token]] = (),
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        self._max_size = max_size
        self._tokens: dict[str, Token] = {}
        self._earliest = earliest
        self._newest = earliest
        for entity, token in sorted(changes, key=_token_of):
            self.entity_has_changed(entity, token)

    def __len__(self) -> int:
        """Return how many entities are remembered."""
        return len(self._tokens)

    @property
    def earliest(self) -> Token:
        """The token at or before which nothing is known."""
        return self._earliest

    @property
    def newest(self) -> Token:
        """The token of the latest change, or where the cache started."""
        return self._newest

    def entity_has_changed(self, entity: str, token: Token) -> None:
        """Note that *entity* changed at *token*.

        Tokens normally ascend (equal ones are several changes of one batch). One that comes
        late is put in its place, at the cost of what changed after it.
        """
        tokens = self._tokens
        if token >= self._newest:
            self._newest = token
            if token == self._earliest:
                return
            tokens.pop(entity, None)
            tokens[entity] = token
        elif token <= self._earliest or tokens.get(entity, token - 1) >= token:
            return
        else:
            self._insert_late(entity, token)
        if len(tokens) > self._max_size:
            self._evict()

    def has_entity_changed(self, entity: str, token: Token) -> bool:
        """Return whether *entity* may have changed after *token*."""
        return token <= self._earliest or self._tokens.get(entity, token) > token

    def has_any_changed(self, token: Token) -> bool:
        """Return whether any entity may have changed after *token*."""
        return token <= self._earliest or self._newest > token

    def entities_changed_since(self, token: Token) -> list[str] | None:
        """Return the entities that changed after *token*, oldest change first.

        Returns:
            The entities, each once; None if that is unknown.
        """
        if token <= self._earliest:
            return None
        changed = []
        for entity, at in reversed(self._tokens.items()):
            if at <= token:
                break
            changed.append(entity)
        changed.reverse()
        return changed

    def changes_since(self, token: Token) -> list[tuple[str, Token]] | None:
        """Return (entity, token of its latest change) after *token*, oldest change first.

        Returns:
            The changes, one for each entity; None if they are unknown.
        """
        if token <= self._earliest:
            return None
        changes = []
        for change in reversed(self._tokens.items()):
            if change[1] <= token:
                break
            changes.append(change)
        changes.reverse()
        return changes

    def entities_changed(self, candidates: Collection[str], token: Token) -> set[str]:
        """Return those of *candidates* that may have changed after *token*.

        The cost is that of the smaller of the two: what is asked for, and what changed.
        """
        if token <= self._earliest:
            return set(candidates)
        asked = candidates if isinstance(candidates, set | frozenset) else set(candidates)
        changed: set[str] = set()
        for entity, at in islice(reversed(self._tokens.items()), len(asked)):
            if at <= token:
                return changed
            if entity in asked:
                changed.add(entity)
        get = self._tokens.get
        return {entity for entity in asked if get(entity, token) > token}

    def latest_change_of(self, entity: str) -> Token | None:
        """Return the token of the latest change of *entity*; None if it is not remembered."""
        return self._tokens.get(entity)

    def reset(self, earliest: Token) -> None:
        """Forget every change; nothing is known at or before *earliest*."""
        self._tokens.clear()
        self._earliest = self._newest = earliest

    def _insert_late(self, entity: str, token: Token) -> None:
        tokens = self._tokens
        tokens.pop(entity, None)
        later = []
        while tokens:
            change = tokens.popitem()
            if change[1] <= token:
                tokens[change[0]] = change[1]
                break
            later.append(change)
        tokens[entity] = token
        tokens.update(reversed(later))

    def _evict(self) -> None:
        # Many at once: looking for the oldest entry walks over the holes that deleting left.
        oldest = list(islice(self._tokens.items(), max(1, self._max_size // 10)))
        for entity, _ in oldest:
            del self._tokens[entity]
        self._earliest = oldest[-1][1]


def _token_of(change: tuple[str, Token]) -> Token:
    return change[1]
