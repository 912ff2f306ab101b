"""What readers of simulated worlds go through is what the model of resuming allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tcprepl.streams.gaps import Gaps
from tcprepl.streams.history import History
from tests.harness import FULL
from tests.model.spin import NUMBERS, Step
from tests.simulation import __main__ as command
from tests.simulation.recorded import recording, schedule
from tests.simulation.tapes import STEPS, PairTape, gathered, joined, ranked, refused, words
from tests.simulation.unmended import MENDS, Mend, replaced
from tests.simulation.world import Failed, play

pytestmark = pytest.mark.interop


@cache
def tapes_of(seed: int) -> tuple[dict[Any, list[Step]], int]:
    """Return the tapes of a world, and how many answers there are."""
    with recording() as tapes:
        play(seed, schedule(seed))
    answers = sum(n for what, n in tapes.counts.items() if what.startswith("answers: "))
    return tapes.steps(), answers


def steps(*lines: str) -> list[Step]:
    """Return what *lines* say in the words of the model."""
    found = []
    for line in lines:
        name, one, other = line.split()
        found.append((NUMBERS[name], NUMBERS[one] if name == "ASK" else int(one), int(other)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24 if FULL else 2))
def test_the_model_allows_what_readers_go_through(seed: int) -> None:
    """Through kills, copies that are put back, damage, retention, and answers that are lost."""
    found, answers = tapes_of(seed)
    assert len(found) >= 8
    assert answers > 30
    if refused(joined(found.values())):
        wrong = {key: refused(tape)[-2_000:] for key, tape in found.items() if refused(tape)}
        assert not wrong


def no_ends(self: History, pair: object, token: int, incarnation: str) -> int | None:
    """Say that a reader shares all that it has, whenever its incarnation is known."""
    return token if incarnation in self._numbers else None


def nowhere(self: Gaps, pair: object, token: int) -> None:
    """Know of no gap."""


#: What the code does wrongly, and a world in which it is seen.
BROKEN = {
    "incarnations are not looked at": MENDS["a reader's incarnation is looked at when it resumes"],
    "readers keep no incarnations": MENDS["a reader keeps in which incarnation it got what it has"],
    "no incarnation has an end": Mend(replaced(History, "shared", no_ends)),
    "gaps are passed in silence": Mend(replaced(Gaps, "next", nowhere)),
}
SEEDS = {
    "incarnations are not looked at": 3,
    "readers keep no incarnations": 0,
    "no incarnation has an end": 3,
    "gaps are passed in silence": 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_the_model_refuses_what_is_wrong(what: str) -> None:
    with recording() as tapes, BROKEN[what].removed(), suppress(Failed):
        play(SEEDS[what], schedule(SEEDS[what]))
    assert "assertion violated" in refused(joined(tapes.steps().values()))


def changed(tape: list[Step], line: str, into: str) -> Iterator[list[Step]]:
    """Yield *tape* with each of the steps like *line* changed *into* another, "" for none."""
    for at, step in enumerate(tape):
        name, one, other = words(step).split()
        wanted = zip(line.split(), (name, one, other), strict=True)
        if all(word in ("*", said) for word, said in wanted):
            new = into.format(one, other, int(other) + 1, int(other) - 1)
            yield [*tape[:at], *(steps(new) if new else ()), *tape[at + 1 :]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "into"),
    [
        ("ASK PAGE *", "ASK PAGE {2}"),
        ("ASK PAGE *", "ASK GAP {1}"),
        ("ASK GAP *", "ASK PAGE {1}"),
        ("ASK FORKED *", "ASK AT_HEAD {1}"),
        ("ASK FORKED *", "ASK FORKED {2}"),
        ("ASK AT_HEAD *", "ASK AT_HEAD {3}"),
        ("HELD * *", "HELD {0} {2}"),
        ("RESTORE * 0", ""),
        ("SAYS * *", ""),
        ("SAYS * *", "SAYS {0} {2}"),
        ("TRIM 0 *", ""),
        ("START 0 0", ""),
    ],
)
def test_a_tape_that_is_changed_is_refused(line: str, into: str) -> None:
    for seed in (3, 5):
        for tape in tapes_of(seed)[0].values():
            if any(refused(other) for other in changed(tape, line, into)):
                return
    pytest.fail("accepted")


def test_what_happens_while_nobody_looks_is_one_step() -> None:
    tape = steps("APPEND 0 1", "TRIM 0 1", "APPEND 0 2", "TRIM 0 2", "CUT 0 0", "APPEND 0 1")
    assert [words(step) for step in gathered(tape)] == [
        *("APPEND 0 3", "TRIM 0 2", "CUT 0 0", "APPEND 0 1")
    ]


def test_tokens_that_nothing_happens_at_are_left_out() -> None:
    tape = steps("APPEND 0 90", "COPY 1 0", "ASK PAGE 40", "APPEND 0 9", "RESTORE 1 0", "HELD 90 7")
    assert [words(step) for step in ranked(tape)] == [
        *("APPEND 0 3", "COPY 1 0", "ASK PAGE 2", "APPEND 0 1", "RESTORE 1 0", "HELD 3 1")
    ]
    assert set(STEPS.values()).issuperset({"APPEND", "HELD", "SAID"})


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "incarnations are not looked at"])
def test_the_command_writes_tapes_and_has_them_read(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = SEEDS["incarnations are not looked at"]
    monkeypatch.setattr(command, "play", lambda *_: play(seed, schedule(seed)))
    monkeypatch.setattr(command, "shrunk", lambda *_: [])
    where = tmp_path / "tapes"
    with BROKEN[what].removed() if what else nullcontext():
        code = command.main(["--seeds", f"{seed}-{seed}", "--tapes", str(where)])
    said = capsys.readouterr().out
    assert code == bool(what)
    assert (f"the model refuses {where}/{seed}-" in said) is bool(what)
    assert f"on tapes in {where}, of which the model refuses" in said
    tape = (where / f"{seed}-server-alpha-w0").read_text().splitlines()
    assert tape[:2] == ["START 0 0", "HELD 0 0"]
    assert refused(steps(*tape)) == "" or what


def test_tapes_go_where_there_is_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        command.main(["--tapes", str(tmp_path / "file")])
    assert ended.value.code == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said", "allowed"),
    [
        (4, [(4, 2), (3, 1)], True),
        (3, [(3, 1)], True),
        (2, [(2, 1)], True),
        (3, [(3, 2), (3, 1)], True),  # it was told where it is, and got no row
        (0, [], True),
        (3, [(3, 2)], False),
        (4, [(4, 1)], False),
        (5, [(5, 2), (3, 1)], False),
    ],
)
def test_a_reader_says_what_it_kept(
    asked: int, said: list[tuple[int, int]], *, allowed: bool
) -> None:
    tape = PairTape(Counter())
    tape.begin(0, 0)
    tape.connect("w", 1, 0, [])
    tape.move(3)
    tape.answer("w", 1, "PAGE", 3)
    tape.begin(3, 0)
    tape.connect("w", 2, 3, [(3, 1)])
    tape.move(4)
    tape.answer("w", 2, "PAGE", 4)
    tape.connect("w", 3, asked, said)
    assert (refused(tape.steps("w")) == "") is allowed
