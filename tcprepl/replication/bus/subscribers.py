"""Subscribers of the homeserver's channel: readers of the hub (protocol.md section 15).

Rows and positions come to them from the hub, as they come to everybody else: at the head the
bytes that all get, and from the log while a socket takes no more. So one that is slow costs
integers. What else is said on the channel is not in the log. It goes at once to all who are at
the head; for the others it waits in a ring that they share, which is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Final, cast

from tcprepl import metrics
from tcprepl.clocks import Reactor
from tcprepl.ids import Pair
from tcprepl.logger import get_logger
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.bus.delivered import Delivered
from tcprepl.replication.bus.replay import UNCOUNTED, Start, Unsaid, in_order
from tcprepl.replication.bus.replies import message_head, messages
from tcprepl.replication.relaying.intake import RelayIntake
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.readers import Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.transport import Outlet

log = get_logger(__name__)

#: Payloads, and bytes of them, that wait for subscribers who are not at the head.
MAX_RING: Final = 100_000
MAX_RING_BYTES: Final = 8 * 1_048_576
#: Payloads of the ring that are written to a subscriber in one piece.
_PIECE: Final = 1_000

_FORM: Final = WireForm.of(DIALECTS["redis"], words=False)
_AT_NOTHING: Final = b" 0 0"


class Pusher:
    """Turns lines of the hub into messages, once for all who subscribed in the same way.

    Tokens are said as the writers count: where the log had to go on counting over a restart
    of one (`RelayIntake.shifts`), lines are written anew. That of a pair which nobody has written
    is not said: whoever follows other writers of the stream would ask for what is not there.

    Args:
        head: What comes before each payload.
        intake: Knows how writers count.

    Attributes:
        users: How many have subscribed in this way.
        rows: How many rows the last chunk brought.
    """

    def __init__(self, head: bytes, intake: RelayIntake) -> None:
        self.head = head
        self.users = 0
        self.rows = 0
        self._intake = intake
        self._chunk = self._pushes = b""

    def of_chunk(self, chunk: bytes, announced: Container[bytes] = ()) -> bytes:
        """Return the messages of lines that end with LF; the last answer is kept.

        Those of *announced* are said even if they say nothing.
        """
        if chunk is not self._chunk:
            lines = chunk.split(b"\n")
            lines.pop()
            if _AT_NOTHING in chunk:
                lines = [x for x in lines if x in announced or not self._says_nothing(x)]
            if self._intake.shifts:
                lines = [said for line in lines if (said := self._as_written(line)) is not None]
            self._chunk, self._pushes = chunk, messages(self.head, lines)
            self.rows = sum([line.startswith(b"RDATA ") for line in lines])
        return self._pushes

    def size_of(self, line: bytes) -> int:
        """Return how many bytes the message of *line*, without its LF, has; 0 for none."""
        said = None if self._says_nothing(line) else self._as_written(line)
        return 0 if said is None else len(messages(self.head, (said,)))

    def _says_nothing(self, line: bytes) -> bool:
        """Return whether *line* is the position of a pair of which there has been nothing."""
        if not (line.endswith(_AT_NOTHING) and line.startswith(b"POSITION ")):
            return False
        stream, instance = line.split(b" ", 3)[1:3]
        return (stream.decode(), instance.decode()) not in self._intake.shifts

    def _as_written(self, line: bytes) -> bytes | None:
        """Return *line* with the tokens of its writer; None when it is not to be said."""
        word, stream, instance, token, rest = line.split(b" ", 4)
        pair = (stream.decode(), instance.decode())
        if pair not in self._intake.shifts:
            return line
        if word == b"POSITION":
            return self._as_position(pair, int(token), int(rest))
        if token == b"batch":
            return line
        theirs = self._intake.theirs(pair, int(token))
        if theirs is None:
            return None
        return b"%b %b %b %d %b" % (word, stream, instance, theirs, rest)

    def _as_position(self, pair: Pair, before: int, now: int) -> bytes | None:
        prev, token = self._intake.theirs(pair, before), self._intake.theirs(pair, now)
        if token is None:
            return None
        prev = token if prev is None or prev > token else prev
        return f"POSITION {pair[0]} {pair[1]} {prev} {token}".encode()


class PushOutlet:
    """The outlet of a connection, as the hub sees it: lines go in, messages come out.

    Attributes:
        rows: How many rows were written to it.
        unsaid: Streams of which it is not told before a row of them comes.
    """

    def __init__(self, outlet: Outlet, pusher: Pusher, delivered: Delivered | None) -> None:
        self.rows = 0
        self.unsaid: Unsaid | None = None
        self._outlet = outlet
        self._pusher = pusher
        self._delivered = delivered

    @property
    def busy(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._outlet.busy

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the socket."""
        return self._outlet.buffered_bytes

    def write(self, chunk: bytes) -> bool:
        """Push each line of *chunk*; return whether the socket takes more."""
        announced: Container[bytes] = ()
        if self.unsaid is not None:
            chunk, announced = self.unsaid.told(chunk)
            if not self.unsaid.streams:
                self.unsaid = None
        pushes = self._pusher.of_chunk(chunk, announced)
        if not pushes:
            return not self._outlet.busy
        self.rows += self._pusher.rows
        ready = self._outlet.write(pushes)
        if self._delivered is not None:
            self._delivered.note(chunk)
        return ready

    def abort(self) -> None:
        """End the connection at once."""
        self._outlet.abort()


