"""Rows in: all of a call or none; whatever is wrong comes with the Deferred."""

from __future__ import annotations

import pytest

from tcprepl.errors import BadRow, TokenOrder, UnknownStream
from tcprepl.streams.log import Appended
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.rows import TypingRow
from tests.log_kit import read_all, result


@pytest.fixture
def log() -> MemoryLog:
    """Return an empty log."""
    return MemoryLog(Registry(), lambda: 0)


@pytest.fixture
def publisher(log: MemoryLog) -> Publisher:
    """Return a publisher for the instance ``w``."""
    return Publisher(log, Registry(), "w")


def test_rows_become_lines(publisher: Publisher, log: MemoryLog) -> None:
    answer = publisher.publish("typing", [TypingRow("!a", ["@b"]), ["!c", []]])
    assert result(answer) == Appended("typing", "w", 1, 2)
    assert read_all(log, "typing", 0) == [(1, b'["!a",["@b"]]'), (2, b'["!c",[]]')]
    answer = publisher.publish_json("typing", [b'["!d",[]]', b'["!e",[]]'], batch=True)
    assert result(answer) == Appended("typing", "w", 3, 3)


def test_another_instance_given_tokens_and_a_transaction_id(
    publisher: Publisher, log: MemoryLog
) -> None:
    answer = publisher.publish(
        "push_rules", [["@a:x"]], instance="other", tokens=[9], transaction_id="t"
    )
    assert result(answer) == Appended("push_rules", "other", 9, 9)
    again = publisher.publish("push_rules", [["@a:x"]], instance="other", transaction_id="t")
    assert result(again) == result(answer)
    assert log.pairs() == [("push_rules", "other")]
    for instance in (None, "third"):  # what one instance calls t is not what another does
        first = publisher.publish("push_rules", [["@b:x"]], instance=instance, transaction_id="t")
        assert result(first) == Appended("push_rules", instance or "w", 1, 1)


def test_a_bad_row_keeps_the_whole_call_out(publisher: Publisher, log: MemoryLog) -> None:
    with pytest.raises(BadRow, match="row 1, field room_id"):
        result(publisher.publish("typing", [["!a", []], [5, []]]))
    with pytest.raises(BadRow, match="row 1"):
        result(publisher.publish_json("typing", [b'["!a",[]]', b"nonsense"]))
    assert log.position("typing", "w") == 0


def test_other_faults_come_with_the_deferred_too(publisher: Publisher) -> None:
    with pytest.raises(UnknownStream):
        result(publisher.publish("nothing", [[]]))
    with pytest.raises(UnknownStream):
        result(publisher.publish_json("nothing", [b"[]"]))
    with pytest.raises(ValueError, match="at least one row"):
        result(publisher.publish("typing", []))
    with pytest.raises(TokenOrder):
        result(publisher.publish("typing", [["!a", []]], tokens=[0]))
