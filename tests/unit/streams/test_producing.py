"""Producers on a log whose commits take time, fail, and end with the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl.errors import EpochFenced, LogUnavailable, SequenceHole
from tcprepl.streams.commits import Claim
from tcprepl.streams.engine import Commit
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import Produced, Producers, ProducerState
from tcprepl.streams.producing import Producing
from tcprepl.streams.retention import Retention
from tests.log_kit import DURABLE, EPHEMERAL, SqliteStore, add, claim, read_all, result, row
from tests.unit.streams.test_stored import SlowWorker, crashed, refuse, slow_log


def produce(log: Any, sequence: int, stream: str = DURABLE, epoch: int = 1) -> Deferred[Appended]:
    """Append one row, which has the number in it, as producer ``p``."""
    appended: Deferred[Appended] = log.append(
        stream, "w", [row(str(sequence))], produced=Produced("p", epoch, sequence)
    )
    return appended


def quiet(deferred: Deferred[Any]) -> list[Any]:
    """Return what *deferred* comes to: the last token, or the kind of error."""
    found: list[Any] = []
    deferred.addCallbacks(
        lambda answer: found.append(answer.last), lambda failure: found.append(failure.type)
    )
    return found


def begin(log: Any, worker: SlowWorker) -> None:
    """Claim ``p``, and some tokens of the ephemeral stream."""
    log.ensure(EPHEMERAL, "w")
    claimed = log.claim("p")
    worker.run()
    assert result(claimed).epoch == 1


def produce_run(log: Any, first: int, last: int) -> Deferred[Appended]:
    """Append rows as a run of producer ``p``, if it may begin."""
    produced = Produced("p", 1, first, last - first + 1)
    assert log.may_begin(DURABLE, produced)
    rows = [row(str(number)) for number in range(first, last + 1)]
    appended: Deferred[Appended] = log.append(DURABLE, "w", rows, produced=produced)
    return appended


def test_each_number_of_a_run_has_its_own_answer(tmp_path: Path) -> None:
    """Under way, settled, and in the next process; no number is taken twice."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    assert not log.may_begin(DURABLE, Produced("p", 1, 2, 3))
    assert not log.may_begin(DURABLE, Produced("p", 2, 1, 3))
    assert not log.may_begin(EPHEMERAL, Produced("p", 1, 1, 3))
    run = quiet(produce_run(log, 1, 4))
    assert not log.may_begin(DURABLE, Produced("p", 1, 4, 2))
    repeats = [quiet(produce(log, number)) for number in (3, 1, 4)]
    behind = quiet(produce(log, 5))
    worker.run()
    worker.run()
    assert [run, *repeats, behind] == [[4], [3], [1], [4], [5]]
    assert quiet(produce(log, 2)) == [2]
    log.close()
    again = SqliteStore(tmp_path / "slow")
    assert [quiet(produce(again.log, number)) for number in (2, 5)] == [[2], [5]]
    assert [r for _, r in read_all(again.log, DURABLE, 0)] == [*map(row, "12345")]
    again.close()


def test_a_run_that_is_refused_may_come_again_in_other_pieces(tmp_path: Path) -> None:
    """With all behind it, and who has repeated one of its numbers."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    answers = [quiet(produce_run(log, 1, 3)), quiet(produce_run(log, 4, 6))]
    answers += [quiet(produce(log, number)) for number in (2, 5, 7)]
    with refuse(SqliteStoreLike(log)):
        worker.run()
    assert answers == [[LogUnavailable]] * 5
    assert quiet(produce(log, 2)) == [SequenceHole]
    again = [quiet(produce(log, 1)), quiet(produce_run(log, 2, 5)), quiet(produce(log, 6))]
    worker.run()
    worker.run()
    assert again == [[8], [12], [13]]
    assert [r for _, r in read_all(log, DURABLE, 0)] == [*map(row, "123456")]
    log.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_restart_changes_nothing_for_a_producer(tmp_path: Path, killed: bool) -> None:
    """Epoch, sequence and answers are on disk with the rows."""
    store = SqliteStore(tmp_path / "data")
    claim(store)
    first = [add(store, s, row("a"), produced=Produced("p", 1, n)) for n, s in FOUR]
    if killed:
        other = crashed(store, tmp_path)
    else:
        store.reopen()
        other = store
    assert [add(other, s, row("a"), produced=Produced("p", 1, n)) for n, s in FOUR] == first
    assert len(read_all(other.log, DURABLE, 0)) == 2
    with pytest.raises(SequenceHole, match="expected 5"):
        result(produce(other.log, 6))
    assert claim(other)[:2] == (2, 4)
    with pytest.raises(EpochFenced):
        result(produce(other.log, 5))


FOUR = ((1, DURABLE), (2, EPHEMERAL), (3, EPHEMERAL), (4, DURABLE))


def test_a_repeat_under_way_shares_the_answer(tmp_path: Path) -> None:
    """Whoever lost the connection, and says it again while it waits for the disk."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    answers = [quiet(produce(log, 1)) for _ in range(3)]
    assert answers == [[], [], []]
    worker.run()
    assert answers == [[1], [1], [1]]
    log.close()


