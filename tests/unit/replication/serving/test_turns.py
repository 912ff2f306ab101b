"""Turns: bounded, fair, and never forgetting anybody."""

from __future__ import annotations

import sys

import pytest
from twisted.internet.task import Clock

from tcprepl.limits import PEER_TURN_LINES, TURN_LINES, TURN_S
from tcprepl.replication.serving.turns import CROWDED_SWITCH_S, Turns, Worked
from tests.wire import one_turn


class Workload:
    """So many lines to do; each takes its time, if *clock* is given."""

    def __init__(self, lines: int, clock: Clock | None = None, line_s: float = 0.0) -> None:
        self.left = lines
        self.clock = clock
        self.line_s = line_s
        self.shares: list[int] = []
        self.broken = self.ended = False

    def work(self, lines: int, ends_at: float) -> Worked:
        """Do as much of it as may be."""
        if self.broken:
            raise ZeroDivisionError
        done = min(self.left, lines)
        if self.clock is not None:
            done = 0
            while done < min(self.left, lines):
                done += 1
                self.clock.rightNow += self.line_s
                if self.clock.seconds() >= ends_at:
                    break
        self.left -= done
        self.shares.append(done)
        return Worked(done, self.left > 0)

    def failed(self) -> None:
        """Note that this is the end."""
        self.ended = True


def test_little_is_done_at_once() -> None:
    turns = Turns(Clock())
    little = Workload(3)
    turns.serve(little)
    assert little.left == 0
    turns.close()


def test_much_is_done_in_shares_a_turn_each() -> None:
    clock = Clock()
    turns = Turns(clock)
    much = Workload(PEER_TURN_LINES * 2 + 1)
    turns.serve(much)
    turns.serve(much)  # it has its turn already
    assert much.shares == [PEER_TURN_LINES]
    one_turn(clock)
    one_turn(clock)
    assert much.shares == [PEER_TURN_LINES, PEER_TURN_LINES, 1]
    one_turn(clock)
    assert not clock.getDelayedCalls()


def test_a_turn_is_bounded_and_who_comes_anew_goes_before_who_had_a_share() -> None:
    clock = Clock()
    turns = Turns(clock)
    crowd = [Workload(PEER_TURN_LINES * 10) for _ in range(TURN_LINES // PEER_TURN_LINES + 2)]
    for one in crowd:
        turns.serve(one)
    assert sum(sum(one.shares) for one in crowd) == TURN_LINES
    assert crowd[-1].shares == []
    late = Workload(1)
    turns.serve(late)
    assert late.shares == []
    before = sum(sum(one.shares) for one in crowd)
    one_turn(clock)
    assert late.shares == [1]
    assert crowd[-1].shares == [PEER_TURN_LINES]
    assert sum(sum(one.shares) for one in crowd) - before == TURN_LINES - 1
    for _ in range(1_000):
        one_turn(clock)
    assert not any(one.left for one in crowd)
    assert not clock.getDelayedCalls()


def test_what_takes_long_takes_turns_whatever_it_counts_for() -> None:
    """On a machine of any speed others are served after about `TURN_S`, of however many."""
    clock = Clock()
    turns = Turns(clock)
    crowd = [Workload(40, clock, TURN_S * 0.3) for _ in range(20)]
    for one in crowd:
        turns.serve(one)
    assert [sum(one.shares) for one in crowd] == [4] + [0] * 19
    for number in range(1, 20):
        began = clock.seconds()
        one_turn(clock)
        assert clock.seconds() - began <= TURN_S * 1.3
        assert [sum(one.shares) for one in crowd] == [4] * (number + 1) + [0] * (19 - number)
    for _ in range(400):
        one_turn(clock)
    assert not any(one.left for one in crowd)
    turns.close()


def test_other_threads_have_the_interpreter_sooner_while_it_is_crowded() -> None:
    usual = sys.getswitchinterval()
    clock = Clock()
    turns = Turns(clock)
    little, much = Workload(1), Workload(PEER_TURN_LINES * 3)
    turns.serve(little)
    one_turn(clock)
    assert sys.getswitchinterval() == usual
    turns.serve(much)
    one_turn(clock)
    assert sys.getswitchinterval() == pytest.approx(CROWDED_SWITCH_S)
    one_turn(clock)
    assert sys.getswitchinterval() == usual
    turns.serve(Workload(PEER_TURN_LINES * 3))
    one_turn(clock)
    assert sys.getswitchinterval() == pytest.approx(CROWDED_SWITCH_S)
    turns.close()
    assert sys.getswitchinterval() == usual


def test_a_single_piece_that_takes_longer_than_a_turn_is_done() -> None:
    clock = Clock()
    turns = Turns(clock)
    slow = [Workload(3, clock, TURN_S * 5) for _ in range(2)]
    for one in slow:
        turns.serve(one)
    for _ in range(6):
        one_turn(clock)
    assert [one.shares for one in slow] == [[1, 1, 1], [1, 1, 1]]
    assert not clock.getDelayedCalls()


def test_who_is_forgotten_works_no_more() -> None:
    clock = Clock()
    turns = Turns(clock)
    begun, new = Workload(TURN_LINES * 2), Workload(1)
    for one in [begun, *(Workload(TURN_LINES) for _ in range(8)), new]:
        turns.serve(one)
    for gone in (begun, new):
        turns.forget(gone)
        turns.forget(gone)
    for _ in range(1_000):
        one_turn(clock)
    assert (len(begun.shares), new.shares) == (1, [])


def test_after_the_close_nobody_works() -> None:
    clock = Clock()
    turns = Turns(clock)
    much = Workload(TURN_LINES)
    turns.serve(much)
    turns.close()
    turns.close()
    assert not clock.getDelayedCalls()


def test_a_worker_that_raises_ends_and_the_others_work_on() -> None:
    clock = Clock()
    turns = Turns(clock)
    much = [Workload(PEER_TURN_LINES * 3) for _ in range(3)]
    for each in much:
        turns.serve(each)
    much[0].broken = True
    for _ in range(3):
        one_turn(clock)
    assert [each.ended for each in much] == [True, False, False]
    assert [each.left for each in much[1:]] == [0, 0]
    assert not turns.awaits(much[0])
    turns.close()
