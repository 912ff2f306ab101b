"""What a database is given."""

from __future__ import annotations

from tcprepl.streams.engine import Commit, KnownTransactions
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import ProducerState


def test_a_commit_is_true_when_there_is_something_to_write() -> None:
    commit = Commit()
    assert not commit
    commit.note("p", ProducerState(2, 1, 5))
    commit.note("p", ProducerState(1, 3, 4))
    assert commit
    assert commit.producers == {"p": ProducerState(2, 3, 5)}


def test_ids_that_are_taken_come_with_their_answers() -> None:
    answers = {("s", "t"): Appended("s", "i", 1, 2)}
    known = KnownTransactions(answers)
    assert known.answers == answers
    assert "1 transaction ids" in str(known)
