"""What happens to a log, and what its readers are answered, as tapes that the model reads.

A tape is what one reader of one pair goes through, in the words of the model of how readers
resume (`tests/model/resume.pml`), which says whether all of that is allowed: the rows that came,
retention, starts and kills of the server, copies that were made and put back, damage that was
found, and each answer, at the moment at which it was given, of a cursor or at the head. What a
reader was answered and did not keep (its connection was cut, its handler failed, an older copy of
it was put back) it forgets when it comes again and says where it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tcprepl.limits import MAX_SAID_INCARNATIONS
from tests.model import spin
from tests.model.spin import NUMBERS, Step

#: What cursors answer, and what happens, by their numbers.
ANSWERS = {NUMBERS[name]: name for name in ("PAGE", "GAP", "FORKED", "AHEAD", "AT_HEAD")}
STEPS = {
    number: name
    for name, number in NUMBERS.items()
    if name not in ("TOKENS", "STARTS", "COPIES", "KEPT", *ANSWERS.values())
}
#: What moves a position.
MOVES = {NUMBERS[name] for name in ("APPEND", "MOVE", "LOSE")}


class Event:
    """A step of the log (of no reader), or of one of its readers."""

    def __init__(self, name: str, one: int = 0, other: int = 0, reader: str = "") -> None:
        self.step: Step = NUMBERS[name], one, other
        self.reader = reader


class State(NamedTuple):
    """What a reader had at some moment.

    Attributes:
        at: Its token.
        entered: In which incarnations it got what it has, by number, and after which tokens.
        event: After what.
    """

    at: int
    entered: tuple[tuple[int, int], ...]
    event: Event

    def places(self) -> list[tuple[int, int]]:
        """Return what it says of itself, the newest first."""
        token, found = self.at, []
        for number, at in reversed(self.entered):
            found.append((token, number))
            token = min(token, at)
        return found

    def moved(self, number: int, token: int, event: Event) -> State:
        """Return what it has once it has got to *token* in an incarnation."""
        at = min(self.at, token)
        entered = list(self.entered)
        if not (entered and entered[-1][0] == number and entered[-1][1] <= at):
            while entered and entered[-1][1] >= at:
                entered.pop()
            entered = [*entered, (number, at)][-MAX_SAID_INCARNATIONS:]
        return State(token, tuple(entered), event)


class Follower:
    """A reader of one pair, over as many connections as it takes.

    Attributes:
        states: What it had after each answer.
        kept: Numbers of those that it has come back to.
        session: The reader of the hub that is its connection now.
    """

    def __init__(self, first: Event) -> None:
        self.states = [State(0, (), first)]
        self.kept: dict[Event, int] = {}
        self.session: Any = None

    def keep(self, state: State) -> int:
        """Return the number of the copy of a state."""
        return self.kept.setdefault(state.event, len(self.kept))


class PairTape:
    """What happens to one pair of a log.

    Attributes:
        events: All of it, in order.
        position: Where the pair is.
        counts: What was noted, and what could not be.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self.events: list[Event] = []
        self.position = self.floor = self.starts = 0
        self.up = False
        self.followers: dict[str, Follower] = {}
        self.copies: list[tuple[int, int]] = []
        self.counts = counts

    def note(self, name: str, one: int = 0, other: int = 0, reader: str = "") -> Event:
        """Put a step on the tape."""
        self.events.append(Event(name, one, other, reader))
        return self.events[-1]

    # -- the log -----------------------------------------------------------------------

    def move(self, position: int, name: str = "APPEND") -> None:
        """The position has moved; a copy may have been made on the way, before anybody heard."""
        for upto in sorted({min(at, position) for at, _ in self.copies} | {position}):
            if upto > self.position:
                self.note(name, 0, upto - self.position)
                self.position = upto
            for copy in [copy for copy in self.copies if copy[0] <= self.position]:
                self.copies.remove(copy)
                self.note("COPY", copy[1])

    def raise_floor(self, floor: int) -> None:
        """Retention has taken rows."""
        if floor > self.floor:
            self.note("TRIM", 0, floor)
            self.floor = floor

    def end(self, position: int = 0, floor: int = 0) -> None:
        """The server is gone; it had come to *position*, heard of or not."""
        if self.up:
            self.move(max([position, *(at for at, _ in self.copies)]))
            self.raise_floor(floor)
            self.note("STOP")
        self.up = False

    def begin(self, position: int, floor: int) -> None:
        """The server has opened the log."""
        self.end(position, floor)
        self.note("START")
        self.note("HELD", position, floor)
        self.up = True
        self.starts += 1
        self.position, self.floor = position, floor

    # -- readers -----------------------------------------------------------------------

    def connect(self, name: str, session: Any, asked: int, said: list[tuple[int, int]]) -> None:
        """A reader says where it is: as after its last answer, or one before."""
        follower = self.followers.get(name)
        if follower is None:
            follower = self.followers[name] = Follower(self.note("CUT", reader=name))
        follower.session = session
        states = [s for s in follower.states if s.at == asked]
        state = next((s for s in reversed(states) if s.places() == said), None)
        # whoever says what it cannot have: the model will not have it, either
        state = state or self._within(follower, asked, said) or self._before(follower, asked, said)
        state = state or [*follower.states, *states][-1]
        self.note("CUT", reader=name)
        if state is not follower.states[-1]:
            self.note("BACK", follower.keep(state), reader=name)
            follower.states.append(state)
            self.counts["times that a reader came back to what it had before"] += 1
        self.note("CONNECT", reader=name)
        for token, number in said:
            self.note("SAYS", number, token, reader=name)
        self.note("SAID", len(said), asked, reader=name)

    def heard(self, name: str, session: Any) -> None:
        """A reader at the head is told that it is."""
        follower = self.followers.get(name)
        if follower is not None and follower.session is session:
            event = self.note("HEARD", reader=name)
            state = follower.states[-1]
            follower.states.append(state.moved(self.starts, state.at, event))

    def meet(self, name: str, session: Any) -> None:
        """A reader has asked for a pair that nobody knew then, and hears of it now."""
        follower = self.followers.get(name)
        if follower is None:
            follower = self.followers[name] = Follower(self.note("CUT", reader=name))
        if follower.states[-1].at == 0 and follower.session is not session:
            follower.session = session
            self.note("CUT", reader=name)
            self.note("CONNECT", reader=name)

    def _within(self, follower: Follower, asked: int, said: list[tuple[int, int]]) -> State | None:
        """Return what it had in the middle of a page, of which it has kept a part."""
        for index in range(len(follower.states) - 1, 0, -1):
            before, after = follower.states[index - 1 : index + 1]
            page = after.event.step[:2] == (NUMBERS["ASK"], NUMBERS["PAGE"])
            if page and after.event.step[2] == after.at and before.at < asked < after.at:
                event = Event("ASK", NUMBERS["PAGE"], asked, after.event.reader)
                state = before.moved(after.entered[-1][0], asked, event)
                if state.places() == said:
                    self.events.insert(self.events.index(after.event), event)
                    follower.states.insert(index, state)
                    return state
        return None

    def _before(self, follower: Follower, asked: int, said: list[tuple[int, int]]) -> State | None:
        """Return what it had before the first rows of a connection, when it was told where it is.

        The model looks at it once it has answered, so that is put behind the answer.
        """
        for index in range(len(follower.states) - 1, 0, -1):
            before, after = follower.states[index - 1 : index + 1]
            if before.at == asked and after.event.step[0] == NUMBERS["ASK"]:
                event = Event("HEARD", reader=after.event.reader)
                state = before.moved(after.entered[-1][0], asked, event)
                if state.places() == said:
                    back = [
                        Event("BACK", follower.keep(one), 0, event.reader)
                        for one in (before, after)
                    ]
                    behind = self.events.index(after.event) + 1
                    self.events[behind:behind] = [back[0], event, back[1]]
                    follower.states.insert(index, state)
                    return state
        return None

    def answer(self, name: str, session: Any, kind: str, token: int) -> None:
        """A reader was answered."""
        follower = self.followers.get(name)
        if follower is None or follower.session is not session:
            self.counts["answers on connections that their readers had left"] += 1
            return
        event = self.note("ASK", NUMBERS[kind], token, name)
        self.counts[f"answers: {kind}"] += 1
        if kind != "AT_HEAD":
            follower.states.append(follower.states[-1].moved(self.starts, token, event))

    def at(self, name: str, session: Any) -> int | None:
        """Return where a reader is on *session*; None if that is not known."""
        follower = self.followers.get(name)
        if follower is None or follower.session is not session:
            return None
        return follower.states[-1].at

    # -- as the model reads it -----------------------------------------------------------

    def steps(self, name: str) -> list[Step]:
        """Return the tape of one reader."""
        kept = self.followers[name].kept
        steps: list[Step] = []
        for event in self.events:
            if event.reader in ("", name):
                steps.append(event.step)
                if event in kept:
                    steps.append((NUMBERS["KEEP"], kept[event], 0))
        return ranked(gathered(steps))