class Subscriber:
    """One subscription to the channel, by its name or by a pattern.

    Attributes:
        reader: Its place in the hub.
        outlet: Where its bytes go.
        pusher: What its messages are like.
        pushes: Where the lines of the hub go that are for it.
        next: The number of the first payload beside the rows that it was not sent.
        missed: How many such payloads it missed since the ring was full.
        owed: Pairs whose position was said while it was behind: it is told where they stand
            when it has their rows, since a position that comes late takes rows for read.
        held: Whether it is given nothing yet, until `Subscribers.begin`.
    """

    __slots__ = ("held", "missed", "next", "outlet", "owed", "pusher", "pushes", "reader")

    def __init__(
        self,
        outlet: Outlet,
        pusher: Pusher,
        label: str,
        number: int,
        delivered: Delivered | None = None,
    ) -> None:
        self.outlet = outlet
        self.pusher = pusher
        self.held = False
        self.pushes = PushOutlet(outlet, pusher, delivered)
        self.reader = Reader(cast("Outlet", self.pushes), label)
        self.next = number
        self.missed = 0
        self.owed: set[Pair] = set()

    @property
    def rows(self) -> int:
        """How many rows were written to it."""
        return cast("PushOutlet", self.reader.outlet).rows

    @property
    def ready(self) -> bool:
        """Whether it has every row, and its socket takes more."""
        return self.reader.backlog is None and not self.held and not self.outlet.busy

    def leaves_unsaid(self, pair: Pair) -> bool:
        """Return whether it is not told of *pair* yet."""
        unsaid = self.pushes.unsaid
        return unsaid is not None and pair[0] in unsaid.streams


