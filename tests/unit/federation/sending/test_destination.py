"""A destination: what it holds, and what answers mean."""

from __future__ import annotations

from itertools import count
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.sending import destination as module
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.destination import Destination, Held, Verdict
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.search import FIRST_DENIALS, REPEATED
from tcprepl.federation.sending.stored import StoredTransaction
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu
from tcprepl.federation.wire.transaction import ENVELOPE_BYTES, TransactionLimits, edu_bytes

LIMITS = TransactionLimits()


def entry(number: int, key: str | None = None, pad: int = 0) -> Entry:
    content = {"n": number, "pad": "x" * pad}
    return number, 0, build_edu("x", "y", "m.test", content, None if key is None else (key,))


def make(entries: int = 1, *, uncertain: bool = False) -> Destination:
    made = Destination("y", LIMITS)
    made.in_flight = StoredTransaction("t", 0, [entry(n) for n in range(1, entries + 1)], uncertain)
    return made


def test_a_new_destination_is_plain() -> None:
    made = Destination("y", LIMITS)
    assert made.is_plain
    assert not made.has_work
    assert made.take(0, []) == []
    assert (made.purges, made.last_success_ms) == (0, 0)


def test_what_was_taken_is_no_work_any_more() -> None:
    made = Destination("y", LIMITS)
    made.hold(entry(1))
    assert made.has_new_work
    made.take(0, [])
    assert not made.has_new_work
    assert made.is_plain


def test_it_holds_what_is_new_while_it_holds_all() -> None:
    made = Destination("y", LIMITS)
    assert made.hold(entry(1, "a")) == 1
    assert made.hold(entry(2, "a")) == 0
    assert made.has_work
    assert made.held is Held.ALL
    assert made.held_upto == 2
    assert [found[0] for found in made.take(0, [])] == [2]


@pytest.mark.parametrize(
    "why", ["no room", "failing", "put off", "incomplete", "too many", "too large"]
)
def test_what_it_cannot_hold_stays_on_disk(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Destination("y", LIMITS)
    made.hold(entry(1, "a", pad=100))
    if why == "failing":
        made.backoff.failures = 1
    elif why == "put off":
        made.put_off = 1
    elif why == "incomplete":
        made.held = Held.OLDEST
    elif why == "too many":
        monkeypatch.setattr(module, "MAX_HELD_EDUS", 1)
    elif why == "too large":
        monkeypatch.setattr(module, "MAX_HELD_BYTES", 1)
    assert made.hold(entry(2, "b"), why != "no room") == 0
    assert made.held is Held.OLDEST
    # The older one of the key is not worth sending any more.
    assert made.hold(entry(3, "a"), why != "no room") == -1
    assert not made.queue


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=5), max_size=5),
    st.integers(0, 8),
    st.integers(1, 8),
    st.integers(0, 9),
)
def test_many_at_once_are_held_as_one_by_one(
    groups: list[list[str | None]], room: int, most: int, fails_after: int
) -> None:
    """What is in memory and what is left on disk is the same, whatever runs out."""
    numbers = count(1)
    single, grouped = Destination("y", LIMITS), Destination("y", LIMITS)
    held_single = held_grouped = 0
    with mock.patch.object(module, "MAX_HELD_EDUS", most):
        for number, keys in enumerate(groups):
            if number == fails_after:
                single.backoff.failures = grouped.backoff.failures = 1
            group = [entry(next(numbers), key) for key in keys]
            for one in group:
                held_single += single.hold(one, held_single < room)
            held_grouped += grouped.hold_all(group, room - held_grouped)
            assert held_grouped == held_single
            assert grouped.held is single.held
            assert grouped.held_upto == single.held_upto
    assert [e[0] for e in grouped.take(0, [])] == [e[0] for e in single.take(0, [])]


def test_what_is_forgotten_leaves_only_numbers() -> None:
    made = make()
    made.hold(entry(5))
    assert made.forget_memory() == 1
    assert made.stored
    assert made.in_flight is None
    assert made.queue is None
    assert made.held is Held.OLDEST
    assert made.has_work
    assert made.forget_memory() == 0


MATRIX = b'{"errcode":"M_UNKNOWN","error":"no"}'


def test_what_is_outdated_is_read_anew() -> None:
    made = Destination("y", LIMITS)
    made.outdate()
    assert made.has_new_work
    assert made.forget_queue() == 0
    assert made.held is Held.OLDEST


