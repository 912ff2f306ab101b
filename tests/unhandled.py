"""A pytest plugin: an error that nobody handled fails the suite.

Twisted logs such an error as CRITICAL: at once when it comes out of a reactor callback, and at
garbage collection when it sits in a Deferred that was dropped. So each test is checked when it
ends; garbage is collected by force when a test module ends, and its last test answers for what
turns up then. A test that makes such errors on purpose takes the fixture `unhandled_errors`
and empties it.
"""

from __future__ import annotations

import gc

import pytest
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

_seen: list[str] = []


def _observe(event: LogEvent) -> None:
    failure = event.get("log_failure")
    if failure is not None and event.get("log_level") is LogLevel.critical:
        _seen.append(f"{formatEvent(event)}\n{failure.getTraceback()}".strip())


def take() -> list[str]:
    """Return what has been logged so far and was not handled, and forget it."""
    seen = _seen[:]
    _seen.clear()
    return seen


def collect() -> list[str]:
    """Force garbage collection, then `take`."""
    # An object with a finaliser may free others: the second run sees those.
    gc.collect()
    gc.collect()
    if not gc.get_freeze_count():  # something has thawed all
        gc.freeze()
    return take()


@pytest.fixture
def unhandled_errors() -> list[str]:
    """What Twisted logged as unhandled; a test that provokes such errors clears it."""
    return _seen


def pytest_configure() -> None:
    """Start to listen."""
    globalLogPublisher.addObserver(_observe)


def pytest_collection_finish() -> None:
    """Look at what was there before any test ran once, and not at the end of each module.

    These are the objects of all modules and tests, which stay: a collection that looks at them
    takes a second of CPU, and there are some at the end of each of hundreds of modules.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Stop to listen."""
    globalLogPublisher.removeObserver(_observe)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Fail the test that left an unhandled error, or the last one of a module that did."""
    last = nextitem is None or nextitem.path != item.path
    errors = collect() if last else take()
    if errors:
        pytest.fail(
            f"Twisted logged {len(errors)} unhandled error(s), "
            f"{'here or earlier in this module' if last else 'in this test'}:\n\n"
            + "\n\n".join(errors),
            pytrace=False,
        )
