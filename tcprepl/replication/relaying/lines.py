"""What is said on a channel of Redis, read for a log (protocol.md section 15.4).

Redis keeps nothing, and says nothing when it loses something. So what was missed is found by
comparing positions, for each (stream, instance) and each connection anew: until something
was heard of a pair on *this* connection, a row of it proves nothing but the writer's position,
since rows before it, of its own batch even, may have passed while we were away.

Each pair has a `Delivery` of its own. One that waits for a page over HTTP holds up no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import lt
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.clocks import Reactor
from tcprepl.errors import LostRow, ProtocolError
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.batches import BatchAssembler
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived, in_batches
from tcprepl.protocol.parsing import parse_line, word_of
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.following.delivery import Delivery
from tcprepl.replication.following.descending import DESCENDING
from tcprepl.replication.relaying.intake import (
    IN_MEMORY,
    LogPositions,
    RelayCatchUp,
    RelayIntake,
)
from tcprepl.replication.relaying.payloads import are_json, are_lines, as_line
from tcprepl.streams.json_rows import is_json
from tcprepl.streams.registry import Registry

log = get_logger(__name__)

#: Batches that may wait for pages over HTTP before no more is read.
MAX_WAITING: Final = 100_000

#: Tokens that are asked for, or told as a gap, of a pair that was first written while nobody
#: listened. One that is further on was written before: by a Synapse that was down when we began.
MAX_UNMET_TOKENS: Final = 10_000

#: The instances of Synapse that write this stream, nearly all of them, share one sequence: one
#: that has written nothing says where the others are.
SHARED_SEQUENCE: Final = "caches"

#: After how long a pair is followed again when something unexpected has ended that.
AGAIN_S: Final = 1.0

#: Bad lines of a connection that are logged; of those behind them only every thousandth is.
TOLD_BAD_LINES: Final = 100

_REDIS: Final = DIALECTS["redis"]
_RDATA: Final = b"RDATA "
_POSITION: Final = b"POSITION "


class Follower:
    """What follows one (stream, instance); the `Link` of its delivery.

    Attributes:
        heard_by: The connection on which something of the pair was heard last.
        top: The newest token heard on it.
    """

    def __init__(self, followers: Followers, pair: Pair) -> None:
        self.heard_by: object = None
        self.top = 0
        self.pair = pair
        self._followers = followers
        self._delays: set[Deferred[None]] = set()
        self.delivery = followers.make_delivery(self)

    def pause(self) -> None:
        """Note that what comes now has to wait."""
        self._followers.blocked.add(self)

    def resume(self) -> None:
        """Note that nothing waits any longer."""
        self._followers.blocked.discard(self)
        self._followers.unblocked()

    def fail(self, text: str) -> None:
        """Begin anew: all up to the next line of the pair is fetched, or told as missing."""
        log.error("redis.delivery.broken", pair=self.pair, reason=text)
        self.heard_by = None
        self.delivery.begin(_REDIS)

    def give_up(self, failure: Failure) -> None:
        """Begin anew after a while: what does it every time must not fill the log."""
        log.error("redis.delivery.failed", pair=self.pair, error=failure.getErrorMessage())
        self.call_later(AGAIN_S, self._again)

    def _again(self) -> None:
        if self.delivery.running:
            self.delivery.start()
            self.fail("it begins anew")

    def call_later(self, seconds: float, function: Callable[[], None]) -> IDelayedCall:
        """Call *function* after a while."""
        call: IDelayedCall = self._followers.reactor.callLater(seconds, function)
        return call

    async def wait(self, seconds: float) -> None:
        """Wait; stopping ends it early."""
        delay: Deferred[None] = deferLater(self._followers.reactor, seconds)
        self._delays.add(delay)
        try:
            await delay
        except CancelledError:
            if self.delivery.running:
                raise
        finally:
            self._delays.discard(delay)

    async def stop(self) -> None:
        """Let what runs end, and begin nothing more."""
        self.delivery.stop()
        for delay in tuple(self._delays):
            delay.cancel()
        await self.delivery.end()


class _PositionOf(LogPositions):
    """The position store of what follows one pair: the log, as that of a relay is."""

    def __init__(self, intake: RelayIntake, pair: Pair) -> None:
        super().__init__(intake)
        self._pair = pair

    def load(self) -> dict[Pair, Token]:
        """Return what the log holds of the pair, in the writer's tokens."""
        known = self._intake.known(self._pair)
        return {} if known is None else {self._pair: known}