@pytest.mark.parametrize(
    ("answer", "entries", "verdict"),
    [
        (Answer(200, b"{}"), 1, Verdict.ACCEPTED),
        (Answer(200, b"<html>", None, "text/html"), 1, Verdict.RETRY),
        (Answer(204, b""), 1, Verdict.RETRY),
        (Answer(413, b""), 2, Verdict.HALVE),
        (Answer(413, b""), 1, Verdict.QUARANTINE),
        (Answer(400, b"<html>"), 2, Verdict.HALVE),
        (Answer(400, MATRIX), 1, Verdict.QUARANTINE),
        (Answer(429, MATRIX), 2, Verdict.RETRY),
        (Answer(503, MATRIX), 2, Verdict.RETRY),
        (Answer(401, MATRIX), 2, Verdict.HALVE),
        (Answer(404, MATRIX), 1, Verdict.SET_ASIDE),
        (Answer(500, b""), 2, Verdict.HALVE),
        (Answer(500, MATRIX), 1, Verdict.SET_ASIDE),
        (Answer(502, b""), 2, Verdict.RETRY),
        (Answer(302, b""), 2, Verdict.RETRY),
    ],
)
def test_what_an_answer_means(answer: Answer, entries: int, verdict: Verdict) -> None:
    assert make(entries).judge(answer) is verdict


@pytest.mark.parametrize("status", [401, 403, 404, 500])
@pytest.mark.parametrize("how", ["earlier", "just now"])
def test_a_transaction_that_may_have_arrived_keeps_its_id(status: int, how: str) -> None:
    """Whatever says nothing of the try before: the others go meanwhile."""
    made = make(2, uncertain=how == "earlier")
    answer = Answer(status, MATRIX, repeated=how == "just now")
    assert made.judge(answer) is Verdict.PUT_OFF


def test_only_so_many_transactions_are_put_off() -> None:
    made = make(2, uncertain=True)
    made.put_off = module.MAX_PUT_OFF
    assert made.judge(Answer(401, MATRIX)) is Verdict.RETRY


def test_a_transaction_with_unclear_answers_is_put_off_in_the_end() -> None:
    made = make(2)
    verdicts = [made.judge(Answer(502, b"")) for _ in range(module.PUT_OFF_AFTER)]
    assert verdicts == [*[Verdict.RETRY] * (module.PUT_OFF_AFTER - 1), Verdict.PUT_OFF]
    assert made.in_flight is not None
    assert made.in_flight.uncertain


def test_unclear_answers_are_counted_for_each_transaction_by_itself() -> None:
    unclear = Answer(502, b"")
    made = make(2)
    assert made.judge(unclear) is Verdict.RETRY
    assert made.judge(unclear) is Verdict.PUT_OFF
    assert made.judge(unclear) is Verdict.RETRY
    made.begin(StoredTransaction("t2", 0, [entry(9)]))
    assert made.judge(unclear) is Verdict.RETRY
    assert made.judge(unclear) is Verdict.PUT_OFF
    assert made.judge(unclear) is Verdict.RETRY
    made.accepted(0, LIMITS)
    made.loaded(StoredTransaction("t3", 0, [entry(8)]))
    assert made.judge(unclear) is Verdict.RETRY
    assert made.judge(unclear) is Verdict.PUT_OFF


def test_what_a_server_says_of_the_content_ends_the_doubt() -> None:
    """It has read the id, and would have said that it has taken it."""
    assert make(2, uncertain=True).judge(Answer(400, MATRIX)) is Verdict.HALVE
    assert make(1, uncertain=True).judge(Answer(413, b"")) is Verdict.QUARANTINE


def test_what_did_not_get_there() -> None:
    assert make(uncertain=True).judge_not_reached() is Verdict.RETRY
    assert make().judge_not_reached() is Verdict.DISSOLVE
    made = make()
    assert made.judge_unanswered() is Verdict.RETRY
    assert made.judge_not_reached() is Verdict.RETRY


@pytest.mark.parametrize("uncertain", [False, True])
def test_it_remembers_whether_the_transaction_on_disk_may_have_arrived(uncertain: bool) -> None:
    made = make(uncertain=uncertain)
    transaction = made.in_flight
    assert transaction is not None
    made.forget_memory()
    made.loaded(StoredTransaction("t", 0, transaction.entries, uncertain=True))
    assert made.in_flight is not None
    assert made.in_flight.uncertain is uncertain


def test_too_large_means_less_next_time_and_success_lets_it_grow_again() -> None:
    made = make(50)
    made.judge(Answer(413, b""))
    assert made.max_edus == 25
    assert made.max_bytes < 50 * 100
    made.accepted(9, LIMITS)
    assert made.max_edus == 26
    assert made.last_success_ms == 9
    for _ in range(200):
        made.in_flight = StoredTransaction("t", 0, [entry(1)])
        made.accepted(9, LIMITS)
    assert (made.max_edus, made.max_bytes) == (LIMITS.edus, LIMITS.max_bytes)


