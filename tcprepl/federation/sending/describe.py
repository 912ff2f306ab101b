"""What an operator wants to know of a destination: what waits, how old, why not sent, when next.

The same mapping goes to ``tcprepl fed ls``, to ``fed show`` and to the status page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.stored import Waiting
from tcprepl.federation.sending.turns import Place


def describe_destination(
    name: str,
    waiting: Mapping[str, Waiting],
    backoff: Backoff,
    now_ms: int,
    *,
    paused: bool = False,
    place: Place = Place.AWAY,
    transaction_id: str | None = None,
    wake_ms: int = 0,
    last_success_ms: int = 0,
    behind_ms: int = 0,
) -> dict[str, Any]:
    """Return what is to be told of one destination.

    Args:
        name: Its server name.
        waiting: What is on disk for it, by lane (`Outbox.summary`).
        backoff: Its failures.
        now_ms: The sender's time in ms, as all that is given.
        paused: Whether an operator paused it.
        place: Where it is among those who take turns.
        transaction_id: The transaction in flight, if there is one in memory.
        wake_ms: When it is woken next; 0 for not at all.
        last_success_ms: When it accepted something last; 0 for not since the start.
        behind_ms: What that time is behind the time of day, which is what is told.
    """

    def at(ms: int) -> int | None:
        return ms + behind_ms if ms else None

    quarantined = waiting.get("quarantined")
    running = place is Place.RUNNING
    edus = sum(found.edus for found in waiting.values())
    oldest_ms = min((found.oldest_ms for found in waiting.values()), default=now_ms)
    next_ms = 0 if paused or running else max(backoff.next_ms, wake_ms)
    if paused:
        state, why = "paused", "paused by an operator"
    elif running:
        state, why = "sending", "a request is under way"
    elif backoff.failures and edus:
        state, why = "waiting", f"{_times(backoff.failures)} failed: {backoff.reason}"
    elif backoff.reason and edus:
        state, why = "waiting", backoff.reason
    elif place is Place.IN_LINE:
        state, why = "in line", "other destinations have their turn first"
    elif quarantined is not None and quarantined.edus == edus:
        state, why = "refused", "the destination will not take what is in quarantine"
    elif edus:
        state, why = "waiting", "to be sent presently"
    else:
        state, why = "idle", "nothing waits"
    return {
        "destination": name,
        "state": state,
        "why": why,
        "queued_edus": edus,
        "queued_bytes": sum(found.size_bytes for found in waiting.values()),
        "quarantined_edus": 0 if quarantined is None else quarantined.edus,
        "oldest_seconds": round(max(0, now_ms - oldest_ms) / 1000, 1),
        "lanes": {lane: found.edus for lane, found in waiting.items() if lane != "quarantined"},
        "transaction_id": transaction_id,
        "failures": backoff.failures,
        "failing_since_ms": at(backoff.failure_ms),
        "last_try_ms": at(backoff.last_ms),
        "last_error": backoff.reason or None,
        "last_success_ms": at(last_success_ms),
        "next_try_ms": at(next_ms) if next_ms > now_ms and edus else None,
    }


def _times(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"
