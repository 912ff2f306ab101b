"""What a server of 2017 sends before POSITION, and after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl import limits
from tcprepl.protocol.events import RowsReceived
from tcprepl.replication.following.dialect_2017 import Resumption, Verdict

ALPHA = ("alpha", "master")


def batch(token: int, *rows: bytes) -> RowsReceived:
    """Return a batch of ALPHA."""
    return RowsReceived(*ALPHA, token, list(rows))


@pytest.mark.parametrize(
    ("asked", "known", "token", "verdict"),
    [
        (None, None, 1, Verdict.LIVE),
        (None, 3, 4, Verdict.LIVE),
        (None, 3, 3, Verdict.LIVE),
        (None, 3, 2, Verdict.STALE),
        (3, 3, 3, Verdict.STALE),
        (3, 3, 4, Verdict.MISSED),
        (0, None, 1, Verdict.MISSED),
    ],
)
def test_verdicts(asked: int | None, known: int | None, token: int, verdict: Verdict) -> None:
    resumption = Resumption(keep=False)
    if asked is not None:
        resumption.ask(ALPHA, asked)
    assert resumption.judge(batch(token, b"[1]"), known) is verdict


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=12))
def test_what_is_kept_comes_in_the_order_of_tokens(sent: list[tuple[int, int]]) -> None:
    resumption = Resumption(keep=True)
    resumption.ask(ALPHA, 2)
    rows = [
        (token, b"[%d,%d,%d]" % (token, index, number))
        for index, (token, count) in enumerate(sent)
        for number in range(count)
    ]
    for index, (token, _) in enumerate(sent):
        mine = [row for _, row in rows if row.split(b",")[1] == b"%d" % index]
        verdict = resumption.judge(batch(token, *mine), 2)
        assert verdict is (Verdict.KEPT if token > 2 else Verdict.STALE)
    assert resumption.asked == {ALPHA: 2}
    resumption.end(ALPHA)
    assert resumption.asked == {}
    missed = [update for update in rows if update[0] > 2]
    assert resumption.take_kept(ALPHA) == sorted(missed, key=lambda update: update[0])
    assert resumption.take_kept(ALPHA) == []
    resumption.end(ALPHA)  # a server may say more positions than it was asked for


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BATCH_BYTES", 10)
    resumption = Resumption(keep=True)
    resumption.ask(ALPHA, 0)
    assert resumption.judge(batch(1, b"12345"), None) is Verdict.KEPT
    assert resumption.judge(batch(2, b"123456"), None) is Verdict.MISSED
    assert resumption.judge(batch(3, b"12345"), None) is Verdict.KEPT
    assert resumption.take_kept(ALPHA) == [(1, b"12345"), (3, b"12345")]
    assert resumption.judge(batch(4, b"1234567890"), None) is Verdict.KEPT
    resumption.clear()
    assert not resumption.asked
    assert resumption.take_kept(ALPHA) == [], "it is asked for again, and comes again"
    resumption.ask(ALPHA, 0)
    assert resumption.judge(batch(1, b"1234567890"), None) is Verdict.KEPT


def test_the_order_is_that_of_tokens_and_not_of_rows() -> None:
    resumption = Resumption(keep=True)
    resumption.ask(ALPHA, 0)
    for token, row in ((2, b"a"), (1, b"z"), (1, b"b"), (3, b"c")):
        assert resumption.judge(batch(token, row), None) is Verdict.KEPT
    assert resumption.take_kept(ALPHA) == [(1, b"z"), (1, b"b"), (2, b"a"), (3, b"c")]