def gathered(steps: Sequence[Step]) -> list[Step]:
    """Return *steps* with the rows that come, and those that go, while nobody looks, as one."""
    append, trim = NUMBERS["APPEND"], NUMBERS["TRIM"]
    found: list[Step] = []
    rows = floor = 0
    for step in [*steps, (0, 0, 0)]:
        if step[0] == append:
            rows += step[2]
        elif step[0] == trim:
            floor = step[2]
        else:
            found += [(append, 0, rows)] if rows else []
            found += [(trim, 0, floor)] if floor else []
            found += [step] if step[0] else []
            rows = floor = 0
    return found


#: Which of a step's numbers are tokens.
TOKENS = {
    NUMBERS[name]: which
    for name, which in {
        "ASK": (2,),
        "TRIM": (2,),
        "DAMAGE": (1, 2),
        "HELD": (1, 2),
        "SAYS": (2,),
        "SAID": (2,),
    }.items()
}


def ranked(steps: Sequence[Step]) -> list[Step]:
    """Return *steps* with small tokens: those that matter, in their order."""
    position, copies = 0, {}
    tokens, moves = {0}, []
    for step in steps:
        before = position
        if step[0] in MOVES:
            position += step[2]
            moves.append((before, position))
        elif step[0] == NUMBERS["COPY"]:
            copies[step[1]] = position
        elif step[0] == NUMBERS["RESTORE"]:
            position = copies[step[1]]
        elif step[0] == NUMBERS["AWAY"]:
            position = 0
        tokens.add(position)
        tokens.update(step[which] for which in TOKENS.get(step[0], ()))
    order = sorted(tokens)
    found: list[Step] = []
    for step in steps:
        numbers = list(step)
        for which in TOKENS.get(step[0], ()):
            numbers[which] = bisect_left(order, step[which])
        if step[0] in MOVES:
            before, after = moves.pop(0)
            numbers[2] = bisect_left(order, after) - bisect_left(order, before)
        found.append((numbers[0], numbers[1], numbers[2]))
    return found


def joined(tapes: Iterable[Sequence[Step]]) -> list[Step]:
    """Return *tapes* as one, one after the other."""
    found: list[Step] = []
    for tape in tapes:
        found += [(NUMBERS["AGAIN"], 0, 0), *tape]
    return found


def words(step: Step) -> str:
    """Return a step in the words of the model."""
    op, one, other = step
    return f"{STEPS[op]} {ANSWERS[one] if STEPS[op] == 'ASK' else one} {other}"


def refused(tape: Sequence[Step]) -> str:
    """Return what the model has against a tape, or several that are joined; "" if nothing."""
    position = tokens = starts = most = 0
    for op, *numbers in tape:
        if op == NUMBERS["AGAIN"]:
            position = starts = 0
        starts += op == NUMBERS["START"]
        position += numbers[1] if op in MOVES else 0
        most = max(most, starts)
        tokens = max(tokens, position, *(numbers[which - 1] for which in TOKENS.get(op, ())))
    copies, kept = (
        max((one for op, one, _ in tape if op == NUMBERS[name]), default=0)
        for name in ("COPY", "KEEP")
    )
    return spin.read_tape(tape, tokens + 1, most, copies + 1, MAX_SAID_INCARNATIONS, kept)
