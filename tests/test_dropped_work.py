"""A Deferred or a coroutine that is dropped does not pass ``make types``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HEAD = """
from twisted.internet.defer import Deferred, succeed
from tcprepl.background import run_in_background


def later() -> Deferred[None]:
    return succeed(None)


async def soon() -> None:
    await later()


"""
DROPPED_DEFERRED = "def caller() -> None:\n    later()\n"
DROPPED_CALLBACK = "def caller() -> None:\n    later().addCallback(print)\n"
DROPPED_COROUTINE = "def caller() -> None:\n    soon()\n"
DROPPED_AWAITABLE = "async def caller() -> None:\n    later()\n    soon()\n"
KEPT = (
    "async def caller() -> None:\n    await later()\n    await soon()\n"
    "    run_in_background(later)\n    run_in_background(soon)\n"
)


@pytest.mark.slow
def test_dropped_work_does_not_pass(tmp_path: Path) -> None:
    """All cases in one run of mypy, with the project's own settings."""
    cases = {
        "deferred": DROPPED_DEFERRED,
        "callback": DROPPED_CALLBACK,
        "coroutine": DROPPED_COROUTINE,
        "awaitable": DROPPED_AWAITABLE,
        "kept": KEPT,
    }
    paths = []
    for name, text in cases.items():
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + text, encoding="utf-8")
        paths.append(str(path))
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache"), *paths),
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=110,
    )
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    errors = [line for line in outcome.stdout.splitlines() if ": error:" in line]
    found = sorted((Path(line.split(":")[0]).stem, line.rsplit("[")[-1]) for line in errors)
    assert found == [
        ("awaitable", "unused-awaitable]"),
        ("awaitable", "unused-coroutine]"),
        ("callback", "unused-awaitable]"),
        ("coroutine", "unused-coroutine]"),
        ("deferred", "unused-awaitable]"),
    ]
