"""What the logs of real Synapse processes say is wrong."""

from __future__ import annotations

import re

#: What Synapse logs of a request that its Redis had not answered when it ended.
LOST = "txredisapi.ConnectionError"
#: What its log contexts say of that, where one of them waited: they are entered anew by the loss of
#: the connection, after they have ended (``BackgroundProcessLoggingContext``, as of 1.163).
_REENTERED = "Background process re-entered without a proc"
_BY_THE_LOSS = re.compile(r"txredisapi\.py\", line \d+, in connectionLost$", re.MULTILINE)
#: What begins an entry of a Synapse's log.
_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)
_WRONG = re.compile(r"^Traceback |^\S+ .* (?:ERROR|CRITICAL) ", re.MULTILINE)
#: Twisted says first that there is an error, and what it is in an entry of its own.
_ANNOUNCED = re.compile(r".* CRITICAL Unhandled error in Deferred:\s*")


def complaints(log: str) -> list[str]:
    """Return the entries of a Synapse's log that say that something is wrong.

    All but one thing, which no peer of it has a part in: threads of its database add to a
    dictionary that its reactor reads every ten seconds, and where they meet, the reading dies
    (``PerformanceCounters`` of ``synapse/storage/database.py``, since 1.0.0 and as of 1.163).
    """
    found: list[str] = []
    for entry in _ENTRY.split(log):
        if not _WRONG.search(entry):
            continue
        if not _met_in_the_counters(entry):
            found.append(entry)
        elif " CRITICAL " in entry and found and _ANNOUNCED.fullmatch(found[-1]):
            found.pop()
    return found


def is_of_a_lost_connection(entry: str) -> bool:
    """Return whether an entry is of a request that Redis had not answered when it ended."""
    return LOST in entry or (_REENTERED in entry and bool(_BY_THE_LOSS.search(entry)))


def _met_in_the_counters(entry: str) -> bool:
    last = entry.rstrip().splitlines()[-1]
    return "self.current_counters" in entry and last == (
        "RuntimeError: dictionary changed size during iteration"
    )
