"""Producers: each number is taken once and in order, whoever repeats, leaves out or sleeps."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tcprepl.errors import (
    EpochFenced,
    EpochTooHigh,
    SequenceHole,
    SequenceTooOld,
    TooManyProducers,
)
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams import producers as module
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import MAX_EPOCH_ASKED, Answer, Produced, Producers, ProducerState


def appended(token: int) -> Appended:
    return Appended("s", "i", token, token)


def take(producers: Producers, sequence: int, *, epoch: int = 1, settle: bool = True) -> None:
    produced = Produced("p", epoch, sequence)
    assert producers.check(produced) is None
    producers.begun(produced, appended(sequence * 10), 0)
    if settle:
        producers.settled(produced)


@pytest.fixture
def producers() -> Producers:
    made = Producers()
    made.claim("p", None, 0)
    return made


def test_a_repeated_number_gets_the_first_answer(producers: Producers) -> None:
    for sequence in (1, 2, 3):
        take(producers, sequence)
    assert producers.check(Produced("p", 1, 2)) == appended(20)
    assert not producers.under_way(Produced("p", 1, 2))
    assert producers.state("p") == ProducerState(1, 3, 0)


def test_a_hole_is_refused_with_what_is_expected(producers: Producers) -> None:
    take(producers, 1)
    with pytest.raises(SequenceHole, match="sequence 3 leaves a hole: expected 2") as caught:
        producers.check(Produced("p", 1, 3))
    assert (caught.value.sequence, caught.value.expected) == (3, 2)


def test_an_older_epoch_is_fenced_and_the_numbers_go_on(producers: Producers) -> None:
    take(producers, 1)
    assert producers.claim("p", None, 5) == ProducerState(2, 1, 5)
    for sequence in (1, 2, 9):
        with pytest.raises(EpochFenced, match="epoch 1 is fenced: the current one is 2") as caught:
            producers.check(Produced("p", 1, sequence))
        assert (caught.value.epoch, caught.value.current) == (1, 2)
    take(producers, 2, epoch=2)


def test_who_has_claimed_nothing_is_fenced(producers: Producers) -> None:
    with pytest.raises(EpochFenced, match="nobody has claimed"):
        producers.check(Produced("other", 1, 1))
    assert producers.state("other") is None


def test_an_epoch_can_be_held_again_or_raised_but_not_lowered(producers: Producers) -> None:
    assert producers.claim("p", 7, 0).epoch == 7
    assert producers.claim("p", 7, 0).epoch == 7
    with pytest.raises(EpochFenced):
        producers.claim("p", 6, 0)
    with pytest.raises(EpochFenced):
        producers.check(Produced("p", 8, 1))


def test_a_refused_append_takes_those_behind_it_with_it(producers: Producers) -> None:
    take(producers, 1)
    for sequence in (2, 3, 4):
        take(producers, sequence, settle=False)
    assert producers.under_way(Produced("p", 1, 4))
    assert producers.waits("p")
    producers.refused(Produced("p", 1, 3))
    producers.refused(Produced("p", 1, 4))
    assert producers.waits("p")
    with pytest.raises(SequenceHole, match="expected 3"):
        producers.check(Produced("p", 1, 4))
    producers.settled(Produced("p", 1, 2))
    assert not producers.waits("p")
    take(producers, 3)
    assert producers.check(Produced("p", 1, 2)) == appended(20)


def test_an_answer_that_is_forgotten_is_said_to_be(
    producers: Producers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWERS_KEPT", 2)
    producers = Producers()
    producers.claim("p", None, 0)
    for sequence in (1, 2, 3):
        take(producers, sequence)
    assert producers.check(Produced("p", 1, 2)) == appended(20)
    with pytest.raises(SequenceTooOld, match="expected 4") as caught:
        producers.check(Produced("p", 1, 1))
    assert (caught.value.sequence, caught.value.expected) == (1, 4)
    with pytest.raises(SequenceTooOld):
        producers.check(Produced("p", 1, 0))


def test_answers_that_are_forgotten_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of the others remembers does not go for them."""
    monkeypatch.setattr(module, "ANSWERS_KEPT", 2)
    monkeypatch.setattr(module, "MAX_ANSWERS", 4)
    producers = Producers()
    producers.restore("q", ProducerState(1, 1, 0), [Answer(1, appended(1))])
    producers.claim("p", None, 0)
    for sequence in range(1, 10):
        take(producers, sequence)
        assert producers.answers == 1 + min(sequence, 2)
    assert producers.check(Produced("q", 1, 1)) == appended(1)


