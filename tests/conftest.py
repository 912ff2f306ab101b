"""Set-up that all tests share: Hypothesis profiles, markers, coverage floors.

``HYPOTHESIS_PROFILE`` chooses how long the random tests look: *dev* (the default) is fast,
*ci* is thorough, *deep* is for a night.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import coverage
import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev",
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "ci",
    settings.get_profile("dev"),
    max_examples=200,
    stateful_step_count=60,
    print_blob=True,
)
settings.register_profile(
    "deep", settings.get_profile("ci"), max_examples=5_000, stateful_step_count=200
)
_profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
settings.load_profile(_profile)
if _profile == "deep":
    # A time limit that strikes in the middle of a random machine looks like a fault of ours:
    # Twisted and Hypothesis both take its exception for one of the program.
    os.environ.setdefault("PYTEST_TIMEOUT", "0")

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Logs are not output: structlog's own default is stdout, where tests look for rows.
structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))

pytest_plugins = [
    name
    for name in ("tests.unhandled", "tests.floors")
    if importlib.util.find_spec(name) is not None
]

TESTS = Path(__file__).parent


#: Whose tests count for no coverage floor, and so take a third of the time: what they have in this
#: process is whole worlds, or thousands of inputs, and the rest of it are processes of their own.
UNMEASURED = frozenset({"faults", "interop", "property", "simulation", "stateful"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a program that is not ours.

    That is what lives in ``interop/``, except the tests of our own command line.
    """
    for item in items:
        room, *rest = item.path.relative_to(TESTS).parts
        if room == "interop" and not rest[-1].startswith("test_cli"):
            item.add_marker(pytest.mark.interop)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure nothing of what does not count.

    pytest-cov's ``no_cover`` is not enough: in a worker of xdist two measurements are begun, one
    over the other, and to stop the upper one is to go on with the lower one.
    """
    stopped: list[coverage.Coverage] = []
    if item.path.relative_to(TESTS).parts[0] in UNMEASURED:
        while (measuring := coverage.Coverage.current()) is not None:
            measuring.stop()
            stopped.append(measuring)
    try:
        return (yield)
    finally:
        for measuring in reversed(stopped):
            measuring.start()


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_open() -> Iterator[None]:
    """Collect what a module has left, as long as it is known which one it was.

    A connection that nobody closed is an error of whoever's test is running when it is found.
    What was there before the first test is frozen, and not looked through each time
    (`tests.unhandled`).
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a test makes of the logs: the next one may look at them."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """Yield a directory whose name is short: the address of a Unix socket has some 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-") as name:
        yield Path(name)
