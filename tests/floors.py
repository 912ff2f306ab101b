"""The coverage floors, as a pytest option: ``--floors`` fails a run that is below them.

A floor is a share of the branches and lines of a part of the package. The check runs before
the runner's closing line, so that the line tells the truth.
"""

from __future__ import annotations

import io
from pathlib import Path

import coverage
import pytest

#: Part of the package (patterns) -> percent that its tests have to reach.
FLOORS = {
    "protocol and streams": (["*/tcprepl/protocol/*", "*/tcprepl/streams/*"], 100.0),
    "the rest": (["*/tcprepl/*"], 95.0),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--floors", action="store_true", help="fail below the coverage floors")


def measure(data_file: Path) -> list[tuple[str, float, float, str]]:
    """Return (part, percent reached, percent wanted, report of what is missing)."""
    found = []
    seen: list[str] = []
    for part, (patterns, wanted) in FLOORS.items():
        cov = coverage.Coverage(data_file=str(data_file))
        cov.load()
        out = io.StringIO()
        reached = cov.report(
            include=patterns, omit=seen or None, file=out, show_missing=True, skip_covered=True
        )
        found.append((part, reached, wanted, out.getvalue()))
        seen += patterns
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Check the floors once everything has been collected from the workers."""
    config = session.config
    if not config.getoption("--floors") or hasattr(config, "workerinput"):
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    try:
        found = measure(config.rootpath / ".coverage")
    except coverage.exceptions.NoDataError as error:
        # An exception would take the runner's own report with it.
        reporter.write_line(f"the coverage floors cannot be checked: {error}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    for part, reached, wanted, report in found:
        missed = reached < wanted
        if missed:
            reporter.write_line(report)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        verdict = "below the floor of" if missed else "at or above the floor of"
        reporter.write_line(f"coverage of {part}: {reached:.2f} %, {verdict} {wanted:.0f} %")
