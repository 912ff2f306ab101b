"""Listening to the server and the relays of a simulated world, to put what happens on tapes.

What is noted of a log is its positions, retention, starts, copies and damage; of its readers, where
they say that they are, what cursors answer them, and what they are given at the head. Nothing of
that changes what happens in the world.

    with recording() as tapes:
        play(7)
    assert not refused(joined(tapes.steps().values()))
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tcprepl.ids import Pair
from tcprepl.replication.serving.behind import Behind
from tcprepl.replication.serving.hub import Hub
from tcprepl.streams.cursor import AT_HEAD
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.log import Block
from tcprepl.streams.pages import Reading
from tcprepl.streams.stored import StoredLog
from tests.model.spin import Step, kind_of
from tests.simulation import world as worlds
from tests.simulation.machines import ROWS, LogMachine, Server
from tests.simulation.relays import Relay
from tests.simulation.tapes import PairTape, joined, refused, words

PAIRS: list[Pair] = [(stream, "master") for stream in ROWS]
#: What happens to logs and their readers, and how often, relative to each other.
HAPPENINGS = {
    "publish": 18,
    "mood": 1,
    "kill": 3,
    "lose_machine": 1,
    "stop": 1,
    "cut": 2,
    "part": 1,
    "slow": 1,
    "refuse": 2,
    "back_up": 4,
    "restore": 3,
    "damage": 3,
    "put_back_a_worker": 3,
    "retain": 5,
    "first_row": 1,
}
STEPS = 30


def schedule(seed: int) -> list[worlds.Step]:
    """Return a schedule of what the model speaks of, more of it than in others."""
    chance = random.Random(seed)
    whats = chance.choices([*HAPPENINGS], [*HAPPENINGS.values()], k=STEPS)
    return [
        worlds.Step(number, what, chance.randrange(1 << 30), chance.choice((0.0, 1.0, 9.0)))
        for number, what in enumerate([*whats, "quiet"])
    ]


class Tapes:
    """The tapes of a world's server and relays.

    Attributes:
        pairs: By machine and pair.
        counts: What was noted, and what could not be.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.pairs: dict[tuple[str, Pair], PairTape] = {}
        self._incarnations: dict[str, dict[str, int]] = {}
        self._machines: list[LogMachine] = []
        self._copies: list[Any] = []
        self._restored: dict[str, int] = {}
        #: The reader for whom a hub does something now, and what it says.
        self.reader: Any = None
        self.places: Any = ()

    def of(self, log: Any, pair: Pair) -> tuple[LogMachine, PairTape] | None:
        """Return the tape of a pair of *log*, if there is one."""
        for machine in self._machines:
            if machine.log is log and (machine.name, pair) in self.pairs:
                return machine, self.pairs[machine.name, pair]
        return None

    # -- logs --------------------------------------------------------------------------

    def opened(self, machine: LogMachine) -> None:
        """A machine has opened its log."""
        if not isinstance(machine, Server | Relay):
            return
        if machine not in self._machines:
            self._machines.append(machine)
            for pair in PAIRS:
                self.pairs[machine.name, pair] = PairTape(self.counts)
        log = machine.log
        for pair in PAIRS:
            tape = self.pairs[machine.name, pair]
            tape.begin(log.position(*pair), log.floor(*pair))
            number = tape.starts
        for pair, gap in log.gaps.of(Cause.DAMAGE):
            self.damaged(log, pair, gap)
        names = self._incarnations.setdefault(machine.name, {})
        names[log.history.current] = number

        def published(block: Block) -> None:
            if (found := self.of(log, (block.stream, block.instance))) is not None:
                found[1].move(block.last)

        def moved(stream: str, instance: str, before: int, now: int) -> None:
            if (found := self.of(log, (stream, instance))) is not None:
                gaps = [gap for pair, gap in log.gaps if pair == (stream, instance)]
                lost = any(gap.after <= before and now <= gap.upto for gap in gaps)
                found[1].move(now, "LOSE" if lost else "MOVE")

        log.add_listener(published)
        log.add_position_listener(moved)
        cursor = log.cursor
        log.cursor = lambda pair, *args, **kwargs: self._hear(
            log, pair, cursor(pair, *args, **kwargs)
        )

    def damaged(self, log: Any, pair: Pair, gap: Gap) -> None:
        """The disk does not give rows back."""
        if (found := self.of(log, pair)) is not None:
            found[1].note("DAMAGE", gap.after, gap.upto)

    def went_back(self, machine: LogMachine) -> None:
        """Another directory is in the place of a machine's own: a copy, or an empty one."""
        number = self._restored.pop(machine.name, None)
        for pair in PAIRS:
            tape = self.pairs.get((machine.name, pair))
            if tape is not None:
                tape.end()
                tape.note("RESTORE" if number else "AWAY", number or 0)

    def restoring(self, machine: LogMachine, which: int) -> None:
        """A copy is about to be put back."""
        if machine.backups:
            copy = machine.backups[which % len(machine.backups)]
            number = next((n for n, one in enumerate(self._copies, 1) if one is copy), 0)
            self._restored[machine.name] = number

    def copied(self, machine: LogMachine) -> None:
        """A copy has been made of all that is on disk, heard of or not."""
        self._copies.append(machine.backups[-1])
        for pair in PAIRS:
            tape = self.pairs.get((machine.name, pair))
            if tape is not None:
                position = machine.backups[-1].positions.get(pair, 0)
                tape.raise_floor(machine.log.floor(*pair))
                tape.copies.append((position, len(self._copies)))
                tape.move(machine.log.position(*pair))

    # -- readers -----------------------------------------------------------------------

    def _hear(self, log: Any, pair: Pair, cursor: Any) -> Any:
        found = self.of(log, pair)
        if found is None or self.reader is None or not name_of(self.reader):
            return cursor
        if cursor.token == 0:
            found[1].meet(name_of(self.reader), self.reader)
        return Heard(self, log, cursor, self.reader)

    def asks(self, log: Any, pair: Pair, asked: int, head: int, *, absent: bool = False) -> None:
        """A reader says where it is; it needs no cursor if it says no more than the head."""
        found = self.of(log, pair)
        if found is None or not name_of(self.reader):
            return
        machine, tape = found
        names = self._incarnations[machine.name]
        said = [(token, names.get(name, 0)) for token, name in self.places]
        tape.connect(name_of(self.reader), self.reader, asked, said)
        if absent and asked:
            tape.answer(name_of(self.reader), self.reader, "FORKED" if said else "AHEAD", 0)
        elif absent or (asked == head and not said):
            tape.heard(name_of(self.reader), self.reader)

    def answered(self, log: Any, pair: Pair, reader: Any, answer: Any, token: int) -> None:
        """A cursor has answered."""
        if (found := self.of(log, pair)) is None:
            return
        tape = found[1]
        tape.raise_floor(log.floor(*pair))
        if answer is not AT_HEAD or token == tape.position:  # else more is on its way
            tape.answer(name_of(reader), reader, kind_of(answer), token)
        if answer is AT_HEAD:
            tape.heard(name_of(reader), reader)

    def deliver(self, hub: Any, segment: Sequence[Any], do: Callable[[Any, Any], None]) -> None:
        """Readers at the head get what is new."""
        log = hub._log
        heard = []
        for event in segment:
            pair = (event.stream, event.instance)
            if (found := self.of(log, pair)) is not None:
                groups = hub._groups.wanting(pair)
                readers = [r for group in groups for r in group.readers if name_of(r)]
                for reader in readers if pair not in hub.heads else ():
                    found[1].meet(name_of(reader), reader)
                heard.append((event, found[1], readers))
        do(hub, segment)
        for event, tape, readers in heard:
            rows = isinstance(event, Block)
            before, now = (event.first - 1, event.last) if rows else (event.before, event.now)
            for reader in readers:
                self._heard(tape, reader, before, now, rows=rows)

    def _heard(self, tape: PairTape, reader: Any, before: int, now: int, *, rows: bool) -> None:
        name = name_of(reader)
        at = tape.at(name, reader)
        if at is None:
            self.counts["answers on connections that their readers had left"] += 1
        elif at < tape.floor:
            self.counts["answers at the head of what retention had taken"] += 1
            tape.followers[name].session = None
        elif at == now:
            tape.heard(name, reader)
        elif at < now:
            if not rows:
                tape.answer(name, reader, "GAP" if before == now else "PAGE", now)
            else:
                tape.answer(name, reader, "PAGE", now)

    # -- what becomes of them ------------------------------------------------------------

    def steps(self) -> dict[tuple[str, Pair, str], list[Step]]:
        """Return the tape of each reader: by machine, pair and name."""
        return {
            (machine, pair, name): tape.steps(name)
            for (machine, pair), tape in self.pairs.items()
            for name in tape.followers
        }

    def write(self, where: Path, seed: int) -> list[str]:
        """Write each tape to a file; return what those are called that the model refuses."""
        steps = self.steps()
        wrong = bool(refused(joined(steps.values())))
        found = []
        for (machine, pair, name), tape in steps.items():
            path = where / f"{seed}-{machine}-{pair[0]}-{name}"
            lines = [words(step) for step in tape]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            if wrong and refused(tape):
                found.append(str(path))
        return found