class Followers:
    """What follows each (stream, instance) of a channel, whoever says it, into a `RelayIntake`.

    Args:
        reactor: The reactor.
        intake: Where rows go.
        registry: The streams.
        catch_up: Where missed rows are fetched.
        on_free: Called when less waits than may; whoever stopped at `full` may go on.
        on_position: Called with each position; that of the intake by default.
    """

    def __init__(
        self,
        reactor: Reactor,
        intake: RelayIntake,
        registry: Registry,
        catch_up: CatchUp | None,
        on_free: Callable[[], object],
        on_position: Callable[[StreamName, InstanceName, Token], object] | None = None,
    ) -> None:
        self.reactor = reactor
        self.intake = intake
        self.registry = registry
        self.blocked: set[Follower] = set()
        self.fetches = catch_up is not None
        self._catch_up = None if catch_up is None else RelayCatchUp(intake, catch_up)
        self._on_free = on_free
        self._on_position = on_position or intake.position
        self._by_pair: dict[Pair, Follower] = {}
        self._rdata_source: metrics.Source | None = None

    def start(self) -> None:
        """Count what is received."""
        self._rdata_source = metrics.INBOUND_RDATA.add_source(self._received)

    async def stop(self) -> None:
        """Let what is under way end."""
        for follower in tuple(self._by_pair.values()):
            await follower.stop()
        if self._rdata_source is not None:
            metrics.INBOUND_RDATA.remove_source(self._rdata_source)

    def _received(self) -> list[tuple[tuple[str], float]]:
        total: Counter[str] = Counter()
        for follower in self._by_pair.values():
            total.update(follower.delivery.received_rows)
        return [((stream,), float(count)) for stream, count in total.items()]

    def known(self, pair: Pair) -> Follower | None:
        """Return what follows *pair*, if something of it was heard."""
        return self._by_pair.get(pair)

    def of(self, pair: Pair) -> Follower:
        """Return what follows *pair*."""
        found = self._by_pair.get(pair)
        if found is None:
            found = self._by_pair[pair] = Follower(self, pair)
        return found

    def make_delivery(self, follower: Follower) -> Delivery:
        """Return what delivers the rows of one pair, from where the log is."""
        delivery = Delivery(
            follower,
            self.intake.rows,
            _PositionOf(self.intake, follower.pair),
            self.registry,
            streams=None,
            since="now",
            on_reset=self.intake.reset,
            on_position=self._on_position,
            on_command=None,
            catch_up=self._catch_up,
            max_attempts=None,
            passed_over=self.intake.passed_over,
            on_run=self.intake.run,
        )
        delivery.start()
        delivery.begin(_REDIS)
        return delivery

    @property
    def full(self) -> bool:
        """Whether so much waits that no more is to be read."""
        return bool(self.blocked) and self._waiting() > MAX_WAITING

    def _waiting(self) -> int:
        return sum(follower.delivery.waiting for follower in self.blocked)

    def unblocked(self) -> None:
        """Read on, when no more waits than may."""
        if self._waiting() <= MAX_WAITING // 2:
            self._on_free()


