"""What an operator is told, and why something is not sent."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.describe import describe_destination
from tcprepl.federation.sending.stored import Waiting
from tcprepl.federation.sending.turns import Place

FAILING = Backoff(3, 1_000, 5_000, 60_000, "HTTP 502")
SOME = {"typing": Waiting(2, 100, 4_000), "to_device": Waiting(1, 50, 2_000)}
QUARANTINED = {"quarantined": Waiting(1, 50, 2_000)}


@pytest.mark.parametrize(
    ("waiting", "backoff", "more", "state", "why"),
    [
        ({}, Backoff(), {}, "idle", "nothing waits"),
        (SOME, Backoff(), {}, "waiting", "presently"),
        (SOME, FAILING, {}, "waiting", "3 tries failed: HTTP 502"),
        (SOME, Backoff(1, 1, 1, 1, "reset"), {}, "waiting", "1 try failed: reset"),
        (SOME, FAILING, {"paused": True}, "paused", "operator"),
        (SOME, FAILING, {"place": Place.RUNNING}, "sending", "under way"),
        (SOME, Backoff(), {"place": Place.IN_LINE}, "in line", "turn"),
        (QUARANTINED, Backoff(), {}, "refused", "in quarantine"),
    ],
)
def test_why_it_is_not_sent(
    waiting: dict[str, Waiting], backoff: Backoff, more: dict[str, Any], state: str, why: str
) -> None:
    found = describe_destination("y", waiting, backoff, 10_000, **more)
    assert found["state"] == state
    assert why in found["why"]


def test_the_numbers() -> None:
    found = describe_destination(
        "y", {**SOME, **QUARANTINED}, FAILING, 10_000, transaction_id="t", last_success_ms=7
    )
    assert found["queued_edus"] == 4
    assert found["queued_bytes"] == 200
    assert found["quarantined_edus"] == 1
    assert found["oldest_seconds"] == 8.0
    assert found["lanes"] == {"typing": 2, "to_device": 1}
    assert found["next_try_ms"] == 65_000
    assert found["failing_since_ms"] == 1_000
    assert found["last_error"] == "HTTP 502"
    assert found["transaction_id"] == "t"
    assert found["last_success_ms"] == 7


def test_all_that_is_told_and_in_which_time() -> None:
    """Times are told by the clock on the wall, whatever the sender's own is."""
    backoff = Backoff(3, 1_000, 5_000, 60_000, "HTTP 502")
    told = describe_destination(
        "y", {**SOME, **QUARANTINED}, backoff, 10_000, last_success_ms=700, behind_ms=1_000_000
    )
    assert told == {
        "destination": "y",
        "state": "waiting",
        "why": "3 tries failed: HTTP 502",
        "queued_edus": 4,
        "queued_bytes": 200,
        "quarantined_edus": 1,
        "oldest_seconds": 8.0,
        "lanes": {"typing": 2, "to_device": 1},
        "transaction_id": None,
        "failures": 3,
        "failing_since_ms": 1_001_000,
        "last_try_ms": 1_005_000,
        "last_error": "HTTP 502",
        "last_success_ms": 1_000_700,
        "next_try_ms": 1_065_000,
    }
    nothing = describe_destination("y", {}, Backoff(), 10_000, behind_ms=1_000_000)
    times = ("failing_since_ms", "last_try_ms", "last_success_ms", "next_try_ms")
    assert [nothing[name] for name in times] == [None] * 4
    assert (nothing["queued_edus"], nothing["quarantined_edus"]) == (0, 0)
    assert (nothing["oldest_seconds"], nothing["last_error"]) == (0.0, None)


@pytest.mark.parametrize(
    ("waiting", "more", "next_ms"),
    [
        (SOME, {}, 65_000),
        (SOME, {"wake_ms": 70_000}, 70_000),
        (SOME, {"paused": True}, None),
        (SOME, {"place": Place.RUNNING}, None),
        (SOME, {"now_ms": 64_999}, 65_000),
        (SOME, {"now_ms": 65_000}, None),
        ({}, {}, None),
    ],
)
def test_when_it_is_tried_next(
    waiting: dict[str, Waiting], more: dict[str, Any], next_ms: int | None
) -> None:
    now_ms = more.pop("now_ms", 10_000)
    assert describe_destination("y", waiting, FAILING, now_ms, **more)["next_try_ms"] == next_ms


def test_what_will_come_is_no_older_than_now() -> None:
    assert describe_destination("y", SOME, Backoff(), 1_236_567)["oldest_seconds"] == 1_234.6
    assert describe_destination("y", SOME, Backoff(), 1_000)["oldest_seconds"] == 0.0
    assert describe_destination("y", SOME, Backoff(), 10_002_060)["oldest_seconds"] == 10_000.1
