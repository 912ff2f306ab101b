"""What a poll is told whose position cannot be served."""

from __future__ import annotations

import pytest

from tcprepl.errors import TokenFromFuture, TokenTooOld
from tcprepl.http.calls import ApiError
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.registry import Registry
from tcprepl.web.refusals import from_future, rows_missing, too_old
from tcprepl.web.tables import feeds

FEED = feeds(Registry())["typing"]


@pytest.mark.parametrize(
    ("refusal", "held"),
    [
        (too_old(TokenTooOld("typing", "w1", 3, 7, "rows: 9"), FEED, {"m": 2}, "m"), 7),
        (
            rows_missing(
                FEED,
                {"m": 2},
                "w1",
                [Gap(3, 5, Cause.UPSTREAM, "away"), Gap(5, 8, Cause.DAMAGE, "bad")],
                "m",
            ),
            8,
        ),
    ],
)
def test_whoever_cannot_go_on_is_told_where_to(refusal: ApiError, held: int) -> None:
    """What the other writers have is kept."""
    assert refusal.status == 410
    assert str(held) in str(refusal)
    assert refusal.extra == {
        "stream": "typing",
        "instance": "w1",
        "held": held,
        "parameter": "typing",
        "position": f"m~2,w1~{held}",
    }


def test_of_many_gaps_in_a_row_not_all_are_named() -> None:
    """A disk that fails has thousands of damaged blocks."""
    gaps = [Gap(n, n + 1, Cause.DAMAGE, f"block {n + 1}") for n in range(3_000)]
    refusal = rows_missing(FEED, {}, "w1", gaps, "m")
    assert "rows in (0, 3000] cannot be read: several blocks, the last: block 3000; go" in str(
        refusal
    )
    assert len(str(refusal)) < 300


def test_a_position_that_was_never_written_is_no_place_to_go_on_from() -> None:
    refusal = from_future(TokenFromFuture("typing", "w1", 9, 4))
    assert (refusal.status, refusal.extra["held"]) == (409, 4)
    assert "position" not in refusal.extra
