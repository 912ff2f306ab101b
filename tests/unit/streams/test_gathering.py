"""What one turn brings for a stream: judged and answered as if each call came alone."""

from __future__ import annotations

import gc
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.python.failure import Failure

from tcprepl.errors import BadRow, LogUnavailable
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams.gathering import (
    GATHERED_SHARES,
    LARGE_CALL_ROWS,
    SHARE_BYTES,
    Gathering,
)
from tcprepl.streams.log import Appended
from tcprepl.streams.registry import Registry
from tcprepl.streams.rows import TypingRow

REGISTRY = Registry()
TYPING = ["!r:x", ["@a:x"]]
APPENDED = Appended("typing", "w", 7, 9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_row_of_a_call_is_taken(count: int) -> None:
    taken = gathering()
    assert taken.take([["!r:x", [f"@{number}:x"]] for number in range(count)]) is not None
    together = taken.together()
    assert together is not None
    assert list(together) == [b'["!r:x",["@%d:x"]]' % number for number in range(count)]


def test_few_rows_are_taken_and_none_or_many_are_not() -> None:
    row = TypingRow("!r:x", ["@a:x"])
    assert gathering().take([row]) is not None
    assert gathering().take([row] * (LARGE_CALL_ROWS - 1)) is not None
    assert gathering().take([]) is None
    assert gathering().take([row] * LARGE_CALL_ROWS) is None


def gathering(stream: str = "typing") -> Gathering:
    """Return one to which no call has come yet."""
    return Gathering((stream, "w"), REGISTRY.get(stream).codec)


#: Values such as rows hold, and such as none may hold.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
ROWS = st.one_of(
    st.lists(VALUES, max_size=8),
    st.tuples(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=2)),
    st.tuples(st.text(max_size=3), st.just("online"), st.integers(), st.just(1), st.just(2), VALUES,
              st.booleans()).map(list),
    st.builds(TypingRow, st.text(max_size=3), st.lists(st.text(max_size=3), max_size=2)),
)  # fmt: skip


