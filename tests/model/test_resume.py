"""The model and the code cannot part: each follows what the other does.

What the random machine of the cursor does to a log on disk, and what the cursor answers, is read to
spin as a tape: each answer has to be one that the model allows, and the model's properties have to
hold. What spin walks by chance is done to a real log: each answer has to be the model's.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tcprepl.limits import MAX_SAID_INCARNATIONS
from tcprepl.streams.cursor import AT_HEAD, Cursor, Limits
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.lineage import Lineage
from tcprepl.streams.pages import Reading
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.harness import FULL
from tests.log_kit import DURABLE, SqliteStore, result, row
from tests.model import spin
from tests.model.spin import NUMBERS, Step, kind_of
from tests.stateful.test_cursor import Follower, SqliteMachine, Truth

pytestmark = pytest.mark.interop
PAIR = (DURABLE, "a")


class Listening:
    """A cursor whose answers go on the tape."""

    def __init__(self, cursor: Cursor, machine: TapedMachine, number: int) -> None:
        self._cursor = cursor
        self._machine = machine
        self._number = number

    @property
    def token(self) -> int:
        """Where the cursor is."""
        return self._cursor.token

    def next(self, limits: Limits) -> Any:
        """Answer."""
        answer = self._cursor.next(limits)
        if not isinstance(answer, Reading):
            if isinstance(answer, Gap) and answer.cause is Cause.DAMAGE:
                self._machine.note("DAMAGE", answer.after, answer.upto)
            self._machine.note("ASK", NUMBERS[kind_of(answer)], self.token, reader=self._number)
        return answer


class TapedLog:
    """A log; what happens to its durable pair goes on the tape."""

    def __init__(self, log: Any, machine: TapedMachine) -> None:
        self._log = log
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        """Leave all else to the log."""
        return getattr(self._log, name)

    def append(self, *args: Any, **kwargs: Any) -> Any:
        """Append rows."""
        return self._moved("APPEND", lambda: self._log.append(*args, **kwargs))

    def advance(self, stream: str, instance: str, token: int) -> Any:
        """Move the position."""
        lost = self._log.gaps.covers((stream, instance), token - 1, token)
        name = "LOSE" if lost else "MOVE"
        return self._moved(name, lambda: self._log.advance(stream, instance, token))

    def trim(self, *args: Any) -> None:
        """Forget rows."""
        self._moved("", lambda: self._log.trim(*args))

    def _moved(self, name: str, do: Callable[[], Any]) -> Any:
        before = self._log.position(*PAIR)
        answer = do()
        if self._log.position(*PAIR) > before:
            self._machine.note(name, 0, self._log.position(*PAIR) - before)
        self._machine.note("TRIM", 0, self._log.floor(*PAIR))
        return answer


class Copies(list[tuple[Path, Truth]]):
    """Copies of a log; that one is made, or put back, goes on the tape."""

    def __init__(self, machine: TapedMachine) -> None:
        super().__init__()
        self._machine = machine

    def append(self, kept: tuple[Path, Truth]) -> None:
        """Keep a copy."""
        super().append(kept)
        number = len(self)
        self._machine.note("COPY", number)
        truth = kept[1]

        def copy() -> Truth:
            self._machine.note("RESTORE", number)
            return Truth.copy(truth)

        truth.copy = copy  # type: ignore[method-assign]


class TapedMachine(SqliteMachine):
    """The machine of the cursor, whose durable pair is read to the model at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[int | None, Step]] = []
        self.copies = Copies(self)

    def note(self, name: str, one: int = 0, other: int = 0, reader: int | None = None) -> None:
        """Put a step on the tape: of one reader, or of all."""
        self.tape.append((reader, (NUMBERS[name], one, other)))

    def open(self, where: Path) -> None:
        """Open the log."""
        super().open(where)
        self.store.log = TapedLog(self.store.log, self)
        self.note("START")
        self.note("TRIM", 0, self.store.log.floor(*PAIR))

    def leave(self) -> None:
        """Close the log."""
        super().leave()
        self.note("STOP")

    def place(self, follower: Follower) -> None:
        """Give *follower* a cursor."""
        super().place(follower)
        if follower.pair == PAIR:
            number = self.followers.index(follower)
            self.note("CUT", reader=number)
            self.note("CONNECT", reader=number)
            assert follower.cursor is not None
            follower.cursor = Listening(follower.cursor, self, number)  # type: ignore[assignment]

    def teardown(self) -> None:
        """Read the tape to the model, once for each reader."""
        super().teardown()
        tokens = max(self.truth.position.get(PAIR, 0), *(step[2] for _, step in self.tape)) + 1
        tokens = max(tokens, sum(s[2] for _, s in self.tape if s[0] in MOVES) + 1)
        starts = sum(step[0] == NUMBERS["START"] for _, step in self.tape)
        for number, follower in enumerate(self.followers):
            if follower.pair == PAIR:
                steps = [step for reader, step in self.tape if reader in (None, number)]
                bounds = (tokens, starts, len(self.copies) + 1, MAX_SAID_INCARNATIONS)
                wrong = spin.read_tape(steps, *bounds)
                assert not wrong, wrong[:9_000]


