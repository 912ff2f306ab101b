"""What the tests of typing and presence stand on: a log that may be slow, EDUs that are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from tcprepl.errors import LogUnavailable
from tcprepl.streams.log import Appended
from tcprepl.streams.registry import Registry

SERVER = "here.example"
ROOM = "!room:here.example"
ALICE = "@alice:here.example"
BOB = "@bob:here.example"
ELSE = "elsewhere.example"
CARL = "@carl:elsewhere.example"

REGISTRY = Registry()


class WorkingClock(Clock):
    """A clock on which work takes time: a hundredth of a millisecond for each look at it.

    Attributes:
        calls_done: How many delayed calls there were.
        longest_s: For how long the longest of them held the reactor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls_done = 0
        self.longest_s = 0.0

    def seconds(self) -> float:
        """Return the time, and let a little pass."""
        self.rightNow += 0.00001
        return self.rightNow

    def callLater(  # Twisted's name
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        """Call later, and see how long that takes."""

        def timed() -> None:
            began = self.rightNow
            callable(*args, **kw)
            self.calls_done += 1
            self.longest_s = max(self.longest_s, self.rightNow - began)

        return super().callLater(delay, timed)


class Publications:
    """A publish port: gives tokens at once, or when told to, or refuses.

    Attributes:
        rows: (stream, token, row) of everything that was published, in order.
        slow: Whether answers wait for `answer`.
        refusing: Whether the log refuses.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.rows: list[tuple[str, int, Any]] = []
        self.slow = False
        self.refusing = False
        self._waiting: list[tuple[Deferred[Appended], Appended]] = []

    def __call__(
        self, stream: str, rows: Sequence[object], *, batch: bool = False
    ) -> Deferred[Appended]:
        if self.refusing:
            return fail(LogUnavailable("the disk is full"))
        first = self.position + 1
        for row in REGISTRY.encode_rows(stream, rows):
            self.position = first if batch else self.position + 1
            self.rows.append((stream, self.position, REGISTRY.decode_row(stream, row)))
        appended = Appended(stream, "master", first, self.position)
        if not self.slow:
            return succeed(appended)
        deferred: Deferred[Appended] = Deferred()
        self._waiting.append((deferred, appended))
        return deferred

    def answer(self) -> None:
        """Answer what waits; what that leads to waits again."""
        waiting, self._waiting = self._waiting, []
        for deferred, appended in waiting:
            deferred.callback(appended)

    def answer_all(self) -> None:
        """Answer until nothing waits."""
        while self._waiting:
            self.answer()

    def somebody_else_publishes(self, count: int = 1) -> None:
        """Take tokens, as another writer of the stream does."""
        self.position += count

    def typing(self, room_id: str | None = None) -> list[tuple[int, list[str]]]:
        """Return (token, users) of the typing rows of one room, or of all."""
        return [
            (token, row.user_ids)
            for stream, token, row in self.rows
            if stream == "typing" and room_id in (None, row.room_id)
        ]

    def presence(self, user_id: str) -> list[Any]:
        """Return the presence rows of a user."""
        return [
            row for stream, _, row in self.rows if stream == "presence" and row.user_id == user_id
        ]


class Edus:
    """A port for EDUs that keeps them."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[str], str, Mapping[str, Any], tuple[str, ...]]] = []

    def __call__(
        self,
        destinations: Collection[str],
        edu_type: str,
        content: Mapping[str, Any],
        key: Sequence[str],
    ) -> None:
        self.sent.append((sorted(destinations), edu_type, content, tuple(key)))

    def take_typing(self) -> list[bool]:
        """Return what the EDUs said since the last call, and forget them."""
        said = [content["typing"] for _, _, content, _ in self.sent]
        self.sent.clear()
        return said


def both_hosts(_: str) -> list[str]:
    """Every room has our server and the other one."""
    return [SERVER, ELSE]


def advance_to(clock: Clock, ms: int) -> None:
    """Let time pass to *ms*, exactly, running what comes due in between at its own time."""
    target = ms / 1000
    while True:
        calls = [call.getTime() for call in clock.getDelayedCalls()]
        if not calls or min(calls) > target:
            break
        clock.advance(max(min(calls) - clock.seconds(), 0))
        clock.rightNow = round(clock.rightNow, 3)
    clock.advance(target - clock.seconds())
    clock.rightNow = target