@pytest.mark.parametrize(("edus", "most"), [(2, 1), (3, 1), (4, 2), (50, 25)])
def test_what_is_too_large_together_is_tried_by_halves(edus: int, most: int) -> None:
    made = make(edus)
    assert made.judge(Answer(413, b"")) is Verdict.HALVE
    assert made.max_edus == most


@pytest.mark.parametrize(("pad", "least"), [(0, True), (20_000, False)])
def test_what_is_too_large_is_halved_down_to_what_makes_sense(pad: int, least: bool) -> None:
    made = Destination("y", LIMITS)
    entries = [entry(number, pad=pad) for number in range(2)]
    made.begin(StoredTransaction("t", 0, entries))
    made.judge(Answer(413, b""))
    half = sum(edu_bytes(edu) for _, _, edu in entries) // 2
    assert (half < 2 * ENVELOPE_BYTES) == least
    assert made.max_bytes == max(half, 2 * ENVELOPE_BYTES)


@pytest.mark.parametrize("status", [400, 500])
def test_a_search_bounds_what_is_taken(status: int) -> None:
    made = make(8)
    for number in range(20, 30):
        made.hold(entry(number))
    made.judge(Answer(status, MATRIX))
    assert len(made.take(0, [])) == 4


def test_a_full_quarantine_takes_no_more_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SUSPECTS", 2)
    made = make(1)
    made.quarantined = module.MAX_QUARANTINED
    assert made.judge(Answer(400, MATRIX)) is Verdict.SET_ASIDE
    made.in_flight = StoredTransaction("t", 0, [entry(7)])
    assert made.judge(Answer(400, MATRIX)) is Verdict.DISSOLVE


def test_too_many_suspects_end_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUSPECTS", 1)
    assert make(1).judge(Answer(500, MATRIX)) is Verdict.DISSOLVE


def test_who_is_refused_again_after_others_were_taken_is_to_blame() -> None:
    made = make(1)
    assert made.judge(Answer(500, MATRIX)) is Verdict.SET_ASIDE
    made.in_flight = StoredTransaction("t2", 0, [entry(2)])
    made.accepted(0, LIMITS)
    verdicts = []
    for number in range(REPEATED):
        made.in_flight = StoredTransaction(f"t{3 + number}", 0, [entry(1)])
        verdicts.append(made.judge(Answer(500, MATRIX)))
    assert verdicts == [*[Verdict.SET_ASIDE] * (REPEATED - 1), Verdict.QUARANTINE]
    assert made.search is not None
    assert made.search.suspects == set()


def test_who_is_taken_after_all_is_not_to_blame() -> None:
    made = make(1)
    assert made.judge(Answer(500, MATRIX)) is Verdict.SET_ASIDE
    assert made.search is not None
    assert made.search.suspects == {1}
    made.accepted(0, LIMITS)
    assert made.search.suspects == set()


def test_what_was_refused_with_others_is_new_evidence_when_one_of_the_others_is_taken() -> None:
    made = make(2)
    assert made.judge(Answer(500, MATRIX)) is Verdict.HALVE
    made.in_flight = StoredTransaction("t2", 0, [entry(2)])
    made.accepted(0, LIMITS)
    made.in_flight = StoredTransaction("t3", 0, [entry(1)])
    assert made.judge(Answer(500, MATRIX)) is Verdict.SET_ASIDE
    assert made.search is not None
    assert made.search.has_new_evidence


def test_a_remote_that_takes_nothing_is_left_alone_in_the_end() -> None:
    made = make(1)
    verdicts = []
    for number in range(FIRST_DENIALS):
        made.in_flight = StoredTransaction("t", 0, [entry(number)])
        verdicts.append(made.judge(Answer(500, MATRIX)))
    assert verdicts == [*[Verdict.SET_ASIDE] * (FIRST_DENIALS - 1), Verdict.DISSOLVE]


def test_what_is_new_need_not_wait_as_long_as_what_was_refused() -> None:
    made = Destination("y", LIMITS)
    made.backoff.failed(1_000, BackoffPolicy(), lambda a, b: 1.0, "no", refusing=True)
    made.put_off = 1
    assert made.due_ms == made.backoff.next_ms
    made.held = Held.OLDEST
    assert made.due_ms < made.backoff.next_ms


def test_what_is_read_back_is_read_once() -> None:
    """The next page begins behind the highest id in memory, in whatever order they came."""
    made = Destination("y", LIMITS)
    made.held = Held.OLDEST
    for number in (7, 3):
        assert made.put(entry(number)) == 1
    assert made.held_upto == 7
    assert [found[0] for found in made.take(0, [])] == [7, 3]
    made.forget_queue()
    assert made.held_upto == 0