class Subscribers:
    """Everybody who listens on the channel.

    Args:
        reactor: For a turn to wait.
        hub: Where rows come from.
        intake: Where rows go.
        channel: The channel: the name of the homeserver.
        patterns: Which pairs they are told of.
    """

    def __init__(
        self,
        reactor: Reactor,
        hub: Hub,
        intake: RelayIntake,
        channel: bytes,
        patterns: Iterable[Pair],
    ) -> None:
        self.channel = channel
        self._reactor = reactor
        self._hub = hub
        self._intake = intake
        self._patterns = tuple(patterns)
        self._all: dict[Subscriber, None] = {}
        self._pushers: dict[bytes, Pusher] = {}
        #: What was said beside the rows and somebody was not sent; numbers end at `_said`.
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._said = 0
        self._keeps = False

    def __len__(self) -> int:
        return len(self._all)

    def add(
        self,
        outlet: Outlet,
        pattern: bytes | None,
        label: str,
        delivered: Delivered | None = None,
        *,
        others: int | None = None,
        hold: bool = False,
        proto: int = 2,
    ) -> Subscriber:
        """Let somebody listen from now on, and return the subscription.

        Args:
            outlet: Where its messages go.
            pattern: What it subscribed by; None: by the name of the channel.
            label: The name it goes by in logs.
            delivered: What is to know of the lines that are written to it.
            others: The number of the first line beside the rows that it is to be given; the next
                by default.
            hold: Give it nothing before `begin`.
            proto: The version of RESP that it speaks.
        """
        self._hub.flush()
        head = message_head(self.channel, pattern, proto)
        pusher = self._pushers.get(head)
        if pusher is None:
            pusher = self._pushers[head] = Pusher(head, self._intake)
        pusher.users += 1
        number = self._said if others is None else others
        subscriber = Subscriber(outlet, pusher, label, number, delivered)
        subscriber.held = True
        self._all[subscriber] = None
        if not hold:
            self.begin(subscriber, {})
        return subscriber

    def begin(
        self,
        subscriber: Subscriber,
        starts: Mapping[Pair, Start],
        unsaid: Unsaid | None = None,
    ) -> None:
        """Give *subscriber*, which is held, what comes from now on, and before that *starts*.

        Args:
            subscriber: The subscriber.
            starts: Where it goes on with some pairs: it is told that first, then their rows.
            unsaid: Of which streams it is not told that, before a row of them comes, or until
                `speak_up`.
        """
        self._hub.flush()
        reader = subscriber.reader
        for pair in self._patterns:
            self._hub.subscribe(reader, _FORM, pair, None, owed=False)
        subscriber.pushes.unsaid = unsaid
        self._tell(subscriber, starts)
        self._hub.resume(reader, {pair: start.after for pair, start in starts.items()})
        subscriber.held = False
        reader.on_head = self._later(subscriber)
        self._hub.serve(reader)

    def speak_up(self, subscriber: Subscriber, starts: Mapping[Pair, Start]) -> bool:
        """Tell *subscriber* what was unsaid, if it has all rows; return whether nothing is left."""
        self._hub.flush()
        if subscriber.pushes.unsaid is not None and subscriber.ready:
            subscriber.pushes.unsaid = None
            self._tell(subscriber, starts)
        return subscriber.pushes.unsaid is None

    def _tell(self, subscriber: Subscriber, starts: Mapping[Pair, Start]) -> None:
        """Tell where it begins with pairs."""
        wanted = subscriber.reader.subscription
        unsaid = subscriber.pushes.unsaid
        lines: list[bytes] = []
        for pair, start in in_order(starts):
            new = self._intake.theirs(pair, start.new)
            later = unsaid is not None and pair[0] in unsaid.streams
            if new is not None and start.told and wanted.wants(pair) and not later:
                prev = 0 if pair[0] == UNCOUNTED else self._intake.theirs(pair, start.prev)
                prev = new if prev is None or prev > new else prev
                lines.append(f"POSITION {pair[0]} {pair[1]} {prev} {new}".encode())
        if lines:
            subscriber.outlet.write(messages(subscriber.pusher.head, lines))

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a subscription."""
        del self._all[subscriber]
        self._hub.unsubscribe(subscriber.reader)
        subscriber.pusher.users -= 1
        if not subscriber.pusher.users:
            del self._pushers[subscriber.pusher.head]
        self._tidy()

    def _later(self, subscriber: Subscriber) -> Callable[[], object]:
        """Return what goes on with the ring once the last rows are written."""

        def later() -> Any:
            if subscriber.owed or subscriber.next < self._said:
                self._reactor.callLater(0, self._go_on, subscriber)

        return later

    def keep(self, keeps: bool) -> None:
        """Keep lines beside the rows for somebody who is away, or keep them no longer."""
        self._keeps = keeps
        self._tidy()

    def say(self, payload: bytes, *, keep: bool = True) -> None:
        """Tell everybody, behind the rows that the log has by now.

        Args:
            payload: The line.
            keep: Whether who is away is told when they come back; they need no question again
                that everybody has answered.
        """
        self._hub.flush()
        number = self._said
        here = [one for one in self._all if one.next == number and one.ready]
        numbered = len(here) < len(self._all) or (self._keeps and keep)
        pushes: dict[Pusher, bytes] = {}
        for subscriber in here:
            pusher = subscriber.pusher
            if pusher not in pushes:
                pushes[pusher] = messages(pusher.head, (payload,))
            subscriber.next += numbered
            subscriber.outlet.write(pushes[pusher])
        if not numbered:
            return
        self._said += 1
        self._ring.append(payload)
        self._ring_bytes += len(payload)
        while len(self._ring) > MAX_RING or self._ring_bytes > MAX_RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())

    def say_position(self, pair: Pair) -> None:
        """Tell everybody where *pair* stands, behind the rows that the log has by now."""
        self._hub.flush()
        pushes: dict[Pusher, bytes] = {}
        for subscriber in self._all:
            if subscriber.leaves_unsaid(pair):
                continue
            if subscriber.next != self._said or not subscriber.ready:
                subscriber.owed.add(pair)
                continue
            pusher = subscriber.pusher
            if pusher not in pushes:
                pushes[pusher] = messages(pusher.head, self._positions((pair,)))
            subscriber.outlet.write(pushes[pusher])

    def _positions(self, pairs: Iterable[Pair]) -> list[bytes]:
        lines: list[bytes] = []
        for pair in pairs:
            head = self._hub.heads.get(pair)
            token = 0 if head is None else self._intake.theirs(pair, head.token)
            lines.append(f"POSITION {pair[0]} {pair[1]} {token} {token}".encode())
        return lines

    def drained(self, subscriber: Subscriber) -> None:
        """Go on with *subscriber*: its socket has taken everything."""
        self._hub.drained(subscriber.reader)
        self._go_on(subscriber)

    def _go_on(self, subscriber: Subscriber) -> None:
        """Give it what waits in the ring, as far as its socket takes it."""
        if subscriber not in self._all:
            return
        if subscriber.owed and subscriber.ready:
            owed, subscriber.owed = subscriber.owed, set()
            self._hub.flush()
            owed = {pair for pair in owed if not subscriber.leaves_unsaid(pair)}
            subscriber.outlet.write(messages(subscriber.pusher.head, self._positions(owed)))
        while subscriber.ready and subscriber.next < self._said:
            first = self._said - len(self._ring)
            if subscriber.next < first:
                self._missed(subscriber, first)
            begin = subscriber.next - first
            piece = [self._ring[n] for n in range(begin, min(begin + _PIECE, len(self._ring)))]
            subscriber.next += len(piece)
            if piece:
                subscriber.outlet.write(messages(subscriber.pusher.head, piece))
        self._tidy()

    def _missed(self, subscriber: Subscriber, first: int) -> None:
        count = first - subscriber.next
        subscriber.next = first
        subscriber.missed += count
        metrics.DROPPED.labels("command", "subscriber_behind").inc(count)
        log.warning("bus.subscriber.missed", subscriber=subscriber.reader.label, payloads=count)

    def _tidy(self) -> None:
        """Forget what everybody has."""
        if self._ring and not self._keeps and all(one.next == self._said for one in self._all):
            self._ring.clear()
            self._ring_bytes = 0
