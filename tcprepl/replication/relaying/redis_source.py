"""An upstream that speaks over Redis: every Synapse since 1.67 (protocol.md section 15.4).

Redis keeps nothing, and says nothing when it loses something. So what was missed is found by
comparing positions, for each (stream, instance) and each connection anew: until something
was heard of a pair on *this* connection, a row of it proves nothing but the writer's position,
since rows before it, of its own batch even, may have passed while we were away.

Each pair has a `Delivery` of its own. One that waits for a page over HTTP holds up no other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import LocalProtocolError, LostRow, ProtocolError
from tcprepl.ids import Pair, ServerName, StreamName, Token
from tcprepl.protocol.batches import BatchAssembler
from tcprepl.protocol.codec import parse_line, serialize, word_of
from tcprepl.protocol.commands import (
    Command,
    PositionCommand,
    ReplicateCommand,
    UserIpCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import RowsReceived, in_batches
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.following.delivery import Delivery
from tcprepl.replication.following.descending import DESCENDING
from tcprepl.replication.redis.link import RedisLink
from tcprepl.replication.relaying.intake import RelayCatchUp, RelayIntake
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.streams.registry import Registry

log = structlog.get_logger()

#: Batches that may wait for pages over HTTP before Redis is read no further.
MAX_WAITING: Final = 100_000
#: Commands of our readers that are kept for Redis while it is away.
MAX_UNSENT: Final = 1_000
#: Tokens that are asked for, or told as a gap, of a pair that was first written while nobody
#: listened. One that is further on was written before: by a Synapse that was down when we began.
MAX_UNMET_TOKENS: Final = 10_000
#: The channel that carries USER_IP, after the name of the server.
USER_IP_CHANNEL: Final = "USER_IP"

#: The instances of Synapse that write this stream, nearly all of them, share one sequence: one
#: that has written nothing says where the others are.
SHARED_SEQUENCE: Final = "caches"

#: Streams of Synapse that begin anew with their process; no other can go backwards while its
#: writer lives, so that a position below the newest row is only late.
IN_MEMORY: Final = frozenset({"federation", "presence_federation", "typing"})

_REDIS: Final = DIALECTS["redis"]
_RDATA: Final = b"RDATA "
_valid_json = msgspec.json.Decoder(msgspec.Raw).decode


def as_line(payload: bytes) -> bytes | None:
    """Return *payload* as one line that can be relayed; None when it cannot."""
    if b"\n" in payload or payload.endswith(b"\r"):
        # Outside of strings, where JSON has no raw line ends, they are only space.
        payload = payload.replace(b"\n", b" ").rstrip()
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            return None
    return payload


def is_json(row: bytes) -> bool:
    """Return whether *row* is JSON, as Synapse reads it."""
    try:
        _valid_json(row)
    except msgspec.DecodeError:
        try:
            json.loads(row)
        except (ValueError, RecursionError):
            return False
    return True


class _Follower:
    """What follows one (stream, instance); the `Link` of its delivery.

    Attributes:
        heard: Whether anything of the pair was heard on this connection.
        top: The newest token heard on this connection.
    """

    def __init__(self, source: RedisUpstream, pair: Pair) -> None:
        self.heard = False
        self.top = 0
        self.pair = pair
        self._source = source
        self._delays: set[Deferred[None]] = set()
        self.delivery = source.make_delivery(self)

    def pause(self) -> None:
        """Note that what comes now has to wait."""
        self._source.blocked.add(self)

    def resume(self) -> None:
        """Note that nothing waits any longer."""
        self._source.blocked.discard(self)
        self._source.unblocked()

    def give_up(self, failure: Failure) -> None:
        """Say so; there is nothing to retry for ever."""
        log.error("redis.delivery.failed", pair=self.pair, error=failure.getErrorMessage())

    def call_later(self, seconds: float, function: Callable[[], None]) -> IDelayedCall:
        """Call *function* after a while."""
        call: IDelayedCall = self._source.reactor.callLater(seconds, function)
        return call

    async def wait(self, seconds: float) -> None:
        """Wait; stopping ends it early."""
        delay: Deferred[None] = deferLater(self._source.reactor, seconds)
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


class RedisUpstream:
    """Follows every stream on a Redis channel and hands all of it to an `RelayIntake`.

    Args:
        reactor: The reactor.
        endpoint: Where Redis is.
        name: What to call it in the status.
        intake: Where rows go.
        registry: The streams.
        server_name: The homeserver, which is the name of the channel.
        user: For AUTH.
        password: For AUTH.
        catch_up: Where missed rows are fetched.
        on_command: Called with every other command that is heard.
        passive: Never publish anything, not even REPLICATE: positions are then compared
            only when their writers say them.
        user_ip: Hear USER_IP as well: it is counted, and not passed on.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        name: str,
        intake: RelayIntake,
        registry: Registry,
        *,
        server_name: ServerName,
        user: str | None = None,
        password: str | None = None,
        catch_up: CatchUp | None = None,
        on_command: Callable[[Command], object] | None = None,
        passive: bool = False,
        user_ip: bool = False,
    ) -> None:
        self.reactor = reactor
        self.blocked: set[_Follower] = set()
        self.bad_lines = 0
        self._name = name
        self._intake = intake
        self._registry = registry
        self._catch_up = None if catch_up is None else RelayCatchUp(intake, catch_up)
        self._on_command = on_command
        self._passive = passive
        self._user_ip = user_ip
        self._followers: dict[Pair, _Follower] = {}
        self._assembler = BatchAssembler(_REDIS)
        self._passing: set[bytes] = set()
        #: Where each stream was, as far as we had heard, when this connection began.
        self._newest: dict[StreamName, Token] = {}
        #: Whether we had listened before, and then for a while not.
        self._was_away = False
        self._unsent: list[bytes] = []
        self._rdata_source: metrics.Source | None = None
        self.link = RedisLink(
            reactor,
            endpoint,
            server_name,
            on_lines=self._heard,
            on_up=self._up,
            on_down=self._down,
            also=[f"{server_name}/{USER_IP_CHANNEL}"] if user_ip else [],
            publishes=not passive,
            user=user,
            password=password,
        )

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and stay connected."""
        self._rdata_source = metrics.INBOUND_RDATA.add_source(self._received)
        self.link.start()

    async def stop(self) -> None:
        """Disconnect, and let what is under way end."""
        await self.link.stop()
        for follower in tuple(self._followers.values()):
            await follower.stop()
        if self._rdata_source is not None:
            metrics.INBOUND_RDATA.remove_source(self._rdata_source)

    def _received(self) -> list[tuple[tuple[str], float]]:
        total: Counter[str] = Counter()
        for follower in self._followers.values():
            total.update(follower.delivery.received_rows)
        return [((stream,), float(count)) for stream, count in total.items()]

    def _up(self) -> None:
        self._assembler = BatchAssembler(_REDIS)
        self._passing.clear()
        for follower in self._followers.values():
            follower.heard = False
        self._newest = self._intake.newest()
        self._was_away = self._intake.follow()
        if not self._passive:
            unsent, self._unsent = self._unsent, []
            self.link.publish([serialize(ReplicateCommand(), _REDIS)[:-1], *unsent])

    def _down(self, reason: str) -> None:
        dropped = self._assembler.held_rows
        if dropped:
            log.warning("redis.batch.cut_off", rows=dropped, reason=reason)

    # -- up ----------------------------------------------------------------------------

    def send(self, command: Command) -> bool:
        """Publish *command*; while Redis is away it is kept for its return."""
        if self._passive:
            return False
        try:
            line = serialize(command, _REDIS)[:-1]
        except LocalProtocolError as error:
            metrics.DROPPED.labels("command", "not_in_dialect").inc()
            log.info("redis.command.dropped", command=command.NAME, reason=str(error))
            return False
        if self.link.up:
            self.link.publish([line])
        elif len(self._unsent) < MAX_UNSENT:
            self._unsent.append(line)
        else:
            metrics.DROPPED.labels("command", "not_connected").inc()
            return False
        return True

    # -- down --------------------------------------------------------------------------

    def _heard(self, payloads: list[bytes]) -> None:
        """Work through what one read brought, in order."""
        events: list[Any] = []
        rows: list[bytes] = []
        passing = self._passing
        for payload in payloads:
            line = as_line(payload)
            if line is None:
                self._bad(payload, "not UTF-8")
            elif line.startswith(_RDATA):
                stream = line[6 : line.find(b" ", 6)]
                if stream not in passing:
                    self._let_pass(stream.decode(), events)
                rows.append(line)
            else:
                self._read_rows(rows, events)
                rows = []
                self._other(line, events)
        self._read_rows(rows, events)
        self._deliver(events)
        if self.blocked and self._waiting() > MAX_WAITING:
            self.link.pause()

    def _let_pass(self, stream: StreamName, events: list[Any]) -> None:
        """Have rows of *stream* read: what they prove is judged for each pair, later."""
        self._passing.add(stream.encode())
        self._position(PositionCommand(stream, "", None, 0), events)

    def _position(self, command: PositionCommand, events: list[Any]) -> bool:
        try:
            self._assembler.position(command, events, 0)
        except LostRow as error:
            self._bad(b"POSITION", str(error))
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
                self._bad(_RDATA, str(error))
            else:
                return

    def _other(self, line: bytes, events: list[Any]) -> None:
        """Deal with a line that is not RDATA."""
        if self.link.is_echo(line):
            return
        try:
            command = parse_line(line, _REDIS)
        except ProtocolError as error:
            self._bad(line, str(error))
            return
        if isinstance(command, PositionCommand):
            self._passing.add(command.stream.encode())
            if self._position(command, events):
                events.append(command)
        elif isinstance(command, UserIpCommand):
            # It carries an access token: it is counted if that was asked for, and goes nowhere.
            if self._user_ip:
                metrics.USER_IP_CACHE.inc()
        elif self._on_command is not None and not isinstance(command, ReplicateCommand):
            run_in_background(self._on_command, command)

    def _bad(self, line: bytes, reason: str) -> None:
        self.bad_lines += 1
        metrics.DROPPED.labels("line", "unreadable").inc()
        log.warning("redis.line.unreadable", word=word_of(line), reason=reason)

    def _deliver(self, events: list[Any]) -> None:
        """Hand each pair its events, neighbours together."""
        follower: _Follower | None = None
        run: list[Any] = []
        for event in in_batches(events):
            pair = (event.stream, event.instance)
            if not self._intake.believes(pair, event.token):
                self._bad(_RDATA, f"no writer of {pair[0]} can be at token {event.token} by now")
                continue
            if follower is None or follower.pair != pair:
                if follower is not None:
                    follower.delivery.take(run)
                follower, run = self._follower(pair), []
            if not follower.heard:
                if pair[0] in DESCENDING and type(event) is RowsReceived:
                    continue  # rows above it may have passed: a position has to say so
                run += self._first_heard(follower, event)
            elif type(event) is RowsReceived:
                run.append(event if all(map(is_json, event.rows)) else self._sifted(event))
            elif event.token > follower.top or pair[0] in IN_MEMORY:
                run.append(event)  # else it was overtaken by the rows before it
            else:
                continue
            follower.heard = True
            follower.top = event.token
        if follower is not None:
            follower.delivery.take(run)

    def _first_heard(
        self, follower: _Follower, event: RowsReceived | PositionCommand
    ) -> list[PositionCommand]:
        """Return what the first line of a pair on this connection proves: a position, no more.

        Rows before it may be missing, and a row may be the rest of a batch.
        """
        pair = stream, _ = follower.pair
        token = event.token
        position = PositionCommand(*pair, token, token)
        if isinstance(event, PositionCommand) and stream not in DESCENDING:
            position = event  # else the rows that it speaks of may have passed before we came
        known = follower.delivery.known.get(pair)
        if known and stream in IN_MEMORY and self._registry.get(stream).keyed:
            # Its writer may be another process by now that has passed the old counter, which
            # nobody can tell: what is true now comes from the start.
            return [PositionCommand(*pair, 0, 0), position]
        newest = self._newest.get(stream, 0)
        if known is None and self._was_away and newest < token <= newest + MAX_UNMET_TOKENS:
            # It was first written while we were away, behind what others wrote to the stream.
            return [PositionCommand(*pair, newest, newest), position]
        if stream == SHARED_SEQUENCE and self._catch_up is None and token <= newest:
            return [PositionCommand(*pair, 0, token)]  # rows of others, which we have
        return [position]

    def _sifted(self, event: RowsReceived) -> RowsReceived | PositionCommand:
        good = [row for row in event.rows if is_json(row)]
        for _ in range(len(event.rows) - len(good)):
            self._bad(_RDATA, f"a row of {event.stream}, token {event.token}, is not JSON")
        if not good:
            return PositionCommand(event.stream, event.instance, 0, event.token)
        return RowsReceived(event.stream, event.instance, event.token, good)

    # -- pairs -------------------------------------------------------------------------

    def _follower(self, pair: Pair) -> _Follower:
        found = self._followers.get(pair)
        if found is None:
            found = self._followers[pair] = _Follower(self, pair)
        return found

    def make_delivery(self, follower: _Follower) -> Delivery:
        """Return what delivers the rows of one pair, from where the log is."""
        known = self._intake.known(follower.pair)
        delivery = Delivery(
            follower,
            self._intake.rows,
            MemoryPositionStore({} if known is None else {follower.pair: known}),
            self._registry,
            streams=None,
            since="now",
            on_reset=self._intake.reset,
            on_position=self._intake.position,
            on_command=None,
            catch_up=self._catch_up,
            max_attempts=None,
        )
        delivery.start()
        delivery.begin(_REDIS)
        return delivery

    def _waiting(self) -> int:
        return sum(follower.delivery.waiting for follower in self.blocked)

    def unblocked(self) -> None:
        """Read on, when no more waits than may."""
        if self._waiting() <= MAX_WAITING // 2:
            self.link.resume()

    def status(self) -> LinkStatus:
        """Return how it goes."""
        return LinkStatus(
            name=self._name,
            kind="upstream",
            up=self.link.up,
            seconds=self.reactor.seconds() - self.link.changed_at,
            reason=self.link.last_error,
            reconnects=self.link.reconnects,
            rows=self._intake.rows_taken,
            idle_seconds=self._intake.idle_seconds(),
            **self._intake.gap_status(),
        )