class LineReader:
    """Reads what one connection brings of a channel.

    Args:
        followers: Where rows and positions go.
        on_other: Called with each line that is neither.
        was_away: Whether we had listened before, and then for a while not.

    Attributes:
        bad_lines: Lines that could not be read.
    """

    def __init__(
        self,
        followers: Followers,
        on_other: Callable[[bytes], object],
        *,
        was_away: bool = False,
    ) -> None:
        self.followers = followers
        self.intake = followers.intake
        self.bad_lines = 0
        self._on_other = on_other
        self._assembler = BatchAssembler(_REDIS, mixes=True)
        self._passing: set[bytes] = set()
        #: Where each stream was, as far as we had heard, when this connection began.
        self._newest = self.intake.newest()
        self._was_away = was_away

    @property
    def held_rows(self) -> int:
        """Rows of batches of which the rest has not come."""
        return self._assembler.held_rows

    def take(self, payloads: list[bytes]) -> None:
        """Work through what one read brought, in order."""
        events: list[Any] = []
        plain = len(payloads) > 1 and are_lines(payloads)
        if plain and self._assembler.read_mixed(payloads, 0, events):
            self._deliver(events)  # rows of pairs that take turns, as nearly always
            return
        if plain and (read := self._assembler.read_runs(payloads, 0, events)):
            payloads = payloads[read:]  # nearly always nothing
        rows: list[bytes] = []
        passing = self._passing
        for payload in payloads:
            line = as_line(payload)
            if line is None:
                self.bad(payload, "not UTF-8")
            elif line.startswith(_RDATA):
                stream = line[6 : line.find(b" ", 6)]
                if stream not in passing:
                    self._let_pass(stream.decode(), events)
                rows.append(line)
            else:
                self._read_rows(rows, events)
                rows = []
                if line.startswith(_POSITION):
                    self._read_position(line, events)
                else:
                    self._other(line, events)
        self._read_rows(rows, events)
        self._deliver(events)

    def _let_pass(self, stream: StreamName, events: list[Any]) -> None:
        """Have rows of *stream* read: what they prove is judged for each pair, later."""
        self._passing.add(stream.encode())
        self._position(PositionCommand(stream, "", None, 0), events)

    def _position(self, command: PositionCommand, events: list[Any]) -> bool:
        try:
            self._assembler.position(command, events, 0)
        except LostRow as error:
            self.bad(b"POSITION", str(error))
            return False
        return True

    def _read_rows(self, rows: list[bytes], events: list[Any]) -> None:
        """Put RDATA lines together to batches; a line that cannot be read is left out."""
        start = 0
        while start < len(rows):
            try:
                self._assembler.read(rows, start, 0, events)
            except LostRow as error:
                start = (error.line_number or 0) + 1
                self.bad(_RDATA, str(error))
            else:
                return

    def _read_position(self, line: bytes, events: list[Any]) -> None:
        try:
            command = parse_line(line, _REDIS)
        except ProtocolError as error:
            self.bad(line, str(error))
            return
        assert isinstance(command, PositionCommand)
        self._passing.add(command.stream.encode())
        if self._position(command, events):
            events.append(command)

    def _other(self, line: bytes, events: list[Any]) -> None:
        """Hand on a line that is neither a row nor a position."""
        self._on_other(line)

    def bad(self, line: bytes, reason: str) -> None:
        """Count and log a line that is left out."""
        self.bad_lines += 1
        metrics.DROPPED.labels("line", "unreadable").inc()
        if self.bad_lines <= TOLD_BAD_LINES or not self.bad_lines % 1_000:
            log.warning(
                "redis.line.unreadable", word=word_of(line), reason=reason, count=self.bad_lines
            )

    def _deliver(self, events: list[Any]) -> None:
        """Hand each pair its events, neighbours together."""
        follower: Follower | None = None
        run: list[Any] = []
        for event in self._split(events):
            pair = (event.stream, event.instance)
            if type(event) is RunReceived:
                if follower is None or follower.pair != pair:
                    if follower is not None:
                        follower.delivery.take(run)
                    follower, run = self.followers.of(pair), []
                run.append(event)
                follower.top = event.tokens[-1]
                continue
            if not self.intake.believes(pair, event.token):
                self.bad(_RDATA, f"no writer of {pair[0]} can be at token {event.token} by now")
                continue
            if follower is None or follower.pair != pair:
                if follower is not None:
                    follower.delivery.take(run)
                follower, run = self.followers.of(pair), []
            if follower.heard_by is not self:
                if not self._proves(event):
                    continue
                run += self._first_heard(follower, event)
                follower.top = event.token
            else:
                if event.token <= follower.top and run:
                    follower.delivery.take(run)  # so that it is known what was passed over
                    run = []
                heard = self._heard(follower, event)
                if heard is None:
                    continue
                run.append(heard)
                follower.top = event.token
            follower.heard_by = self
        if follower is not None:
            follower.delivery.take(run)

    def _split(self, events: Iterable[Any]) -> Iterator[Any]:
        """Yield *events*; of a run each batch, but where none of them proves anything special."""
        for event in _by_pair(events):
            if type(event) is not RunReceived:
                yield event
                continue
            stream, instance, tokens, rows = event
            follower = self.followers.known((stream, instance))
            if (
                follower is not None
                and follower.heard_by is self
                and stream not in DESCENDING
                and tokens[0] > follower.top
                and all(map(lt, tokens, tokens[1:]))
                and self.intake.believes(follower.pair, tokens[-1])
                and are_json(rows)
            ):
                yield event
            else:
                yield from in_batches((event,))

    def _proves(self, event: RowsReceived | PositionCommand) -> bool:
        """Return whether *event* says anything where nothing was heard of its pair yet.

        Rows that count down do not: rows above them may have passed. A position has to say so.
        """
        return event.stream not in DESCENDING or isinstance(event, PositionCommand)

    def _heard(
        self, follower: Follower, event: RowsReceived | PositionCommand
    ) -> RowsReceived | PositionCommand | None:
        """Return what a later line of a pair on this connection says; None if nothing."""
        if type(event) is RowsReceived:
            return self._readable(event)
        if event.token >= follower.top or follower.pair[0] in IN_MEMORY:
            return event
        return None  # it was overtaken by the rows before it

    def _readable(self, event: RowsReceived) -> RowsReceived | PositionCommand:
        return event if all(map(is_json, event.rows)) else self._sifted(event)

    def _first_heard(
        self, follower: Follower, event: RowsReceived | PositionCommand
    ) -> list[RowsReceived | PositionCommand]:
        """Return what the first line of a pair on this connection proves: a position, no more.

        Rows before it may be missing, and a row may be the rest of a batch.
        """
        pair = stream, _ = follower.pair
        token = event.token
        position = PositionCommand(*pair, token, token)
        if isinstance(event, PositionCommand) and stream not in DESCENDING:
            position = event  # else the rows that it speaks of may have passed before we came
        known = follower.delivery.known.get(pair)
        if known and stream in IN_MEMORY and self.followers.registry.get(stream).keyed:
            # Its writer may be another process by now that has passed the old counter, which
            # nobody can tell: what is true now comes from the start.
            return [PositionCommand(*pair, 0, 0), position]
        newest = self._newest.get(stream, 0)
        if known is None and self._was_away and newest < token <= newest + MAX_UNMET_TOKENS:
            # It was first written while we were away, behind what others wrote to the stream.
            return [PositionCommand(*pair, newest, newest), position]
        return [self._of_all(position)]

    def _of_all(self, position: PositionCommand) -> PositionCommand:
        """Return *position*, as it is to be read where instances share a sequence."""
        stream, instance, token = position.stream, position.instance, position.token
        newest = self._newest.get(stream, 0)
        if stream == SHARED_SEQUENCE and not self.followers.fetches and token <= newest:
            return PositionCommand(stream, instance, 0, token)  # rows of others, which we have
        return position

    def _sifted(self, event: RowsReceived) -> RowsReceived | PositionCommand:
        good = [row for row in event.rows if is_json(row)]
        for _ in range(len(event.rows) - len(good)):
            self.bad(_RDATA, f"a row of {event.stream}, token {event.token}, is not JSON")
        if not good:
            return PositionCommand(event.stream, event.instance, 0, event.token)
        return RowsReceived(event.stream, event.instance, event.token, good)


def _by_pair(events: Iterable[Any]) -> Iterator[Any]:
    """Yield *events*, those of several pairs as a run of each: pairs have no order among them."""
    for event in events:
        if type(event) is not MixedReceived:
            yield event
            continue
        runs: dict[Pair, RunReceived] = {}
        for pair, token, row in zip(*event, strict=True):
            run = runs.get(pair)
            if run is None:
                run = runs[pair] = RunReceived(*pair, [], [])
            run.tokens.append(token)
            run.rows.append(row)
        yield from runs.values()