MOVES = {NUMBERS[name] for name in ("APPEND", "MOVE", "LOSE")}

TestTapes = TapedMachine.TestCase
TestTapes.settings = settings(max_examples=max(6, settings.default.max_examples // 10))


def test_a_tape_that_the_model_does_not_allow_is_found() -> None:
    number = NUMBERS.__getitem__
    tape = [(number("START"), 0, 0), (number("APPEND"), 0, 3), (number("CONNECT"), 0, 0)]
    good = [(number("ASK"), number("PAGE"), 2), (number("ASK"), number("PAGE"), 3)]
    assert spin.read_tape([*tape, *good], 4, 1, 1, 8) == ""
    wrong = (number("ASK"), number("GAP"), 2)
    assert "assertion violated" in spin.read_tape([*tape, wrong], 4, 1, 1, 8)


# --- what spin walks --------------------------------------------------------------------------


class Walker:
    """A log on disk and a reader, to which is done what the model does."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.store: SqliteStore | None = None
        self.at = self.began = 0
        self.lineage = Lineage()
        self.cursor: Cursor | None = None

    @property
    def directory(self) -> Path:
        """Where the log is."""
        return self.where / "log"

    def step(self, op: int, one: int, other: int) -> int:
        """Do a step; return what was answered, 0 for what answers nothing."""
        name = next(name for name in HAPPENS if NUMBERS[name] == op)
        answer = getattr(self, name.lower())(one, other)
        return int(answer or 0)

    @property
    def log(self) -> Any:
        """The log, which has to be open."""
        assert self.store is not None
        return self.store.log

    def start(self, *_: int) -> None:
        self.store = SqliteStore(self.directory)

    def stop(self, *_: int) -> None:
        assert self.store is not None
        self.store.close()
        self.store = self.cursor = None

    def append(self, *_: int) -> None:
        result(self.log.append(*PAIR, [row("x")]))

    def damage(self, after: int, upto: int) -> None:
        with closing(sqlite3.connect(self.directory / DATABASE_NAME)) as connection:
            connection.execute("UPDATE blocks SET crc = crc + 1 WHERE last = ?", (upto,))
            connection.commit()

    def trim(self, _: int, upto: int) -> None:
        self.log.trim(*PAIR, upto)

    def copy(self, *_: int) -> None:
        shutil.copytree(self.directory, self.where / "copy")

    def restore(self, *_: int) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.where / "copy").rename(self.directory)

    def away(self, *_: int) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, *_: int) -> None:
        self.cursor = self.log.cursor(PAIR, self.at, self.lineage.places(self.at))

    def cut(self, *_: int) -> None:
        self.cursor = None

    def ask(self, _: int, most: int) -> int:
        assert self.cursor is not None
        answer: Any = None
        while answer is None or isinstance(answer, Reading):
            answer = self.cursor.next(Limits(self.at + most))
        if answer is not AT_HEAD:
            self.lineage = self.lineage.entered(
                self.log.history.current, self.at, self.cursor.token
            )
            self.at = self.cursor.token
        return NUMBERS[kind_of(answer)]

    def ack(self, token: int, _: int) -> None:
        if token <= self.log.position(*PAIR):
            self.log.trim(*PAIR, token - 1)


#: What happens on a walk of one server at a time.
HAPPENS = (
    *("START", "STOP", "APPEND", "DAMAGE", "TRIM", "COPY", "RESTORE", "AWAY"),
    *("CONNECT", "CUT", "ASK", "ACK"),
)
#: Walks, and what each begins with.
WALKS = range(1, 30 if FULL else 9)
#: More of everything than a search could look through.
BOUNDS = ("ALONE", "NUM=byte", "TOKENS=14", "STARTS=20", "COPIES=1", "PLACES=8")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Yield a directory where a commit costs little."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


def test_a_log_answers_on_walks_of_the_model_as_it_does(in_memory: Path) -> None:
    answered: set[int] = set()
    for seed in WALKS:
        walker = Walker(in_memory / str(seed))
        done = []
        for op, one, other, answer, at in spin.walk("resume", seed, 40_000, BOUNDS):
            done.append((op, one, other))
            found = walker.step(op, one, other), walker.at
            assert found == (answer, at), (seed, done)
            answered.add(answer)
        if walker.store is not None:
            walker.stop()
    assert answered == {0, *(NUMBERS[name] for name in ("PAGE", "GAP", "FORKED", "AT_HEAD"))}
