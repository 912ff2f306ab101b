"""Rows in over the line protocol: PUBLISH and PRODUCER of one connection (protocol.md 6.17, 10.4).

What a connection publishes is answered in the order of its questions, once the rows are as safe as
their stream promises. While much of it waits for the disk the connection is not read further, so
that a flood stays in the socket of who floods.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl import errors, limits, metrics
from tcprepl.clocks import Reactor
from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    InfoCommand,
    ProducerCommand,
    PublishBatchCommand,
    PublishCommand,
    Reason,
    RefusedCommand,
)
from tcprepl.protocol.display import printable
from tcprepl.protocol.events import PublishRun
from tcprepl.protocol.serializing import published_line, published_lines
from tcprepl.streams.gathering import Outcome
from tcprepl.streams.json_rows import rows_in
from tcprepl.streams.log import Appended, Log
from tcprepl.streams.producers import Produced, ProducerState

log = get_logger(__name__)

#: Characters of a reason.
_TEXT_CHARS: Final = 1_000
#: Bytes of rows that cost as much as a line.
_BYTES_PER_LINE: Final = 256
#: What an append costs, in lines.
_APPEND_LINES: Final = 4
#: Rows of a run that cost as much as a line.
_RUN_ROWS_PER_LINE: Final = 8


class PublisherPort(Protocol):
    """How rows get into the log (`tcprepl.streams.publisher.Publisher`)."""

    def publish_json(
        self,
        stream: StreamName,
        rows: Sequence[bytes | Raw],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        """Check and append rows that are JSON already."""
        ...

    def publish_each(
        self, stream: StreamName, rows: bytes, count: int, produced: Produced | None = None
    ) -> Deferred[list[Outcome]] | None:
        """Check and append rows, each ended by LF, as if each came in a call of its own.

        Returns None if they really have to.
        """
        ...


class Door:
    """Where the rows of all connections of a server go in.

    Args:
        reactor: For the next turn.
        stream_log: Knows the producers.
        publisher: Takes the rows; None takes none.

    Attributes:
        waiting_bytes: Bytes of rows that are not answered yet.
        unpublished: Returns who will not get rows of a stream and an instance, and why, or None.
    """

    def __init__(self, reactor: Reactor, stream_log: Log, publisher: PublisherPort | None) -> None:
        self.unpublished: Callable[[StreamName, InstanceName], str | None] | None = None
        self.reactor = reactor
        self.publisher = publisher
        self.claim = stream_log.claim
        self.waiting_bytes = 0
        #: Who has answers to be told when this turn has ended.
        self._answered: dict[Publishing, None] = {}

    def tell_later(self, one: Publishing) -> None:
        """Have *one* tell its answers when this turn has ended."""
        if not self._answered:
            self.reactor.callLater(0, self._tell)
        self._answered[one] = None

    def _tell(self) -> None:
        answered, self._answered = self._answered, {}
        for one in answered:
            try:
                one.tell_next()
            except Exception:  # the others are not to wait for it
                log.exception("replication.publish.untold")


class _Asked:
    """Questions that are answered together, and the answers once there are any.

    Attributes:
        size_bytes: Bytes of their rows.
        lines: How many they are.
        answers: Commands, or whole lines.
    """

    __slots__ = ("answers", "lines", "size_bytes")

    def __init__(self, size_bytes: int, lines: int) -> None:
        self.size_bytes = size_bytes
        self.lines = lines
        self.answers: Sequence[Command | bytes] = ()


class Publishing:
    """What one connection publishes.

    Invariants: each question is answered once, in order, while the connection lasts; what was taken
    before it ended is appended all the same. Once it has claimed a name, nothing is appended but
    under a claim that was granted.

    Args:
        door: Where the rows go.
        tell: Sends answers, and reads on if there is room.
    """

    __slots__ = (
        "_asked",
        "_claim",
        "_claiming",
        "_door",
        "_over",
        "_producer",
        "_tell",
        "_unclaimed",
        "_waiting_bytes",
        "_waiting_lines",
        "_warned",
    )

    def __init__(self, door: Door, tell: Callable[[list[Command | bytes]], None]) -> None:
        self._door = door
        self._tell = tell
        self._asked: deque[_Asked] = deque()
        self._waiting_bytes = 0
        self._waiting_lines = 0
        self._producer: tuple[ProducerName, int] | None = None
        self._claiming = False
        #: Makes the claim that waits for what was asked before it.
        self._claim: Callable[[], object] | None = None
        #: Whether the last claim was refused.
        self._unclaimed = False
        self._over = False
        self._warned: set[Pair] = set()

    @property
    def waiting(self) -> bool:
        """Whether something is not answered yet."""
        return bool(self._asked)

    @property
    def full(self) -> bool:
        """Whether so much waits for its answer that nothing more is to be read."""
        return (
            self._claiming
            or self._waiting_lines >= limits.MAX_UNANSWERED_APPENDS
            or self._waiting_bytes >= limits.MAX_UNANSWERED_BYTES
            or (bool(self._asked) and self._door.waiting_bytes >= limits.MAX_ALL_UNANSWERED_BYTES)
        )

    def close(self) -> None:
        """Answer nothing any more: the connection is over."""
        self._over = True

    # -- appending -----------------------------------------------------------------------------

    def publish(self, command: PublishCommand) -> int:
        """Append what *command* says; return what that costs, in lines."""
        size = len(command.rows)
        asked = self._ask(size)
        appending = self._append(command)
        if isinstance(appending, RefusedCommand):
            self._answer(asked, appending)
        else:
            number = command.number

            def taken(answer: Appended) -> None:
                self._answer(
                    asked,
                    *self._warning(answer.stream, answer.instance),
                    published_line(
                        answer.stream, answer.instance, answer.first, answer.last, number
                    ),
                )

            def refused(failure: Failure) -> None:
                self._answer(asked, refusal(failure, command.stream, number))

            _ = appending.addCallbacks(taken, refused)
        return _APPEND_LINES + size // _BYTES_PER_LINE

    def publish_run(self, run: PublishRun) -> int:
        """Append the rows of *run*, as `publish` does each; return what that costs, in lines."""
        stream, numbers, rows = run
        appending = self._append_run(run)
        if appending is None:
            return sum(map(self.publish, run.commands()))
        asked = self._ask(len(rows), len(numbers))

        def settled(outcomes: list[Outcome]) -> None:
            answers: list[Command | bytes] = []
            at = 0
            for count, outcome in outcomes:
                some = numbers[at : at + count]
                at += count
                if isinstance(outcome, Failure):
                    answers += [refusal(outcome, stream, int(number)) for number in some]
                else:
                    answers += self._warning(stream, outcome.instance)
                    answers.append(published_lines(stream, outcome.instance, outcome.first, some))
            self._answer(asked, *answers)

        _ = appending.addCallback(settled)
        return _APPEND_LINES + len(numbers) // _RUN_ROWS_PER_LINE

    def _append_run(self, run: PublishRun) -> Deferred[list[Outcome]] | None:
        """Append rows together; None if each has to be looked at."""
        publisher = self._door.publisher
        if publisher is None or self._unclaimed:
            return None
        stream, numbers, rows = run
        produced = None
        if self._producer is not None:
            produced = Produced(*self._producer, int(numbers[0]), len(numbers))
            if list(map(int, numbers)) != list(range(produced.sequence, produced.last + 1)):
                return None
        return publisher.publish_each(stream, rows, len(numbers), produced)

    def _warning(self, stream: StreamName, instance: InstanceName) -> list[Command | bytes]:
        """Return what is to be said, once, to who publishes to such a pair."""
        if self._door.unpublished is None or (stream, instance) in self._warned:
            return []
        warning = self._door.unpublished(stream, instance)
        if warning is None:
            return []
        self._warned.add((stream, instance))
        return [InfoCommand(f"{stream} of {instance}: {warning}")]

    def _append(self, command: PublishCommand) -> Deferred[Appended] | RefusedCommand:
        stream, number = command.stream, command.number
        publisher = self._door.publisher
        if publisher is None:
            return refused(stream, Reason.READ_ONLY, 0, _READ_ONLY, number)
        if self._unclaimed:
            text = "the PRODUCER before it was refused: nothing is taken until one is granted"
            return refused(stream, Reason.UNAVAILABLE, 0, text, number)
        produced = None
        if self._producer is not None:
            if number is None:
                text = f"producer {self._producer[0]} numbers its appends: PUBLISH {stream} #1 ..."
                return refused(stream, Reason.NUMBER, 0, text)
            produced = Produced(*self._producer, number)
        rows: Sequence[bytes | Raw] = [command.rows]
        if type(command) is not PublishCommand:
            try:
                rows = rows_in(command.rows)
            except ValueError as error:
                text = f"expected a JSON array of rows: {error}"
                return refused(stream, Reason.ROW, 0, text, number)
            if not 0 < len(rows) <= limits.MAX_INGEST_ROWS:
                text = f"{len(rows)} rows: expected 1 to {limits.MAX_INGEST_ROWS}"
                return refused(stream, Reason.ROW, 0, text, number)
        return publisher.publish_json(
            stream,
            rows,
            batch=isinstance(command, PublishBatchCommand),
            instance=command.instance,
            produced=produced,
        )

    # -- claiming a name -----------------------------------------------------------------------

    def claim(self, command: ProducerCommand, owner: str = "") -> int:
        """Take the name of a producer; nothing more is read until that is answered.

        It is taken once all before it is answered: what waits for the disk is not to be fenced by
        its own sender.

        Args:
            command: The claim.
            owner: Who claims: the names of each are their own, lest one fences another's.
        """
        asked = self._ask(0)
        # No name of the wire has a space.
        name = f"{command.name} (of {owner})" if owner else command.name
        if self._door.publisher is None:
            self._answer(asked, refused(command.name, Reason.READ_ONLY, 0, _READ_ONLY))
            return _APPEND_LINES

        def claimed(state: ProducerState) -> None:
            self._claiming = False
            self._unclaimed = False
            self._producer = name, state.epoch
            self._answer(asked, ProducerCommand(command.name, state.epoch, state.sequence))

        def failed(failure: Failure) -> None:
            self._claiming = False
            self._unclaimed = True
            self._answer(asked, refusal(failure, command.name, None))

        self._claiming = True
        self._claim = lambda: self._door.claim(name, command.epoch).addCallbacks(claimed, failed)
        self._claim_next()
        return _APPEND_LINES

    def _claim_next(self) -> None:
        """Make the claim that waits, if it is next to be answered."""
        if self._claim is not None and len(self._asked) == 1:
            claim, self._claim = self._claim, None
            _ = claim()

    def unclaim(self) -> int:
        """Take nothing after a claim that was no command; return what that costs, in lines."""
        self._unclaimed = True
        return 1

    def deny(self, command: PublishCommand | ProducerCommand, why: str) -> int:
        """Refuse what is not allowed, in its turn; return what that costs, in lines."""
        if isinstance(command, ProducerCommand):
            self._unclaimed = True
            answer = refused(command.name, Reason.DENIED, 0, why)
        else:
            answer = refused(command.stream, Reason.DENIED, 0, why, command.number)
        self._answer(self._ask(0), answer)
        return _APPEND_LINES

    # -- answering -----------------------------------------------------------------------------

    def _ask(self, size_bytes: int, lines: int = 1) -> _Asked:
        asked = _Asked(size_bytes, lines)
        self._asked.append(asked)
        self._waiting_lines += lines
        self._waiting_bytes += size_bytes
        self._door.waiting_bytes += size_bytes
        return asked

    def _answer(self, asked: _Asked, *answers: Command | bytes) -> None:
        """Note answers; what is next in order goes out together, when the turn ends."""
        asked.answers = answers
        self._waiting_bytes -= asked.size_bytes
        self._door.waiting_bytes -= asked.size_bytes
        if not self._over:
            self._door.tell_later(self)

    def tell_next(self) -> None:
        """Tell the answers that are next in order, unless the connection is over."""
        if self._over:
            return
        answers: list[Command | bytes] = []
        while self._asked and self._asked[0].answers:
            asked = self._asked.popleft()
            self._waiting_lines -= asked.lines
            answers += asked.answers
        self._tell(answers)
        self._claim_next()


_READ_ONLY: Final = "rows are not published here"


def refused(
    subject: str, reason: Reason, value: int, text: str, number: int | None = None
) -> RefusedCommand:
    """Return a refusal that fits on a line."""
    metrics.DROPPED.labels("append", reason.value).inc()
    return RefusedCommand(subject, reason.value, value, printable(text)[:_TEXT_CHARS], number)


def refusal(failure: Failure, subject: str, number: int | None) -> RefusedCommand:
    """Return what is said of a failure."""
    error = failure.value
    reason, value = Reason.UNAVAILABLE, 0
    match error:
        case errors.BadRow():
            reason, value = Reason.ROW, error.index or 0
        case errors.UnknownStream():
            reason = Reason.STREAM
        case errors.EpochFenced() | errors.EpochTooHigh():
            reason, value = Reason.FENCED, error.current
        case errors.SequenceHole():
            reason, value = Reason.HOLE, error.expected
        case errors.SequenceTooOld():
            reason, value = Reason.OLD, error.expected
        case errors.TooManyProducers():
            reason, value = Reason.PRODUCERS, error.limit
        case errors.TcpreplError():
            pass
        case _:
            log.error("replication.publish.failed", subject=subject, exc_info=failure.value)
            return refused(subject, reason, 0, "something is wrong with the server", number)
    return refused(subject, reason, value, str(error), number)