@given(
    stream=st.sampled_from(["typing", "presence", "receipts", "federation", "events", "caches"]),
    calls=st.lists(st.lists(ROWS, min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_what_is_taken_is_what_the_codec_makes_of_each_call(
    stream: str, calls: list[list[Any]]
) -> None:
    """No row passes that `encode` refuses, and those that pass have the same bytes and keys."""
    codec = REGISTRY.get(stream).codec
    taken = gathering(stream)
    wanted: list[bytes] = []
    fit = True
    for rows in calls:
        try:
            encoded = codec.encode(rows)
        except BadRow:
            encoded = None
        if taken.take(rows) is not None:
            fit = fit and encoded is not None
            wanted += encoded or []
    together = taken.together() if taken.counts else None
    if together is not None:
        assert fit
        assert list(together) == wanted
        assert together.keys is None or together.keys == codec.check(wanted).keys  # type: ignore[attr-defined]


def test_plain_rows_need_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = gathering("presence")
    row = ["@a:x", "online", 1, 2, 3, None, True]
    taken.take([row])
    taken.take([row, ["@b:x", *row[1:]]])
    monkeypatch.setattr(type(taken.codec), "checked", None)
    together = taken.together()
    assert together is not None
    assert together.keys == ("@a:x", "@a:x", "@b:x")


def test_what_json_cannot_say_is_not_taken() -> None:
    taken = gathering("presence")
    assert taken.take([["@a:x", "online", 1, 2, 3, math.nan, True]]) is None
    assert taken.take([["@\ud800:x", "online", 1, 2, 3, None, True]]) is None
    assert taken.take_json([b"[1,\n2]", b"3"]) is None
    assert taken.take([["x" * MAX_ROW_BYTES, "online", 1, 2, 3, None, True]]) is not None
    assert taken.together() is None, "it is left to whoever says how long a row may be"


def test_calls_of_many_rows_or_none_are_not_taken() -> None:
    taken = gathering()
    assert taken.take([]) is None
    assert taken.take([TYPING] * LARGE_CALL_ROWS) is None
    assert taken.take_json([]) is None
    assert taken.take_json([b"[]"] * LARGE_CALL_ROWS) is None
    assert not taken.counts


def test_json_is_looked_at_when_all_is_together() -> None:
    taken = gathering()
    taken.take([TYPING])
    taken.take_json([b'["!r:x",["@a:x"]]', Raw(b'["!r:x",["@a:x"]]')])
    together = taken.together()
    assert together is not None
    assert list(together) == [b'["!r:x",["@a:x"]]'] * 3
    taken.take_json([b"5"])
    assert taken.together() is None


def test_it_counts_what_it_has() -> None:
    taken = gathering()
    taken.take([TYPING, TYPING])
    taken.take_each(b'["!r:x",["@a:x"]]\n["!r:x",["@a:x"]]', 2)
    assert taken.room == GATHERED_SHARES - 4
    assert taken.counts == [2, -2]


@pytest.mark.parametrize("kind", ["rows", "one row", "json", "each"])
def test_a_long_row_counts_for_several(kind: str) -> None:
    taken = gathering()
    room = "!" + "r" * (3 * SHARE_BYTES)
    line = f'["{room}",[]]'.encode()
    take = {
        "one row": lambda: taken.take([[room, []]]),
        "rows": lambda: taken.take([[room, []], ["!", []]]),
        "json": lambda: taken.take_json([line]),
        "each": lambda: taken.take_each(line, 1),
    }
    take[kind]()
    assert taken.room == GATHERED_SHARES - 4 - (kind == "rows")


def test_who_waits_is_answered_without_keeping_the_answer() -> None:
    """All that refers to it is what it is to call."""
    taken = gathering()
    heard: list[Any] = []
    for call in (lambda: taken.take([TYPING]), lambda: taken.take([TYPING, TYPING])):
        answered = call()
        assert answered is not None
        answered.addCallback(heard.append)
        del answered
    taken.answer(APPENDED)
    assert heard == [Appended("typing", "w", 7, 7), Appended("typing", "w", 8, 9)]


def test_who_asked_for_nothing_is_told_nothing() -> None:
    taken = gathering()
    taken.take([TYPING])
    taken.answer(Appended("typing", "w", 7, 7))
    assert not taken.waiting[0].called


def test_rows_of_independent_calls_are_looked_at() -> None:
    taken = gathering()
    taken.take_each(b'["!r:x",["@a:x"]]\n5', 2)
    assert taken.together() is None


def test_a_row_that_is_not_of_the_usual_shape_is_looked_at_later() -> None:
    taken = gathering("receipts")
    row = ["!r:x", "m.read", "@u:x", "$e", {"ts": 1.5}]
    assert taken.take([row]) is not None
    together = taken.together()
    assert together is not None
    assert list(together) == [json.dumps(row, separators=(",", ":")).encode()]


def test_who_keeps_the_answer_is_answered() -> None:
    """Also where nobody has asked it for anything yet, and of many only one is kept."""
    taken = gathering()
    taken.take([TYPING])
    kept = taken.take([TYPING])
    taken.answer(Appended("typing", "w", 7, 8))
    assert kept is not None
    assert kept.called
    assert kept.result == Appended("typing", "w", 8, 8)


def test_an_answer_is_a_deferred_in_every_respect() -> None:
    """Cancelled, waited for in a coroutine, shown, compared: as if it had been made at once."""
    taken = gathering()
    answers: list[Any] = [taken.take([TYPING]) for _ in range(4)]
    cancelled, awaited, shown, plain = answers
    failures: list[Any] = []
    cancelled.addErrback(failures.append)
    cancelled.cancel()
    assert failures[0].check(CancelledError)
    waiting = ensureDeferred(_wait_for(awaited))
    assert " at 0x" in repr(shown)
    assert not shown.asked, "to be looked at is not to be asked"
    assert not shown.called
    assert isinstance(plain, Deferred)
    assert plain != shown
    with pytest.raises(AttributeError):
        _ = plain.nothing_of_the_kind
    taken.answer(Appended("typing", "w", 7, 10))
    assert waiting.result == Appended("typing", "w", 8, 8)
    assert [answered.result.first for answered in (shown, plain)] == [9, 10]


def test_of_the_answers_those_that_nobody_called_anything_on_are_not_made() -> None:
    """One that asks does not make the others pay."""
    taken = gathering()
    kept = taken.take([TYPING])
    asking = taken.take([TYPING])
    assert kept is not None
    assert asking is not None
    heard: list[Any] = []
    asking.addCallback(heard.append)
    taken.answer(Appended("typing", "w", 7, 8))
    assert [answered.asked for answered in taken.waiting] == [False, True]
    kept.addCallback(heard.append)
    assert [appended.first for appended in heard] == [8, 7]


def test_debugging_names_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deferred, "debug", True)
    answered = gathering().take([TYPING])
    assert answered is not None
    assert any("test_debugging_names_who_asked" in line for line in answered._debugInfo.creator)  # type: ignore[attr-defined]


async def _wait_for(answered: Deferred[Any]) -> Any:
    return await answered


def test_a_refusal_that_nobody_waits_for_is_logged(unhandled_errors: list[str]) -> None:
    taken = gathering()
    taken.take([TYPING])
    taken.refuse(Failure(LogUnavailable("full")))
    del taken
    gc.collect()
    (logged,) = unhandled_errors
    unhandled_errors.clear()
    assert "full" in logged


def test_who_asks_after_the_answer_has_it() -> None:
    taken = gathering()
    waiting = [taken.take([TYPING]), taken.take([TYPING, TYPING])]
    taken.answer(APPENDED)
    heard: list[Any] = []
    for answered in waiting:
        assert answered is not None
        answered.addCallback(heard.append)
    assert heard == [Appended("typing", "w", 7, 7), Appended("typing", "w", 8, 9)]


def test_everybody_is_answered() -> None:
    """Who waits already, who asks later, who asks for each row, and who has given up."""
    taken = gathering()
    heard: list[Any] = []
    early, late, given_up = (taken.take([TYPING]) for _ in range(3))
    each = taken.take_each(b'["!r:x",["@a:x"]]', 1)
    assert early is not None
    assert late is not None
    assert given_up is not None
    early.addCallback(heard.append)
    each.addCallback(heard.append)
    given_up.cancel()
    taken.answer(Appended("typing", "w", 7, 10))
    assert heard == [Appended("typing", "w", 7, 7), [(1, Appended("typing", "w", 10, 10))]]
    assert late.called
    late.addCallback(heard.append)
    assert heard[2:] == [Appended("typing", "w", 8, 8)]
    given_up.addErrback(lambda failure: heard.append(failure.type))
    assert heard[3:] == [CancelledError]


def test_a_chained_answer_is_passed_on() -> None:
    """What waits for it need not have come by `addCallback`."""
    taken = gathering()
    answered = taken.take([TYPING])
    outer: Deferred[Any] = Deferred()
    heard: list[Any] = []
    outer.addCallback(lambda _: answered).addCallback(heard.append)
    outer.callback(None)
    taken.answer(Appended("typing", "w", 7, 7))
    assert heard == [Appended("typing", "w", 7, 7)]


def test_a_refusal_is_for_everybody() -> None:
    taken = gathering()
    failure = Failure(LogUnavailable("full"))
    heard: list[Any] = []
    answered = taken.take([TYPING])
    assert answered is not None
    answered.addErrback(heard.append)
    taken.take_each(b'["!r:x",["@a:x"]]', 1).addCallback(heard.append)
    taken.refuse(failure)
    assert heard == [failure, [(1, failure)]]
