"""The layout is a promise: rooms, mirrored unit tests, package docstrings, small modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcprepl"
UNIT = ROOT / "tests" / "unit"

#: Everything that may stand at the top of the package.
TOP = {
    "__init__.py",
    "__main__.py",
    "access.py",
    "aio",
    "app",
    "background.py",
    "blocking.py",
    "cli",
    "clocks.py",
    "config.py",
    "conformance",
    "settings.py",
    "synapse_names.py",
    "addresses.py",
    "secret_files.py",
    "values.py",
    "ephemeral",
    "docs",
    "files",
    "errors.py",
    "federation",
    "http",
    "ids.py",
    "limits.py",
    "logger.py",
    "metrics.py",
    "protocol",
    "py.typed",
    "replication",
    "storage",
    "streams",
    "web",
}
#: Modules that hold nothing to test on their own.
PLAIN = {"__init__.py", "__main__.py", "ids.py"}
MAX_LINES = 500
#: What the docstring of a longer module says, after the reason.
LONGER = "longer than other modules"

MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_its_unit_test() -> None:
    """``tcprepl/x/y.py`` is tested by ``tests/unit/x/test_y.py``."""
    missing = [
        str(module.relative_to(ROOT))
        for module in MODULES
        if module.name not in PLAIN
        and not (UNIT / module.relative_to(PACKAGE).parent / f"test_{module.name}").exists()
    ]
    assert missing == []


def test_every_unit_test_has_its_module() -> None:
    """``tests/unit/x/test_y.py`` tests ``tcprepl/x/y.py``, or ``x/__init__.py`` as test_init."""
    strays = []
    for test in sorted(UNIT.rglob("test_*.py")):
        name = test.name.removeprefix("test_")
        module = PACKAGE / test.relative_to(UNIT).parent / name
        if name == "init.py":
            module = module.with_name("__init__.py")
        if not module.exists():
            strays.append(str(test.relative_to(ROOT)))
    assert strays == []


def test_top_level_stays_small() -> None:
    """A new thing goes into a room, not beside the rooms."""
    assert {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"} <= TOP


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_described_and_short(module: Path) -> None:
    """Each module says what it is and stays readable in one sitting."""
    text = module.read_text(encoding="utf-8")
    described = ast.get_docstring(ast.parse(text))
    assert described, f"{module} has no docstring"
    assert text.count("\n") <= MAX_LINES or LONGER in " ".join(described.split()), (
        f"part it where a reader would, or say in its docstring why it may be {LONGER}"
    )
