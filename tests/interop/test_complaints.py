"""Of what logs of Synapse say, all that is wrong is found, and its own race is not."""

from __future__ import annotations

import pytest

from tests.interop.complaints import LOST, complaints, is_of_a_lost_connection

FINE = "2026-11-28 05:42:44,001 synapse.app 92 INFO all is well\n"
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "synapse/storage/database.py", line 573, in interval\n'
    "    for name, (count, cum_time) in self.current_counters.items():\n"
    "RuntimeError: dictionary changed size during iteration\n"
)
DIED = "2026-11-28 05:42:44,667 synapse.util 73 ERROR Looping call died\n" + TRACEBACK
ANNOUNCED = "2026-11-28 05:42:44,709 twisted 273 CRITICAL Unhandled error in Deferred:\n"
UNHANDLED = "2026-11-28 05:42:44,710 twisted 273 CRITICAL \n" + TRACEBACK
OTHER = UNHANDLED.replace("self.current_counters", "self.current_rows")
LAST = UNHANDLED.replace("changed size", "keys changed")


def test_the_race_of_its_own_threads_is_left_out() -> None:
    assert complaints(FINE + DIED + FINE + ANNOUNCED + UNHANDLED + FINE) == []


@pytest.mark.parametrize("wrong", [OTHER, LAST])
def test_of_another_error_everything_is_found(wrong: str) -> None:
    log = FINE + ANNOUNCED + wrong + DIED + ANNOUNCED + UNHANDLED
    assert complaints(log) == [ANNOUNCED, wrong]


def test_an_announcement_alone_is_found() -> None:
    assert complaints(ANNOUNCED + FINE + DIED) == [ANNOUNCED]


@pytest.mark.parametrize(
    "entry",
    [
        "2026-11-28 05:42:44,001 synapse.app 92 ERROR it\n",
        "2026-11-28 05:42:44,001 synapse.app 92 CRITICAL it\n",
        "2026-11-28 05:42:44,001 synapse.app 92 WARNING it\nTraceback (most recent call last):\n",
    ],
)
def test_an_error_and_a_traceback_are_found(entry: str) -> None:
    assert complaints(FINE + entry + FINE) == [entry]


def test_a_traceback_before_any_entry_is_found() -> None:
    traceback = "Traceback (most recent call last):\nImportError: twisted\n"
    assert complaints(traceback + FINE) == [traceback]


REENTERED = (
    "2026-11-28 20:29:54,120 synapse.metrics.background_process_metrics 513 ERROR "
    "Background process re-entered without a proc: process_event_queue_for_federation-96\n"
    "Stack (most recent call last):\n"
    '  File "twisted/internet/tcp.py", line 353, in connectionLost\n'
    "    protocol.connectionLost(reason)\n"
    '  File "site-packages/txredisapi.py", line 346, in connectionLost\n'
    '    self.replyReceived(ConnectionError("Lost connection"))\n'
    '  File "synapse/util/metrics.py", line 258, in __exit__\n'
    "    self._logging_context.__exit__(exc_type, exc_val, exc_tb)\n"
)


@pytest.mark.parametrize(
    ("entry", "lost"),
    [
        (REENTERED, True),
        (f"2026-11-28 05:42:44,001 synapse.util 73 ERROR it\n{LOST}: Lost connection\n", True),
        (REENTERED.replace("txredisapi", "other"), False),
        (REENTERED.replace("line 346, in connectionLost", "line 346, in replyReceived"), False),
        (REENTERED.replace("re-entered", "ended"), False),
        (OTHER, False),
    ],
)
def test_what_a_lost_connection_to_redis_causes_is_told_apart(entry: str, lost: bool) -> None:
    """By the exception, or by the loss in the stack of who complains."""
    assert complaints(entry) == [entry]
    assert is_of_a_lost_connection(entry) == lost
