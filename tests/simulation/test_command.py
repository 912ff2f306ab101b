"""What ``python -m tests.simulation`` takes, and how it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation import __main__ as command
from tests.simulation.world import Failed, Played

ALL_MET = Counter({(what, ""): 1 for what in command.MUST_BE_MET})
NO_PART = ALL_MET - Counter({("part: who talk", ""): 1})


def played(coverage: Counter[tuple[str, str]]) -> Callable[..., Played]:
    """Return what plays a world in no time."""
    return lambda *_: Played(0, 3600.0, 1, coverage)


def raising(error: BaseException) -> Callable[..., Any]:
    """Return what raises."""

    def play(*_: Any) -> Any:
        raise error

    return play


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", range(20)),
        ("3", range(3)),
        ("0-3", range(4)),
        ("7-7", range(7, 8)),
        ("40-", range(40, 60)),
    ],
)
def test_seeds(text: str, seeds: range) -> None:
    assert command.seeds_in(text) == seeds


def test_seeds_of_minutes_have_no_end() -> None:
    assert len(command.seeds_in("", endless=True)) == command.NO_END
    assert command.seeds_in("5-6", endless=True) == range(5, 7)


@pytest.mark.parametrize(
    "words",
    [
        *("--seeds abc", "--seeds 5-2", "--seeds 0", "--seeds=-4", "--minutes 0"),
        *("--seed 1 --steps x", "--seed 1 --only nothing", "--steps 3"),
    ],
)
def test_what_means_nothing_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of no worlds would look as if all were well."""
    with pytest.raises(SystemExit) as ended:
        command.main(words.split())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("play", "count", "code", "said"),
    [
        (played(Counter()), 3, 0, "3 worlds, 3.0 simulated hours"),
        (played(ALL_MET), 100, 0, "100 worlds"),
        (played(Counter()), 100, 2, "never happened, and has to: "),
        (played(NO_PART), 100, 2, "never happened, and has to: part: who talk"),
        (played(NO_PART + Counter({("part", "who talk"): 1})), 100, 0, "100 worlds"),
        (raising(Failed(1, None, RuntimeError("x"))), 3, 1, "3 failures"),
        (raising(Failed(1, None, RuntimeError("x"))), 100, 1, "never happened, and has to: "),
        (raising(KeyboardInterrupt()), 3, 130, "the rest from --seeds 0-2"),
    ],
)
def test_how_it_ends(
    play: Callable[..., Any],
    count: int,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "play", play)
    monkeypatch.setattr(command, "shrunk", lambda *_: [])
    assert command.main(["--seeds", str(count)]) == code
    assert said in capsys.readouterr().out