def test_a_commit_that_is_refused_takes_along_what_follows(tmp_path: Path) -> None:
    """Nothing passes what was refused; all of it may come again, and gets in once."""
    store = SqliteStore(tmp_path / "data", clock=None)
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    one = quiet(produce(log, 1))  # a commit of its own, under way
    later = [quiet(produce(log, n)) for n in (2, 3)]
    repeat = quiet(produce(log, 2))
    other = log.append(DURABLE, "w", [row("o")])
    with refuse(SqliteStoreLike(log)):
        worker.run()
    assert [one, *later, repeat] == [[LogUnavailable]] * 4
    worker.run()
    assert result(other).last == 4  # the tokens of what was refused are not used again
    assert quiet(produce(log, 2)) == [SequenceHole]
    again = [quiet(produce(log, n)) for n in (1, 2, 3)]
    worker.run()
    worker.run()
    assert again == [[5], [6], [7]]
    assert [r for _, r in read_all(log, DURABLE, 0)] == [row("o"), *map(row, "123")]
    log.close()
    store.close()


class SqliteStoreLike:
    """What `refuse` needs."""

    def __init__(self, log: Any) -> None:
        self.log = log


def test_a_claim_hears_of_what_is_under_way(tmp_path: Path) -> None:
    """Its holder must not give the number of what somebody else has sent to rows of its own."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    one, two = produce(log, 1), produce(log, 2)
    claimed = log.claim("p")
    fenced = quiet(produce(log, 3))
    assert fenced == [EpochFenced]
    worker.run()
    worker.run()
    assert result(claimed)[:2] == (2, 2)
    assert (result(one).last, result(two).last) == (1, 2)
    log.close()


def test_a_claim_that_the_disk_refuses_is_none(tmp_path: Path) -> None:
    """Nobody is told of an epoch that a restart would give to somebody else."""
    store = SqliteStore(tmp_path / "data")
    with refuse(store), pytest.raises(LogUnavailable):
        claim(store)
    assert claim(store).epoch == 2
    store.reopen()
    assert claim(store).epoch == 3
    store.close()


def test_an_ephemeral_append_waits_for_what_is_under_way(tmp_path: Path) -> None:
    """And all that follow wait for it; others do not."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    heard: list[bytes] = []
    log.add_listener(lambda block: heard.append(block.lines))
    answers = [
        quiet(produce(log, n, stream))
        for n, stream in ((1, DURABLE), (2, EPHEMERAL), (3, DURABLE), (4, EPHEMERAL))
    ]
    claimed = log.claim("p", 1)
    assert quiet(log.append(EPHEMERAL, "w", [row("x")])) == [1]
    assert answers == [[], [], [], []]
    for _ in range(4):
        worker.run()
    assert answers == [[1], [2], [2], [3]]
    assert [line.split(b"@")[1][:1] for line in heard] == [b"x", b"1", b"2", b"3", b"4"]
    assert result(claimed).epoch == 1
    log.close()


