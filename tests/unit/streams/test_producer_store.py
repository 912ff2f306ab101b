"""Producers on disk: what is written comes back, however it was packed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.streams.log import Appended
from tcprepl.streams.producer_store import (
    CREATE_PRODUCERS,
    decode_answers,
    encode_answers,
    read_producers,
    write_producers,
)
from tcprepl.streams.producers import ANSWERS_KEPT, Answer, ProducerState

APPENDED = st.builds(
    lambda stream, instance, first, width: Appended(stream, instance, first, first + width),
    st.sampled_from("ab"),
    st.sampled_from("ij"),
    st.integers(1, 9),
    st.integers(0, 2),
)


@given(st.integers(1, 2**40), st.lists(APPENDED, min_size=1))
def test_answers_come_back_as_they_were(first: int, given: list[Appended]) -> None:
    """Whatever runs they form."""
    answers = [Answer(first + n, appended) for n, appended in enumerate(given)]
    assert each(decode_answers(encode_answers(answers))) == each(answers)


@given(st.integers(1, 2**40), st.lists(st.tuples(st.integers(1, 99), st.integers(1, 9))))
def test_answers_of_runs_come_back_as_they_were(first: int, runs: list[tuple[int, int]]) -> None:
    """As those of their appends, in as few as can be."""
    answers = [Answer(first, Appended("s", "i", 1, 2), 2)]
    for token, appends in runs:
        last = token + appends - 1
        answers.append(Answer(answers[-1].last + 1, Appended("s", "i", token, last), appends))
    back = list(decode_answers(encode_answers(answers)))
    assert each(back) == each(answers)
    assert len(back) <= len(answers)


def each(answers: Iterable[Answer]) -> list[tuple[int, Appended]]:
    """Return what was answered to each append."""
    numbers = ((answer, range(answer.sequence, answer.last + 1)) for answer in answers)
    return [(number, answer.of(number)) for answer, some in numbers for number in some]


def test_a_run_of_small_appends_is_small() -> None:
    """One stream, tokens one after the other: a few bytes, however many."""
    answers = [Answer(n, Appended("s", "i", 2 * n, 2 * n + 1)) for n in range(1, 4_000)]
    assert len(encode_answers(answers)) < 40


def test_what_is_old_changes_nothing_and_what_is_forgotten_goes() -> None:
    """States only grow; answers are kept as long as anybody may ask."""

    def answer(sequence: int) -> Answer:
        return Answer(sequence, Appended("s", "i", sequence, sequence))

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(CREATE_PRODUCERS)

        def known() -> dict[str, tuple[ProducerState, list[Answer]]]:
            return {name: (state, list(said)) for name, state, said in read_producers(connection)}

        two = Answer(1, Appended("s", "i", 1, 2), 2)

        write_producers(connection, {"p": ProducerState(2, 0, 9)}, {}, ())
        write_producers(
            connection, {"p": ProducerState(1, 2, 5)}, {"p": [answer(1), answer(2)]}, ()
        )
        write_producers(connection, {"q": ProducerState(1, 1, 1)}, {"q": [answer(1)]}, ())
        assert known() == {
            "q": (ProducerState(1, 1, 1), [answer(1)]),
            "p": (ProducerState(2, 2, 9), [two]),
        }
        assert list(known()) == ["q", "p"]
        late = 3 + ANSWERS_KEPT
        write_producers(connection, {"p": ProducerState(2, late, 9)}, {"p": [answer(late)]}, ("q",))
        assert known() == {"p": (ProducerState(2, late, 9), [answer(late)])}
        assert connection.execute("SELECT producer, last FROM answers").fetchall() == [("p", late)]


def test_of_who_is_forgotten_no_answer_is_left() -> None:
    """Nor for who takes the name anew."""
    state, answers = ProducerState(1, 1, 5), [Answer(1, Appended("a", "i", 1, 1))]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(CREATE_PRODUCERS)
        write_producers(connection, {"p": state, "q": state}, {"p": answers, "q": answers}, ())
        write_producers(connection, {"p": state}, {}, ["p"])
        found = {name: (was, list(given)) for name, was, given in read_producers(connection)}
    assert found == {"p": (state, []), "q": (state, answers)}
