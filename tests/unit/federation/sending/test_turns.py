"""Turns: fair, bounded, never early, in any order of what may happen."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tcprepl.federation.sending import turns as module
from tcprepl.federation.sending.turns import Place, Turns

NAMES = st.sampled_from("abcdef")


def test_turns_go_round_and_a_budget_bounds_them() -> None:
    turns: Turns[str] = Turns(2)
    for name in "abc":
        turns.ask(name, 0, 0)
    assert [turns.begin(0), turns.begin(0), turns.begin(0)] == ["a", "b", None]
    turns.ask("a", 0, 0)  # forgotten: it has its turn
    turns.end("a")
    turns.ask("a", 0, 0)
    assert turns.begin(0) == "c"
    turns.end("b")
    assert turns.begin(0) == "a"
    assert turns.place("a") is Place.RUNNING
    assert turns.place("b") is Place.AWAY


def test_the_earliest_time_asked_for_counts() -> None:
    turns: Turns[str] = Turns(1)
    turns.ask("a", 50, 0)
    turns.ask("a", 20, 0)
    turns.ask("a", 90, 0)
    assert (turns.due_ms("a"), turns.next_due_ms()) == (20, 20)
    assert turns.begin(19) is None
    assert turns.begin(20) == "a"
    assert turns.due_ms("a") == 0
    assert turns.next_due_ms() is None


def test_those_who_are_due_together_have_their_turns_in_the_order_of_asking() -> None:
    """Whoever they are: nobody compares them."""
    turns: Turns[object] = Turns(9)
    everybody = [object() for _ in range(9)]
    for one in everybody:
        turns.ask(one, 50, 0)
    assert [turns.begin(50) for _ in everybody] == everybody


def test_who_withdraws_gets_no_turn() -> None:
    turns: Turns[str] = Turns(1)
    turns.ask("a", 0, 0)
    turns.ask("b", 10, 0)
    turns.withdraw("a")
    turns.withdraw("b")
    assert turns.begin(99) is None
    assert turns.next_due_ms() is None


def test_void_entries_do_not_pile_up() -> None:
    turns: Turns[int] = Turns(1)
    for number in range(10_000):
        turns.ask(1, 1_000_000 - number, 0)
    assert len(turns._heap) <= 2 + module._SLACK
    crowd: Turns[int] = Turns(1)
    for number in range(10_000):
        crowd.ask(number % 500, 1_000_000 - number, 0)
        assert len(crowd._heap) <= 2 * 500 + module._SLACK


def test_who_waits_keeps_the_place_when_void_entries_go() -> None:
    turns: Turns[int] = Turns(1_000)
    chance = random.Random(1)
    due = {}
    for most in (*range(9_000, 1_000, -1_000), 900):
        for number in range(100):
            due[number] = most + chance.randrange(100)
            turns.ask(number, due[number], 0)
    for number in range(0, 100, 3):
        turns.withdraw(number)
        del due[number]
    assert len(turns._heap) < 9 * 100
    turns._compact()
    assert turns.next_due_ms() == min(due.values())
    found = [turns.begin(now) for now in sorted(due.values())]
    assert [due[one] for one in found if one is not None] == sorted(due.values())


class TurnsMachine(RuleBasedStateMachine):
    """Turns beside plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[str] = Turns(2)
        self.now_ms = 0
        self.line: list[str] = []
        self.due: dict[str, int] = {}
        self.running: set[str] = set()

    def _pass(self) -> None:
        for name, _ in sorted(
            ((n, d) for n, d in self.due.items() if d <= self.now_ms), key=lambda found: found[1]
        ):
            del self.due[name]
            self.line.append(name)

    @rule(name=NAMES, delay_ms=st.integers(0, 1))
    def ask_now(self, name: str, delay_ms: int) -> None:
        """Ask for a turn at once."""
        self.turns.ask(name, self.now_ms - delay_ms, self.now_ms)
        if name not in self.running and name not in self.line:
            self.due.pop(name, None)
            self.line.append(name)

    @rule(name=NAMES, delay_ms=st.integers(1, 20))
    def ask_later(self, name: str, delay_ms: int) -> None:
        """Ask for a turn later; distinct times, so that the order is known."""
        due_ms = self.now_ms + delay_ms
        if name in self.running or name in self.line or due_ms in self.due.values():
            return
        self.turns.ask(name, due_ms, self.now_ms)
        self.due[name] = min(due_ms, self.due.get(name, due_ms))

    @rule(name=NAMES)
    def withdraw(self, name: str) -> None:
        """Ask for nothing any more."""
        self.turns.withdraw(name)
        self.due.pop(name, None)
        if name in self.line:
            self.line.remove(name)

    @rule(passed_ms=st.integers(0, 15))
    def begin(self, passed_ms: int) -> None:
        """Time passes, and somebody has a turn."""
        self.now_ms += passed_ms
        self._pass()
        expected = self.line.pop(0) if self.line and len(self.running) < 2 else None
        assert self.turns.begin(self.now_ms) == expected
        if expected is not None:
            self.running.add(expected)

    @rule(name=NAMES)
    def end(self, name: str) -> None:
        """A turn is over."""
        self.turns.end(name)
        self.running.discard(name)

    @invariant()
    def each_is_in_one_place(self) -> None:
        """Both agree on where everybody is."""
        for name in "abcdef":
            place = self.turns.place(name)
            assert (place is Place.RUNNING) == (name in self.running)
            assert (place is Place.IN_LINE) == (name in self.line)
            assert self.turns.due_ms(name) == self.due.get(name, 0)
        assert self.turns.next_due_ms() == min(self.due.values(), default=None)


TestTurns = TurnsMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1_000)), max_size=60))
def test_everybody_who_asks_gets_a_turn(asked: list[tuple[int, int]]) -> None:
    turns: Turns[int] = Turns(3)
    for one, due_ms in asked:
        turns.ask(one, due_ms, 0)
    served: list[int] = []
    while (one := turns.begin(1_000)) is not None:
        served.append(one)
        turns.end(one)
    assert sorted(served) == sorted({one for one, _ in asked})
