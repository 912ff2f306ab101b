"""The plugin that fails the suite on unhandled errors does so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DROPPED = """
from twisted.internet.defer import Deferred, fail


def test_drops_a_failed_deferred():
    fail(ValueError("dropped on the floor"))


def test_is_innocent():
    pass
"""

IN_A_CYCLE = """
from twisted.internet.defer import Deferred, fail


def test_hides_a_failed_deferred_in_a_cycle():
    deferred = fail(ValueError("dropped on the floor"))
    deferred.me = deferred
"""

FROM_A_CALLBACK = """
from twisted.logger import Logger
from twisted.python.failure import Failure


def test_reactor_callback_fails():
    Logger().failure("Unhandled Error", Failure(ValueError("dropped on the floor")))
"""

ON_PURPOSE = """
from twisted.internet.defer import fail


def test_drops_and_says_so(unhandled_errors):
    fail(ValueError("dropped on the floor"))
    assert "dropped on the floor" in unhandled_errors[0]
    unhandled_errors.clear()
"""


def run_suite(where: Path, text: str) -> subprocess.CompletedProcess[str]:
    suite = where / "test_suite.py"
    suite.write_text(text, encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.unhandled"),
            *("-p", "no:cacheprovider", "--rootdir", str(where), str(suite)),
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.mark.parametrize(
    "text", [DROPPED, IN_A_CYCLE, FROM_A_CALLBACK], ids=["dropped", "cycle", "callback"]
)
def test_unhandled_error_fails_the_suite(tmp_path: Path, text: str) -> None:
    outcome = run_suite(tmp_path, text)
    assert outcome.returncode == 1, outcome.stdout
    assert "dropped on the floor" in outcome.stdout
    assert "1 error" in outcome.stdout


def test_unhandled_error_on_purpose_passes(tmp_path: Path) -> None:
    outcome = run_suite(tmp_path, ON_PURPOSE)
    assert outcome.returncode == 0, outcome.stdout
