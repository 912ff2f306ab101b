"""What the stores share: transaction ids for a while, and the clean-up now and then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pytest
from twisted.internet.task import Clock

from tcprepl.errors import LogCorrupt
from tcprepl.streams.base import (
    AGED_AT_ONCE,
    EXPIRE_INTERVAL_S,
    BaseLog,
    Transactions,
)
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds, Retention
from tests.log_kit import DURABLE, SqliteStore, add, row

ANSWER = Appended("s", "i", 1, 1)


def exhaust(steps: Iterable[object]) -> int:
    """Take every step; return how many there were."""
    return sum(1 for _ in steps)


class Ticking(Clock):
    """A clock on which each look takes a millisecond."""

    ticking = False

    def seconds(self) -> float:
        """Return the time, which goes on."""
        if self.ticking:
            self.rightNow += 0.001
        return super().seconds()


def test_an_answer_is_forgotten_after_a_while() -> None:
    known = Transactions(max_age_s=10)
    known.put("s", "t", ANSWER, 0)
    assert known.get("s", "t", 10_000) is ANSWER
    assert known.get("s", "t", 10_001) is None
    assert known.get("other", "t", 0) is None
    known.put("s", "u", ANSWER, 10_001)
    assert known.get("s", "t", 0) is None


def test_an_answer_that_is_given_again_is_young_again() -> None:
    known = Transactions(max_age_s=10)
    known.put("s", "t", ANSWER, 0)
    known.put("s", "u", ANSWER, 5_000)
    known.put("s", "t", ANSWER, 9_000)
    exhaust(known.expiring(18_000))
    assert known.get("s", "t", 18_000) is ANSWER
    assert known.get("s", "u", 0) is None
    exhaust(known.expiring(99_000))
    assert known.get("s", "t", 9_000) is None


def test_what_is_too_much_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcprepl.streams.base.MAX_VOLATILE_TRANSACTIONS", 2)
    known = Transactions(max_age_s=10)
    for id_ in "tuv":
        known.put("s", id_, ANSWER, 0)
    assert [known.get("s", id_, 0) for id_ in "tuv"] == [None, ANSWER, ANSWER]


def test_old_rows_go_although_nothing_is_appended() -> None:
    clock = Clock()
    log = MemoryLog(
        Registry(),
        lambda: int(clock.seconds() * 1000),
        Retention(durable=Bounds(max_age_s=90)),
        clock,
    )
    log.append("events", "w", [b"[]"])
    clock.pump([EXPIRE_INTERVAL_S])
    assert log.floor("events", "w") == 0
    clock.pump([EXPIRE_INTERVAL_S])
    assert log.floor("events", "w") == 1
    log.close()
    assert clock.getDelayedCalls() == []


def test_what_comes_of_age_together_goes_in_turns() -> None:
    """Rows and transaction ids: somebody else has a turn now and then."""
    clock = Ticking()
    log = MemoryLog(
        Registry(),
        lambda: int(clock.rightNow * 1000),
        Retention(durable=Bounds(max_age_s=90), transaction_age_s=90),
        clock,
    )
    for number in range(200):
        log.append("caches", "w", [b'["a",null,null]'], transaction_id=str(number))
    clock.rightNow += 91
    clock.ticking = True
    log.expire()
    clock.ticking = False
    before = log.floor("caches", "w")
    assert 0 < before < 50
    for _ in range(3):  # what comes meanwhile is no dearer
        log.append("caches", "w", [b'["a",null,null]'])
        before, now = log.floor("caches", "w"), before
        assert before == now + AGED_AT_ONCE
    clock.advance(1)
    assert log.floor("caches", "w") == 200
    assert len(log._transactions._answers) == 0
    assert exhaust(log._transactions.expiring(10**9)) == 0
    log.close()


def test_what_is_too_much_goes_at_once() -> None:
    """However old it is: that is what bounds memory."""
    log = MemoryLog(Registry(), lambda: 0, Retention(durable=Bounds(max_rows=100)))
    for _ in range(100):
        log.append("caches", "w", [b'["a",null,null]'])
    log.append("caches", "w", [b'["a",null,null]'] * 50)
    assert log.floor("caches", "w") == 50


def test_many_ids_are_forgotten_as_fast_as_few() -> None:
    """The oldest is found without passing those that are gone."""
    known = Transactions(max_age_s=10)
    for number in range(1_000):
        known.put("s", str(number), ANSWER, 0)
    assert exhaust(known.expiring(10_001)) == 1_000
    assert isinstance(known._answers, OrderedDict)


def test_a_store_says_what_to_let_go_of() -> None:
    log = BaseLog(Registry(), lambda: 0, Retention(), None)
    with pytest.raises(NotImplementedError):
        log.expire()
    with pytest.raises(NotImplementedError):
        log._rebound()


def test_where_damage_begins_nothing_can_be_read(tmp_path: Path) -> None:
    """It is said at once, instead of an empty page for ever."""
    store = SqliteStore(tmp_path, Retention(recent_bytes=0))
    add(store, DURABLE, row("a"))
    page = DiskPage(0, 0, None, Gap(0, 1, Cause.DAMAGE, "broken"))
    with (
        mock.patch.object(store.log._database, "page", return_value=page),
        pytest.raises(LogCorrupt, match="broken") as raised,
    ):
        store.log.read(DURABLE, "w", 0, 1)
    assert raised.value.token == 1
    store.close()


def test_a_log_has_not_failed_before_it_fails() -> None:
    log = MemoryLog(Registry(), lambda: 0)
    assert not log.failed.called
    assert (log.trouble, log.database, log.look(), log.elsewhere(("events", "w"))) == (None,) * 4


def test_producers_are_forgotten_as_transactions_are() -> None:
    now = 5_000
    log = MemoryLog(Registry(), lambda: now, Retention(transaction_age_s=100))
    log.claim("p")
    now += 100_000
    log.expire()
    assert log.producers() == 1
    now += 1
    log.expire()
    assert log.producers() == 0


def test_other_bounds_hold_at_once_and_nothing_else_changes() -> None:
    log = MemoryLog(Registry(), lambda: 0, Retention(transaction_age_s=100))
    for _ in range(3):
        log.append("events", "w", [b"[]"])
    log.retain(Retention(durable=Bounds(max_rows=1), transaction_age_s=7))
    assert log.floor("events", "w") == 2
    assert log._retention.transaction_age_s == 100


def test_what_is_said_while_others_hear_comes_after_it() -> None:
    """To every listener in the same order, rows and positions alike."""
    log = MemoryLog(Registry(), lambda: 0)
    heard: list[tuple[str, int]] = []

    def first(block: Block) -> None:
        heard.append(("first", block.last))
        if block.last == 1:
            log.append("events", "w", [b"[]"])
            log.advance("events", "w", 7)

    log.add_listener(first)
    log.add_listener(lambda block: heard.append(("second", block.last)))
    log.add_position_listener(lambda *moved: heard.append(("moved", moved[3])))
    answered = log.append("events", "w", [b"[]"])
    assert answered.called
    assert heard == [("first", 1), ("second", 1), ("first", 2), ("second", 2), ("moved", 7)]
    log.append("events", "w", [b"[]"])
    assert heard[-1] == ("second", 8)


def test_a_log_knows_where_rows_are_missing_and_where_readers_are() -> None:
    gaps = Gaps()
    assert MemoryLog(Registry(), lambda: 0, gaps=gaps).gaps is gaps
    log = MemoryLog(Registry(), lambda: 0)
    assert log.gaps.at(("events", "w"), 0) is None
    log.append("events", "w", [b"[]", b"[]"])
    cursor = log.cursor(("events", "w"), 1)
    assert cursor.token == 1


def test_an_error_while_one_hears_of_it_keeps_nothing_from_the_others(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    add(store, DURABLE, row("a"))
    heard: list[str] = []

    def broken() -> None:
        raise ZeroDivisionError

    store.log._outbox += [broken, lambda: heard.append("behind it")]
    store.log._drain()
    assert heard == ["behind it"]
    add(store, DURABLE, row("b"))
    store.close()
