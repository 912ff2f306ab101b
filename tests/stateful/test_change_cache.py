"""The change cache as a state machine, against a plain list of everything that ever changed."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tcprepl.ephemeral.change_cache import StreamChangeCache

entities = st.integers(0, 12).map("e{}".format)


class ChangeCacheMachine(RuleBasedStateMachine):
    """Changes come in order, in batches and late; what is known is compared at every token."""

    @initialize(earliest=st.integers(0, 5), max_size=st.integers(1, 10))
    def begin(self, earliest: int, max_size: int) -> None:
        """Begin with nothing."""
        self.cache = StreamChangeCache(earliest, max_size=max_size)
        self.max_size = max_size
        self.earliest = earliest
        self.changes: list[tuple[int, str]] = []
        self.token = earliest

    @rule(entity=entities, step=st.integers(0, 3))
    def change(self, entity: str, step: int) -> None:
        """Change one entity, at the newest token or above it."""
        self.token += step
        self.note(entity, self.token)

    @rule(batch=st.lists(entities, min_size=1, max_size=6))
    def change_together(self, batch: list[str]) -> None:
        """Change several entities at one token."""
        self.token += 1
        for entity in batch:
            self.note(entity, self.token)

    @rule(entity=entities, back=st.integers(0, 10))
    def change_late(self, entity: str, back: int) -> None:
        """Hear of a change only after later ones."""
        self.note(entity, self.token - back)

    @rule(ahead=st.integers(0, 3))
    def reset(self, ahead: int) -> None:
        """Forget everything."""
        self.token += ahead
        self.cache.reset(self.token)
        self.earliest = self.token
        self.changes = []

    def note(self, entity: str, token: int) -> None:
        self.cache.entity_has_changed(entity, token)
        self.changes.append((token, entity))

    @invariant()
    def agrees_with_the_list_at_every_token(self) -> None:
        """Exactly right where it knows; on the safe side where it does not."""
        cache = self.cache
        latest = {entity: token for token, entity in sorted(self.changes)}
        assert self.earliest <= cache.earliest <= max(self.token, self.earliest)
        assert len(cache) <= self.max_size
        for after in range(self.earliest - 1, self.token + 2):
            changed = {entity for entity, token in latest.items() if token > after}
            found = cache.entities_changed_since(after)
            if after <= cache.earliest:
                assert found is None
                assert cache.has_any_changed(after)
                assert cache.entities_changed(changed | {"x"}, after) == changed | {"x"}
                continue
            assert found is not None
            assert len(found) == len(set(found))
            assert set(found) == changed
            assert cache.has_any_changed(after) == bool(changed)
            for entity in latest:
                assert cache.has_entity_changed(entity, after) == (entity in changed)


TestChangeCache = ChangeCacheMachine.TestCase
