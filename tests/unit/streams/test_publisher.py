"""Rows in: all of a call or none; whatever is wrong comes with the Deferred."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tcprepl.errors import BadRow, LogUnavailable, TokenOrder, UnknownStream
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams.gathering import GATHERED_SHARES, LARGE_CALL_ROWS
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.producers import Produced
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.rows import TypingRow
from tests.log_kit import read_all, result


def choosy(bad: bytes) -> type[Publisher]:
    """Return a publisher that knows more of rows than their shape: none may have *bad* in it."""

    def choose(rows: Sequence[bytes]) -> Sequence[bytes]:
        if any(bad in row for row in rows):
            raise BadRow("receipts", "user_id", bad.decode(), "another one")
        return rows

    class Choosy(Publisher):
        _prepare: ClassVar = {"receipts": choose, "typing": choose}

    return Choosy


def receipt(number: int) -> list[Any]:
    """Return a row of ``receipts``."""
    return ["!r:example.com", "m.read", f"@u{number}:example.com", "$e", {"ts": number}]


def outcome(deferred: Deferred[Any]) -> Any:
    """Return what *deferred* has: its result, its exception, or None when it has not fired."""
    found: list[Any] = []

    def keep(value: Any) -> Any:
        found.append(value)
        return value

    deferred.addCallbacks(keep, lambda failure: found.append(failure.value))
    return found[0] if found else None


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


class TestGathering:
    """With a reactor, what one turn brings is appended together."""

    def setup_method(self) -> None:
        self.clock = Clock()
        self.log = MemoryLog(Registry(), lambda: 0)
        self.blocks: list[Block] = []
        self.log.add_listener(self.blocks.append)
        self.publisher = Publisher(self.log, Registry(), "w", self.clock)

    def burst(self) -> None:
        """Have a turn that brings more than one call, so that the next one gathers."""
        for _ in range(2):
            self.publisher.publish("receipts", [receipt(0)])
        self.clock.advance(0)
        self.blocks.clear()

    def test_a_lone_row_goes_out_at_once(self) -> None:
        """Into a quiet stream a row goes without waiting for the turn to end."""
        answer = self.publisher.publish("receipts", [receipt(1)])
        assert outcome(answer) == Appended("receipts", "w", 1, 1)
        assert len(self.blocks) == 1

    def test_json_that_is_not_gathered_comes_after_what_waits(self) -> None:
        self.burst()
        first = self.publisher.publish("receipts", [receipt(1)])
        row = json.dumps(receipt(2)).encode()
        second = self.publisher.publish_json("receipts", [row], batch=True)
        assert outcome(first) == Appended("receipts", "w", 3, 3)
        assert outcome(second) == Appended("receipts", "w", 4, 4)

    def test_rows_of_one_turn_share_a_block(self) -> None:
        """Each call is answered with its own tokens, in the order of the calls."""
        self.burst()
        answers = [
            self.publisher.publish("receipts", [receipt(n) for n in range(count)])
            for count in (1, 3, 2)
        ]
        assert [outcome(answer) for answer in answers] == [None, None, None]
        self.clock.advance(0)
        assert [outcome(answer) for answer in answers] == [
            Appended("receipts", "w", 3, 3),
            Appended("receipts", "w", 4, 6),
            Appended("receipts", "w", 7, 8),
        ]
        assert len(self.blocks) == 1

    def test_a_call_of_many_rows_is_not_gathered_and_keeps_its_place(self) -> None:
        """It is cheap by itself; what was gathered before it goes in before it."""
        self.burst()
        rows = [receipt(n) for n in range(LARGE_CALL_ROWS)]
        few = self.publisher.publish("receipts", rows[:-1])
        many = self.publisher.publish("receipts", rows)
        as_json = self.publisher.publish_json("receipts", [json.dumps(r).encode() for r in rows])
        count = LARGE_CALL_ROWS
        assert [outcome(answer) for answer in (few, many, as_json)] == [
            Appended("receipts", "w", 3, count + 1),
            Appended("receipts", "w", count + 2, 2 * count + 1),
            Appended("receipts", "w", 2 * count + 2, 3 * count + 1),
        ]

    def test_streams_and_instances_are_gathered_apart(self) -> None:
        """Interleaved calls make one block for each stream and instance."""
        self.burst()
        for number in range(6):
            self.publisher.publish("receipts", [receipt(number)], instance=f"w{number % 2}")
            self.publisher.publish("typing", [["!r:example.com", []]])
        self.clock.advance(0)
        assert [(b.stream, b.instance, len(b.tokens)) for b in self.blocks] == [
            ("receipts", "w0", 3), ("typing", "w", 6), ("receipts", "w1", 3),
        ]  # fmt: skip

    def test_a_bad_row_fails_its_own_call_only(self) -> None:
        """The other calls of the turn get in, with consecutive tokens."""
        self.burst()
        good = self.publisher.publish("receipts", [receipt(1)])
        bad = self.publisher.publish("receipts", [receipt(2), ["no receipt"]])
        also = self.publisher.publish_json("receipts", [json.dumps(receipt(3)).encode()])
        broken = self.publisher.publish_json("receipts", [b"{", b""])
        self.clock.advance(0)
        assert outcome(good) == Appended("receipts", "w", 3, 3)
        assert outcome(also) == Appended("receipts", "w", 4, 4)
        refusals = [outcome(answer) for answer in (bad, broken)]
        assert [type(refusal) for refusal in refusals] == [BadRow, BadRow]
        assert refusals[0].index == 1

    def test_a_call_that_is_more_than_rows_keeps_its_place(self) -> None:
        """A batch, or a call with a transaction id, comes after what was called before it."""
        self.burst()
        first = self.publisher.publish("receipts", [receipt(1)])
        batch = self.publisher.publish("receipts", [receipt(2), receipt(3)], batch=True)
        assert outcome(first) == Appended("receipts", "w", 3, 3)
        assert outcome(batch) == Appended("receipts", "w", 4, 4)
        last = self.publisher.publish("receipts", [receipt(4)], transaction_id="t")
        assert outcome(last) == Appended("receipts", "w", 5, 5)
        text = json.dumps(receipt(5)).encode()
        again = self.publisher.publish_json("receipts", [text], transaction_id="t")
        assert outcome(again) == Appended("receipts", "w", 5, 5)
        self.clock.advance(0)

    def test_rows_are_taken_as_they_are_at_the_call(self) -> None:
        """What becomes of the objects before the turn ends does not matter."""
        self.burst()
        row = receipt(1)
        self.publisher.publish("receipts", [row])
        row[0] = "!changed:example.com"
        self.clock.advance(0)
        assert b"!changed" not in self.blocks[0].lines

    def test_much_does_not_wait_for_the_end_of_the_turn(self) -> None:
        """So a turn that brings more than a block makes several."""
        self.burst()
        for number in range(2 * GATHERED_SHARES + 1):
            self.publisher.publish("receipts", [receipt(number)])
        assert [len(block.tokens) for block in self.blocks] == [GATHERED_SHARES] * 2
        self.clock.advance(0)
        assert len(self.blocks[2].tokens) == 1

    def test_much_json_does_not_wait_either(self) -> None:
        self.burst()
        for number in range(GATHERED_SHARES):
            self.publisher.publish_json("receipts", [json.dumps(receipt(number)).encode()])
        assert [len(block.tokens) for block in self.blocks] == [GATHERED_SHARES]

    def test_a_large_call_of_a_callback_comes_after_what_waits(self) -> None:
        """While the turn ends, a call that is not gathered lets go first what it has to follow."""
        self.burst()
        large = [receipt(number) for number in range(LARGE_CALL_ROWS)]
        self.publisher.publish("typing", [["!a:x", []]]).addCallback(
            lambda _: self.publisher.publish("receipts", large)
        )
        self.publisher.publish("receipts", [receipt(99)])
        self.clock.advance(0)
        assert [(block.stream, len(block.tokens)) for block in self.blocks] == [
            ("typing", 1),
            ("receipts", 1),
            ("receipts", LARGE_CALL_ROWS),
        ]

    def test_what_only_the_slow_way_can_encode_keeps_its_place(self) -> None:
        """Lone surrogates, raw line ends, nothing at all: as without gathering."""
        self.burst()
        first = self.publisher.publish("receipts", [receipt(1)])
        odd = receipt(2)
        odd[2] = "@\ud800:example.com"
        second = self.publisher.publish("receipts", [odd])
        text = json.dumps(receipt(3)).replace(",", ",\r\n").encode()
        third = self.publisher.publish_json("receipts", [text])
        nothing = self.publisher.publish("receipts", [])
        unknown = self.publisher.publish("no_such_stream", [receipt(1)])
        nan = self.publisher.publish("receipts", [[*receipt(1)[:4], {"ts": float("nan")}]])
        self.clock.advance(0)
        assert [outcome(answer).first for answer in (first, second, third)] == [3, 4, 5]
        assert isinstance(outcome(nothing), ValueError)
        assert isinstance(outcome(unknown), UnknownStream)
        assert isinstance(outcome(nan), BadRow)
        assert all(block.lines.count(b"\n") == len(block.tokens) for block in self.blocks)

    def test_what_a_callback_publishes_comes_after(self) -> None:
        """An answer that publishes again does not overtake what the turn brought before."""
        self.burst()
        order: list[Appended] = []
        self.publisher.publish("receipts", [receipt(1)]).addCallback(
            lambda _: self.publisher.publish("typing", [["!b:x", []]]).addCallback(order.append)
        )
        self.publisher.publish("typing", [["!a:x", []]]).addCallback(order.append)
        self.clock.advance(0)
        self.clock.advance(0)
        assert [appended.first for appended in order] == [1, 2]
        lines = b"".join(block.lines for block in self.blocks)
        assert lines.index(b"!a:x") < lines.index(b"!b:x")

    def test_what_may_not_be_appended_is_for_its_own_call_to_hear(self) -> None:
        """A publisher may know more of rows than their shape."""
        self.publisher = choosy(b"@bad")(self.log, Registry(), "w", self.clock)
        self.burst()
        bad = receipt(2)
        bad[2] = "@bad:example.com"
        answers = [self.publisher.publish("receipts", [row]) for row in (receipt(1), bad)]
        self.clock.advance(0)
        assert outcome(answers[0]) == Appended("receipts", "w", 3, 3)
        assert isinstance(outcome(answers[1]), BadRow)

    def test_a_refusal_is_for_every_call(self) -> None:
        """When the log takes nothing, each call hears why."""
        self.burst()
        answers = [self.publisher.publish("receipts", [receipt(n)]) for n in range(2)]
        outcome(self.log.close())
        self.publisher.flush()
        assert [type(outcome(answer)) for answer in answers] == [LogUnavailable, LogUnavailable]
        self.publisher.flush()  # nothing is left
        assert not self.clock.getDelayedCalls()

    def test_a_caller_may_give_up(self) -> None:
        """A cancelled answer changes nothing for the rows, nor for the others."""
        self.burst()
        first, second = (self.publisher.publish("receipts", [receipt(n)]) for n in range(2))
        first.cancel()
        outcome(first)
        self.clock.advance(0)
        assert outcome(second) == Appended("receipts", "w", 4, 4)

    def test_rows_too_long_fail_their_own_call(self) -> None:
        """Also when the rows of others are beside them."""
        self.burst()
        row = receipt(1)
        row[2] = "x" * (MAX_ROW_BYTES + 1)
        long = self.publisher.publish("receipts", [row])
        short = self.publisher.publish("receipts", [receipt(1)])
        self.clock.advance(0)
        assert isinstance(outcome(long), BadRow)
        assert outcome(short).first == 3


def lines_of(*rows: bytes) -> bytes:
    """Return rows as `publish_each` takes them."""
    return b"".join(row + b"\n" for row in rows)


@pytest.mark.parametrize("gathering", [False, True])
def test_rows_that_are_independent_are_taken_each(log: MemoryLog, gathering: bool) -> None:
    clock = Clock()
    publisher = Publisher(log, Registry(), "w", clock if gathering else None)
    for _ in range(2):  # the second turn of several calls gathers
        clock.advance(0)
        before = log.position("typing", "w")
        calls = [
            publisher.publish_each("typing", lines_of(b'["!a",[]]', b'["!b",[]]'), 2),
            publisher.publish_json("typing", [b'["!c",[]]']),
            publisher.publish_each("typing", lines_of(b'["!d",[]]', b"[5]", b'["!e",[]]'), 3),
            publisher.publish_each("typing", lines_of(b'["!f",[]]'), 1),
        ]
        clock.advance(0)
        two, one, three, last = map(result, calls)
        tokens = [before + number for number in range(1, 7)]
        assert (sum(count for count, _ in two), two[0][1].first) == (2, tokens[0])
        assert two[-1][1].last == tokens[1]
        assert one == Appended("typing", "w", tokens[2], tokens[2])
        assert [count for count, _ in three] == [1, 1, 1]
        assert three[0][1] == Appended("typing", "w", tokens[3], tokens[3])
        assert isinstance(three[1][1].value, BadRow)
        assert three[2][1] == Appended("typing", "w", tokens[4], tokens[4])
        assert last == [(1, Appended("typing", "w", tokens[5], tokens[5]))]
    assert [row for _, row in read_all(log, "typing", before)] == [
        b'["!a",[]]', b'["!b",[]]', b'["!c",[]]', b'["!d",[]]', b'["!e",[]]', b'["!f",[]]',
    ]  # fmt: skip


def test_independent_rows_of_no_stream_are_refused_all(publisher: Publisher) -> None:
    ((count, why),) = result(publisher.publish_each("nonsense", lines_of(b"1", b"2"), 2))
    assert count == 2
    assert isinstance(why.value, UnknownStream)


def test_independent_rows_that_the_disk_refuses_are_refused_all(
    publisher: Publisher, log: MemoryLog
) -> None:
    _ = log.close()
    ((count, why),) = result(publisher.publish_each("typing", lines_of(b'["!a",[]]'), 1))
    assert count == 1
    assert isinstance(why.value, LogUnavailable)


@pytest.mark.parametrize("bad", [b"[5]", b'["!refused",[]]'])
def test_rows_of_a_producer_are_taken_together_if_they_all_fit(log: MemoryLog, bad: bytes) -> None:
    """Else they have to come one by one, so that each has its own answer."""
    publisher = choosy(b"refused")(log, Registry(), "w")
    result(log.claim("p"))
    good = b'["!a",[]]'
    taken = publisher.publish_each("typing", lines_of(good, good), 2, Produced("p", 1, 1, 2))
    assert result(taken) == [(2, Appended("typing", "w", 1, 2))]
    for rows, produced in (
        ((good, bad), Produced("p", 1, 3, 2)),
        ((good, good), Produced("p", 1, 2, 2)),
        ((good, good), Produced("p", 2, 3, 2)),
    ):
        assert publisher.publish_each("typing", lines_of(*rows), 2, produced) is None
    assert log.position("typing", "w") == 2
    assert log.may_begin("typing", Produced("p", 1, 3, 2))


@pytest.mark.parametrize("bad", [b"[5]", b'["!refused",[]]'])
def test_of_many_independent_rows_one_that_does_not_fit_is_refused_alone(
    log: MemoryLog, bad: bytes
) -> None:
    publisher = choosy(b"refused")(log, Registry(), "w")
    good = [b'["!a",[]]'] * LARGE_CALL_ROWS
    answered = result(publisher.publish_each("typing", lines_of(*good), len(good)))
    assert answered == [(len(good), Appended("typing", "w", 1, len(good)))]
    rows = [*good[1:], bad, *good]
    answered = result(publisher.publish_each("typing", lines_of(*rows), len(rows)))
    assert [count for count, _ in answered] == [1] * len(rows)
    refused = [index for index, (_, outcome) in enumerate(answered) if isinstance(outcome, Failure)]
    assert refused == [len(good) - 1]
    assert answered[refused[0]][1].check(BadRow)
    assert log.position("typing", "w") == len(good) + len(rows) - 1


def test_many_independent_rows_do_not_wait_for_the_end_of_the_turn(log: MemoryLog) -> None:
    clock = Clock()
    publisher = Publisher(log, Registry(), "w", clock)
    for _ in range(2):
        _ = publisher.publish_each("typing", lines_of(b'["!a",[]]'), 1)
    clock.advance(0)
    at = log.position("typing", "w")
    rows = lines_of(*[b'["!a",[]]'] * GATHERED_SHARES)
    assert result(publisher.publish_each("typing", rows, GATHERED_SHARES))
    assert log.position("typing", "w") == at + GATHERED_SHARES


def test_independent_rows_are_many_from_as_many_as_a_large_call_has(log: MemoryLog) -> None:
    """One fewer wait for the end of the turn, and go in before what does not wait."""
    clock = Clock()
    publisher = Publisher(log, Registry(), "w", clock)
    for _ in range(2):
        _ = publisher.publish_each("typing", lines_of(b'["!a",[]]'), 1)
    clock.advance(0)
    at, many = log.position("typing", "w"), LARGE_CALL_ROWS
    few = many - 1
    answers = [
        publisher.publish_each("typing", lines_of(*[b'["!a",[]]'] * count), count)
        for count in (few, many, few)
    ]
    assert [outcome(answer) for answer in answers] == [
        [(few, Appended("typing", "w", at + 1, at + few))],
        [(many, Appended("typing", "w", at + few + 1, at + few + many))],
        None,
    ]
    clock.advance(0)
    assert log.position("typing", "w") == at + few + many + few
