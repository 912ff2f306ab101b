"""What ``python -m tests.torture`` takes, and how it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.environments import SetupError
from tests.torture import __main__ as command


class Calm:
    """A world in which nothing happens but *check*."""

    def __init__(self, check: Callable[[], None], where: Path) -> None:
        where.mkdir()
        self.check = check
        self.failures: list[str] = []
        self.tally: Counter[str] = Counter(kills=2)
        self.compared = 5

    def __enter__(self) -> Calm:
        return self

    def __exit__(self, *_: object) -> None:
        """End nothing."""


class Idle:
    """Torments nobody."""

    def __init__(self, world: Calm, before: Counter[str]) -> None:
        self.world = world

    def run(self, seconds: float) -> None:
        """Do nothing."""


def raising(*errors: BaseException) -> Callable[[], None]:
    """Return what raises one error after another, then nothing."""
    left = list(errors)

    def check() -> None:
        if left:
            raise left.pop(0)

    return check


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run with calm worlds, without these programs; return the exit code."""

    def torture(check: Callable[[], None], *words: str, without: tuple[str, ...] = ()) -> int:
        def find(name: str, package: str) -> str:
            if name in without:
                raise SetupError(f"{name} was not found")
            return name

        calm = {layout: lambda where, *_: Calm(check, where) for layout in command.LAYOUTS}
        monkeypatch.setattr(command, "LAYOUTS", calm)
        monkeypatch.setattr(command, "Tormentor", Idle)
        monkeypatch.setattr(command, "find_program", find)
        monkeypatch.setattr(command.shim, "build", lambda where: where / "shim.so")
        where = ["--where", str(tmp_path / "rounds")]
        return command.main([*where, "--minutes", "0", "--seed", "1", *words])

    return torture


Run = Callable[..., int]


def test_what_held(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(raising()) == 0
    said = capsys.readouterr().out
    assert "4 rounds" in said
    assert "nothing lost, nothing twice: good" in said
    assert not list((tmp_path / "rounds").iterdir())


def test_what_did_not_hold(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Whatever it is; the other rounds follow."""
    assert run(raising(AssertionError("lost"), OSError("odd"))) == 1
    said = capsys.readouterr().out
    assert "AssertionError: lost" in said
    assert "OSError: odd" in said
    assert "4 rounds" in said
    assert {path.name for path in (tmp_path / "rounds").iterdir()} == {"round0", "round1"}


def test_an_interrupted_run_says_what_was_done(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    rounds: list[int] = []
    assert run(check) == 130
    said = capsys.readouterr().out
    assert "2 rounds" in said
    assert "interrupted" in said


def test_worlds_whose_programs_are_missing_are_left_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(), without=("redis-server", "initdb")) == 0
    said = capsys.readouterr().out
    assert "redis is left out: redis-server was not found" in said
    assert "2 rounds" in said
    assert said.endswith("left out: redis, postgresql\n")


def test_a_long_run_that_met_too_little_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only of worlds that were among the others, and only if there was the time."""
    must = {"": ("kills", "a flood"), "redis": ("rain",), "tcp": ("hail",)}
    monkeypatch.setattr(command, "MUST_BE_MET", must)
    assert run(raising(), "--layout", "redis") == 0
    assert "never happened" not in capsys.readouterr().out
    monkeypatch.setattr(command, "ENOUGH_MINUTES", 0.0)
    assert run(raising(), "--layout", "redis") == 2
    assert "never happened, and has to: a flood, rain\n" in capsys.readouterr().out
    assert run(raising(AssertionError("lost")), "--layout", "redis") == 1


def test_what_has_to_happen_is_what_can() -> None:
    """Each name is one that something counts; what is done of chance is counted by its name."""
    source = "".join(path.read_text() for path in Path(command.__file__).parent.glob("*.py"))
    names = [name for names in command.MUST_BE_MET.values() for name in names]
    for name in names:
        assert source.count(f'"{name}"') > 1 or name.startswith("killed in "), name


@pytest.mark.parametrize(
    ("words", "without"), [((), "cc"), (("--layout", "redis"), "redis-server")]
)
def test_without_what_it_needs_it_does_not_begin(
    words: tuple[str, ...], without: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(raising(), *words, without=(without,))
    assert ended.value.code == 2
    assert f"{without} was not found" in capsys.readouterr().err
