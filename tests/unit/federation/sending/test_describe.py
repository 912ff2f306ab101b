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
