"""What a verdict of ``make mutants`` holds for."""

from __future__ import annotations

import atexit
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import mutants


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a module, its test and two kits, of which one imports the other."""
    texts = {
        "tcprepl/module.py": "x = 1\n",
        "tests/unit/test_module.py": "from tests import kit\n",
        "tests/kit.py": "import tests.below.other\n",
        "tests/below/other.py": "import tests.kit\n",
        "tests/conftest.py": "",
        "tests/unrelated.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "CONFTEST", tmp_path / "tests" / "conftest.py")
    monkeypatch.setattr(
        mutants, "test_of", lambda _: tmp_path / "tests" / "unit" / "test_module.py"
    )
    return tmp_path


def digests(checkout: Path) -> tuple[str, str]:
    """Return by what what was noticed is named, and what survived."""
    mutants.imported_by.cache_clear()
    module = mutants.module_of(checkout / "tcprepl" / "module.py")
    assert module is not None
    return module.code, module.digest


@pytest.mark.parametrize(
    ("changed", "noticed_again", "survived_again"),
    [
        ("tcprepl/module.py", True, True),
        ("tests/unit/test_module.py", False, True),
        ("tests/kit.py", True, True),
        ("tests/below/other.py", True, True),
        ("tests/conftest.py", True, True),
        ("tests/unrelated.py", False, False),
    ],
)
def test_what_is_tried_again_when_a_file_changes(
    checkout: Path, changed: str, noticed_again: bool, survived_again: bool
) -> None:
    """A kit that tests less, or more, makes what was found with it worth nothing."""
    before = digests(checkout)
    with (checkout / changed).open("a") as file:
        file.write("y = 2\n")
    after = digests(checkout)
    assert (after[0] != before[0], after[1] != before[1]) == (noticed_again, survived_again)


def test_what_is_listed_and_is_no_mutant_any_more_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "tcprepl" / "module.py").write_text("def f(x):\n    return x > 3\n")
    listed = checkout / "listed.txt"
    key, gone = "f: return x > 3 -> return x >= 3", "f: return x > 2 -> return x >= 2"
    listed.write_text(f"A reason.\n    tcprepl/module.py: {key}\n    tcprepl/module.py: {gone}\n")
    monkeypatch.setattr(mutants, "EQUIVALENT", listed)
    mutants.imported_by.cache_clear()
    module = mutants.module_of(checkout / "tcprepl" / "module.py")
    assert module is not None
    tried = {(module.digest, key): True}
    assert mutants.report_of([(module, module.sample(0, 0))], tried) == 0.0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "    1 of   3 tried,   0 survive,   1 change nothing  tcprepl/module.py",
        f"          no mutant any more, but in the list: tcprepl/module.py: {gone}",
        "1 of 3 mutants tried, 0 survive: 0.0 %",
    ]


@pytest.mark.parametrize("name", ["tcprepl/nothing.py", "tests/kit.py", "tcprepl"])
def test_what_is_no_module_with_a_test_is_refused(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else nothing survives of nothing, and all looks well."""
    monkeypatch.setattr(mutants, "test_of", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        mutants.main([str(checkout / name)])
    assert ended.value.code == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(("failing", "code"), [(0, 0), (1, 2)])
def test_a_module_whose_tests_fail_anyhow_was_not_tried(
    failing: int, code: int, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "REPORT", checkout / "build" / "mutants.jsonl")
    monkeypatch.setattr(mutants, "EQUIVALENT", checkout / "tests" / "conftest.py")
    monkeypatch.setattr(mutants, "work", lambda *_: failing)
    assert mutants.main(["--jobs", "1", str(checkout / "tcprepl" / "module.py")]) == code


def test_what_is_listed_is_a_mutant_with_a_reason() -> None:
    """Else a survivor of today may hide behind a reason that was given for another one."""
    wanted: dict[str, list[str]] = {}
    reason = ""
    for line in mutants.EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            assert reason, line
            name, _, key = line.strip().partition(": ")
            wanted.setdefault(name, []).append(key)
        else:
            reason = line
    for name, listed in wanted.items():
        there = mutants.keys((mutants.ROOT / name).read_text(encoding="utf-8"))
        assert sorted(listed) == sorted(there & set(listed)), name


def test_a_long_statement_is_named_by_where_it_is_changed() -> None:
    """Else all changes of its end have one name, and the reason for one excuses another."""
    names = [f"name{number}" for number in range(40)]
    found = mutants.keys(f"def f():\n    return {' or '.join(names)} or x > 1\n")
    assert any("(x > 1) -> " in key and key.endswith("(x >= 1)") for key in found), found
    assert not any("#" in key for key in found)


@pytest.mark.parametrize(("body", "passes"), [("pass", True), ("time.sleep(60)", False)])
def test_what_tests_share_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, passes: bool
) -> None:
    """Else each mutant that is tried on PostgreSQL leaves a server behind."""
    begun, ended, mine = (tmp_path / name for name in ("begun", "ended", "mine"))
    test = tmp_path / "test_it.py"
    test.write_text(
        f"import atexit, pathlib, time\natexit.register(open, {str(ended)!r}, 'w')\n"
        f"def test_it():\n    pathlib.Path({str(begun)!r}).touch()\n    {body}\n"
    )
    # What hangs is given up as soon as it has begun, however long that takes on a busy machine.
    late = 0.0 if passes else 61.0
    clock = SimpleNamespace(monotonic=lambda: late if begun.exists() else 0.0, sleep=time.sleep)
    monkeypatch.setattr(mutants, "time", clock)
    atexit.register(mine.touch)
    try:
        assert mutants.run_tests(tmp_path, [str(test)], 60.0) is passes
    finally:
        atexit.unregister(mine.touch)
    assert ended.exists()
    assert not mine.exists()