def test_names_are_bounded_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PRODUCERS", 2)
    producers = Producers()
    producers.claim("a", None, 10)
    producers.claim("b", None, 20)
    with pytest.raises(TooManyProducers, match="producer c: there are 2 producers"):
        producers.claim("c", None, 30)
    producers.claim("a", None, 30)
    assert producers.names() == ["b", "a"]
    assert producers.expire(25) == ["b"]
    producers.claim("c", None, 30)
    produced = Produced("a", 2, 1)
    producers.begun(produced, appended(1), 30)
    assert producers.expire(30) == [], "it was used at that moment"
    assert producers.expire(100) == ["c"]


def test_what_was_stored_goes_on() -> None:
    producers = Producers()
    producers.restore(
        "p", ProducerState(3, 8, 1), [Answer(7, appended(70)), Answer(8, appended(80))]
    )
    assert producers.check(Produced("p", 3, 7)) == appended(70)
    assert producers.check(Produced("p", 3, 9)) is None
    with pytest.raises(SequenceTooOld):
        producers.check(Produced("p", 3, 6))


class Machine(RuleBasedStateMachine):
    """Two holders of one name, a log that may refuse, restarts: against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.producers = Producers()
        self.epoch = 0
        self.taken: list[int] = []  # the token of each number
        self.pending: list[int] = []
        self.runs: list[int] = []  # how many appends each of those pending has
        self.token = 0

    @rule()
    def somebody_claims_the_name(self) -> None:
        state = self.producers.claim("p", None, 0)
        self.epoch += 1
        assert (state.epoch, state.sequence) == (self.epoch, len(self.taken))

    @precondition(lambda self: self.epoch)
    @rule(appends=st.integers(2, 4), behind=st.integers(0, 1), ahead=st.integers(-2, 2))
    def somebody_appends_a_run(self, appends: int, behind: int, ahead: int) -> None:
        known = len(self.taken) + len(self.pending)
        produced = Produced("p", self.epoch - behind, known + 1 + ahead, appends)
        may = not (behind or ahead)
        assert self.producers.is_next(produced) == may
        if may:
            first, self.token = self.token + 1, self.token + appends
            self.producers.begun(produced, Appended("s", "i", first, self.token), 0)
            self.pending += range(first, self.token + 1)
            self.runs.append(appends)

    @precondition(lambda self: self.epoch)
    @rule(behind=st.integers(0, 2), ahead=st.integers(-3, 3))
    def somebody_appends(self, behind: int, ahead: int) -> None:
        known = [*self.taken, *self.pending]
        sequence = len(known) + 1 + ahead
        produced = Produced("p", self.epoch - behind, sequence)
        if behind:
            with pytest.raises(EpochFenced):
                self.producers.check(produced)
        elif ahead > 0:
            with pytest.raises(SequenceHole):
                self.producers.check(produced)
        elif ahead == 0:
            assert self.producers.check(produced) is None
            self.token += 1
            self.producers.begun(produced, appended(self.token), 0)
            self.pending.append(self.token)
            self.runs.append(1)
        elif sequence > 0:
            answer = self.producers.check(produced)
            assert answer == appended(known[sequence - 1])
            assert self.producers.under_way(produced) == (sequence > len(self.taken))

    @precondition(lambda self: self.pending)
    @rule()
    def the_oldest_is_on_disk(self) -> None:
        appends = self.runs.pop(0)
        first = len(self.taken) + 1
        self.taken += self.pending[:appends]
        del self.pending[:appends]
        self.producers.settled(Produced("p", self.epoch, first, appends))

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 5))
    def the_disk_refuses(self, which: int) -> None:
        which %= len(self.runs)
        before, appends = sum(self.runs[:which]), self.runs[which]
        del self.runs[which:]
        del self.pending[before:]
        first = len(self.taken) + before + 1
        self.producers.refused(Produced("p", self.epoch, first, appends))

    @precondition(lambda self: self.epoch)
    @rule()
    def the_process_dies(self) -> None:
        state = self.producers.state("p")
        assert state is not None
        answers = [Answer(n, appended(token)) for n, token in enumerate(self.taken, 1)]
        self.producers = Producers()
        self.producers.restore("p", state, answers)
        self.pending = []
        self.runs = []

    @invariant()
    def the_state_is_what_was_taken(self) -> None:
        if self.epoch:
            state = self.producers.state("p")
            assert state is not None
            assert state.sequence == len(self.taken)
            assert self.producers.waits("p") == bool(self.pending)


TestMachine = Machine.TestCase


def test_answers_of_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of who was not used for longest go; what is under way stays, and so do the numbers."""
    monkeypatch.setattr(module, "MAX_ANSWERS", 8)
    producers = Producers()
    for name in "pq":
        producers.claim(name, None, 0)
    for sequence in range(1, 7):
        take(producers, sequence, settle=sequence < 6)
    producers.restore("q", ProducerState(1, 2, 0), [Answer(n, appended(n)) for n in (1, 2)])
    assert producers.answers == 8
    produced = Produced("q", 1, 3)
    assert producers.check(produced) is None
    producers.begun(produced, appended(3), 0)
    assert producers.answers == 4
    with pytest.raises(SequenceTooOld):
        producers.check(Produced("p", 1, 5))
    assert producers.check(Produced("p", 1, 6)) == appended(60)
    assert producers.check(Produced("q", 1, 1)) == appended(1)