def name_of(reader: Any) -> str:
    """Return the name that a hub's reader has said; "" if it is none, but a Redis."""
    return str(reader.label.partition(":")[2])


class Heard:
    """A cursor whose answers go on a tape."""

    def __init__(self, tapes: Tapes, log: Any, cursor: Any, reader: Any) -> None:
        self._tapes = tapes
        self._log = log
        self._cursor = cursor
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        """Leave all else to the cursor."""
        return getattr(self._cursor, name)

    def next(self, *limits: Any) -> Any:
        """Answer."""
        answer = self._cursor.next(*limits)
        if not isinstance(answer, Reading):
            cursor = self._cursor
            self._tapes.answered(self._log, cursor.pair, self._reader, answer, cursor.token)
        return answer


@contextmanager
def recording() -> Iterator[Tapes]:
    """Yield the tapes of the one world that is played meanwhile."""
    tapes = Tapes()

    def around(owner: Any, name: str, do: Callable[..., Any]) -> Any:
        real = getattr(owner, name)
        return mock.patch.object(owner, name, lambda *args, **kwargs: do(real, *args, **kwargs))

    def open_log(real: Any, machine: LogMachine, *args: Any, **kwargs: Any) -> None:
        real(machine, *args, **kwargs)
        tapes.opened(machine)

    def back_up(real: Any, machine: LogMachine) -> None:
        before = len(machine.backups)
        real(machine)
        if len(machine.backups) > before:
            tapes.copied(machine)

    def restore(real: Any, machine: LogMachine, which: int) -> None:
        tapes.restoring(machine, which)
        real(machine, which)

    def goes_back(real: Any, machine: LogMachine, *args: Any) -> None:
        tapes.went_back(machine)
        real(machine, *args)

    def note_damage(real: Any, log: Any, stored: Any, gap: Gap) -> None:
        tapes.damaged(log, (stored.stream, stored.instance), gap)
        real(log, stored, gap)

    def for_a_reader(real: Any, owner: Any, reader: Any, *args: Any, **kwargs: Any) -> Any:
        before = tapes.reader, tapes.places
        tapes.reader, tapes.places = reader, kwargs.get("places", ())
        try:
            return real(owner, reader, *args, **kwargs)
        finally:
            tapes.reader, tapes.places = before

    def ask(real: Any, hub: Any, backlog: Any, head: Any, asked: int, *args: Any) -> None:
        tapes.asks(hub._log, head.pair, asked, head.token)
        real(hub, backlog, head, asked, *args)

    def absent(real: Any, hub: Any, reader: Any, form: Any, pair: Pair, asked: int) -> Any:
        tapes.asks(hub._log, pair, asked, 0, absent=True)
        return real(hub, reader, form, pair, asked)

    with ExitStack() as stack:
        for owner, name, do in (
            (LogMachine, "open_log", open_log),
            (LogMachine, "back_up", back_up),
            (LogMachine, "restore", restore),
            (LogMachine, "_goes_back", goes_back),
            (StoredLog, "_note_damage", note_damage),
            (Hub, "subscribe", for_a_reader),
            (Hub, "resume", for_a_reader),
            (Hub, "_ask", ask),
            (Hub, "_absent", absent),
            (Hub, "_deliver", lambda real, hub, segment: tapes.deliver(hub, segment, real)),
            (Behind, "catch_up", for_a_reader),
        ):
            stack.enter_context(around(owner, name, do))
        yield tapes