def test_what_waits_for_a_refused_append_is_refused_too(tmp_path: Path) -> None:
    """An ephemeral row does not pass the durable one before it."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    answers = [quiet(produce(log, n, s)) for n, s in ((1, DURABLE), (2, EPHEMERAL), (3, DURABLE))]
    with refuse(SqliteStoreLike(log)):
        worker.run()
    assert answers == [[LogUnavailable], [SequenceHole], [SequenceHole]]
    assert log.position(EPHEMERAL, "w") == 0
    log.close()


def test_a_number_published_at_once_is_written_again_if_the_disk_refuses(tmp_path: Path) -> None:
    """The next commit has it."""
    store = SqliteStore(tmp_path / "data")
    claim(store)
    store.log.ensure(EPHEMERAL, "w")
    with refuse(store):
        assert add(store, EPHEMERAL, row("a"), produced=Produced("p", 1, 1)).last == 1
        assert add(store, EPHEMERAL, row("b"), produced=Produced("p", 1, 2)).last == 2
    first = add(store, DURABLE, row("c"), produced=Produced("p", 1, 3))
    other = crashed(store, tmp_path)
    assert add(other, DURABLE, row("c"), produced=Produced("p", 1, 3)) == first
    assert add(other, EPHEMERAL, row("b"), produced=Produced("p", 1, 2)).last == 2
    other.close()
    store.close()


def test_an_ephemeral_append_without_tokens_is_refused_and_may_come_again(tmp_path: Path) -> None:
    """The disk refused the claim of tokens: the number has not been used."""
    store = SqliteStore(tmp_path / "data", Retention(reserved_tokens=1))
    claim(store)
    with refuse(store), pytest.raises(LogUnavailable):
        add(store, EPHEMERAL, row("a"), row("b"), produced=Produced("p", 1, 1))
    add(store, EPHEMERAL, row("a"), row("b"), produced=Produced("p", 1, 1))
    store.close()


@pytest.mark.parametrize("refused", [False, True])
def test_a_forgotten_producer_is_forgotten_on_disk(tmp_path: Path, refused: bool) -> None:
    """Also when the first commit that was to do it was refused."""
    store = SqliteStore(tmp_path / "data", Retention(transaction_age_s=60))
    claim(store)
    add(store, EPHEMERAL, row("a"), produced=Produced("p", 1, 1))
    store.now_ms += 61_000
    if refused:
        with refuse(store):
            store.log.expire()
    else:
        store.log.expire()
    add(store, DURABLE, row("b"))
    store.reopen()
    assert claim(store)[:2] == (1, 0)
    store.close()


def test_a_number_that_the_disk_has_not_heard_of_is_forgotten_with_its_producer(
    tmp_path: Path,
) -> None:
    """Nothing is written of who is gone."""
    store = SqliteStore(tmp_path / "data", Retention(transaction_age_s=60))
    claim(store)
    store.log.ensure(EPHEMERAL, "w")
    with refuse(store):
        add(store, EPHEMERAL, row("a"), produced=Produced("p", 1, 1))
        store.now_ms += 61_000
        store.log.expire()
    store.reopen()
    assert claim(store)[:2] == (1, 0)
    store.close()


def test_what_nobody_waits_for_is_owed_until_it_is_gathered() -> None:
    producers = Producers()
    producing = Producing(producers)
    assert not producing.owes_disk
    producers.claim("p", None, 0)
    producers.begun(Produced("p", 1, 1), Appended("s", "i", 1, 1), 0)
    producing.taken_at_once(Produced("p", 1, 1), Appended("s", "i", 1, 1))
    assert producing.owes_disk
    producing.gather(Commit())
    assert not producing.owes_disk
    producing.forget(["p"])
    assert producing.owes_disk
    producing.gather(Commit())
    assert not producing.owes_disk


def test_a_claim_of_who_was_forgotten_meanwhile_begins_anew() -> None:
    claimed = Producing(Producers()).claimed(Claim("p", 3, 5, []))
    assert claimed == ProducerState(3, 0, 5)


def test_a_repeat_is_not_answered_before_its_append_is_on_disk(tmp_path: Path) -> None:
    """Although the one before it is."""
    log, worker = slow_log(tmp_path)
    begin(log, worker)
    one, two, repeat = (quiet(produce(log, number)) for number in (1, 2, 2))
    worker.run()
    assert [one, two, repeat] == [[1], [], []]
    worker.run()
    assert [one, two, repeat] == [[1], [2], [2]]
    log.close()