def test_an_answer_is_never_that_of_another_number() -> None:
    """Numbers of which the answers were lost are taken all the same."""
    producers = Producers()
    producers.restore("p", ProducerState(1, 3, 0), [Answer(1, appended(1))])
    assert producers.check(Produced("p", 1, 1)) == appended(1)
    for sequence in (0, 2, 3):
        with pytest.raises(SequenceTooOld):
            producers.check(Produced("p", 1, sequence))


def test_what_is_under_way_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it is."""
    monkeypatch.setattr(module, "MAX_ANSWERS", 2)
    producers = Producers()
    producers.claim("p", None, 0)
    for sequence in (1, 2, 3):
        take(producers, sequence, settle=False)
    assert producers.answers == 3
    assert producers.check(Produced("p", 1, 1)) == appended(10)


def test_no_claim_uses_a_name_up(producers: Producers) -> None:
    """An epoch out of the air has an end below which claims go on; one that is held may be kept."""
    with pytest.raises(EpochTooHigh) as caught:
        producers.claim("new", MAX_EPOCH_ASKED + 1, 1)
    assert caught.value.current == 0
    assert producers.state("new") is None
    assert producers.claim("p", MAX_EPOCH_ASKED, 1).epoch == MAX_EPOCH_ASKED
    assert producers.claim("p", None, 1).epoch == MAX_EPOCH_ASKED + 1
    assert producers.claim("p", MAX_EPOCH_ASKED + 1, 1).epoch == MAX_EPOCH_ASKED + 1
    producers.restore("old", ProducerState(MAX_TOKEN, 0, 1))  # as releases before gave it out
    assert producers.claim("old", None, 1).epoch == MAX_TOKEN


def test_who_appends_is_not_forgotten_however_long_ago_it_claimed() -> None:
    producers = Producers()
    for name, used_ms in (("a", 10), ("b", 20)):
        producers.claim(name, None, used_ms)
    producers.begun(Produced("a", 1, 1), appended(1), 30)
    producers.settled(Produced("a", 1, 1))
    assert producers.names() == ["b", "a"]
    assert producers.expire(25) == ["b"]
    assert producers.answers == 1
    assert producers.expire(31) == ["a"]
    assert producers.answers == 0


def test_what_is_settled_cannot_be_refused(producers: Producers) -> None:
    take(producers, 1)
    producers.refused(Produced("p", 1, 1))
    assert producers.state("p") == ProducerState(1, 1, 0)
    assert producers.check(Produced("p", 1, 1)) == appended(10)
    assert producers.answers == 1
