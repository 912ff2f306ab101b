"""Of what logs of Synapse say, all that is wrong is found, and its own race is not."""

from __future__ import annotations

import pytest

from tests.interop.complaints import complaints

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
