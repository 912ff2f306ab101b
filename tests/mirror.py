"""Each module measured by its own unit test alone: ``make mirror``.

A module whose test covers it only together with others is tested by accident. The floor is
lower than that of the whole suite, since what needs real sockets is tested elsewhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import coverage

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcprepl"
UNIT = ROOT / "tests" / "unit"


def test_of(module: Path) -> Path | None:
    """Return the unit test of a module, if it has one."""
    name = "init.py" if module.name == "__init__.py" else module.name
    path = UNIT / module.relative_to(PACKAGE).parent / f"test_{name}"
    return path if path.exists() else None


def measure(module: Path, test: Path) -> tuple[float, str]:
    """Return how much of *module* its test covers, and what the test said if it failed."""
    with tempfile.TemporaryDirectory() as where:
        data = Path(where) / "data"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "coverage", "run", "--branch", f"--include={module}"),
                *(f"--data-file={data}", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return 0.0, done.stdout[-1500:]
        merged = coverage.Coverage(data_file=str(data))
        merged.combine([where], keep=True)
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            try:
                return merged.report(include=[str(module)], file=nowhere), ""
            except coverage.exceptions.NoDataError:
                return 0.0, "never imported"


def main() -> int:
    """Print a line for each module; return 1 if one is below the floor."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--floor", type=float, default=80.0, help="percent each has to reach")
    parser.add_argument("only", nargs="*", help="modules, such as tcprepl/config.py")
    asked = parser.parse_args()
    modules = [Path(name).resolve() for name in asked.only] or sorted(PACKAGE.rglob("*.py"))
    pairs = [(module, test) for module in modules if (test := test_of(module)) is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = list(pool.map(lambda pair: measure(*pair), pairs))
    below = 0
    for (module, _), (percent, story) in zip(pairs, answers, strict=True):
        mark = "" if percent >= asked.floor else "  <- below the floor"
        below += bool(mark)
        print(f"{percent:6.1f} %  {module.relative_to(ROOT)}{mark}")
        if story:
            print(story)
    print(f"{len(pairs)} modules, {below} below {asked.floor:g} %")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
