"""One connection to the bus: requests in, replies and messages out (protocol.md section 15).

What it asks for is done in turns (`tcprepl.replication.serving.turns`), in the order in which
it came, and not at all while it does not take the answers, or while what is published waits
for the disk: input waits then, read or not.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl import metrics
from tcprepl.errors import CloseReason
from tcprepl.limits import CLOSE_TIMEOUT_S, HALF_CLOSED_S, MAX_REPLY_BYTES, MAX_SUBSCRIPTIONS
from tcprepl.logger import get_logger
from tcprepl.replication.bus.commands import run
from tcprepl.replication.bus.patterns import Pattern
from tcprepl.replication.bus.processes import Visit
from tcprepl.replication.bus.replies import bulk, error, integer, optional, push
from tcprepl.replication.bus.subscribers import Subscriber
from tcprepl.replication.failures import close_reason_of
from tcprepl.replication.redis.requests import Request, RequestReader
from tcprepl.replication.serving.turns import Worked
from tcprepl.replication.status import PeerStatus, process_status
from tcprepl.replication.transport import Outlet, SocketOutlet, make_outlet, process_of

if TYPE_CHECKING:
    from tcprepl.replication.bus.listener import BusListener
    from tcprepl.replication.relaying.lines import LineReader

log = get_logger(__name__)

#: Bytes of messages of other channels than the homeserver's that may wait for a socket before
#: it is cut off (what Redis allows by default).
MAX_PUSH_BYTES: Final = 32 * 1_048_576
_LISTENING: Final = frozenset({b"subscribe", b"psubscribe"})


@implementer(IProtocol, IHalfCloseableProtocol)
class BusConnection:
    """A client of the bus.

    Attributes:
        desk: What it belongs to.
        conn_id: Its number.
        address: Where it comes from, for people.
        name: Who it is, as AUTH said; empty is unknown.
        title: What CLIENT SETNAME said.
        proto: The version of RESP that it speaks.
        counts: What its process did, by the names of `ProcessStatus`.
        visit: Its listening as a known process; None before, and where nobody knows who it is.
        pid: The number of its process, on a Unix socket; otherwise 0.
        lines: What reads what it publishes on the homeserver's channel; None before it does.
        closing: Why it is being closed, or None.
        channels: What it subscribed by name, in order; a subscription of the homeserver's
            channel, or None for another.
        patterns: What it subscribed by pattern, likewise.
    """

    def __init__(self, desk: BusListener, conn_id: int, address: str) -> None:
        self.desk = desk
        self.conn_id = conn_id
        self.address = address
        self.name = ""
        self.title = b""
        self.proto = 2
        self.counts: Counter[str] = Counter()
        self.lines: LineReader | None = None
        self.visit: Visit | None = None
        self.pid = 0
        self.closing: CloseReason | None = None
        self.channels: dict[bytes, Subscriber | None] = {}
        self.patterns: dict[bytes, tuple[Pattern, Subscriber | None]] = {}
        self.transport: Any = None
        self._reader = RequestReader(desk.channel, trusted=not desk.guarded)
        self._requests: deque[Request] = deque()
        self._outlet: Outlet | None = None
        self._paused = False
        self._reply_bytes = 0
        self._push_bytes = 0
        self._leaving = False
        self._ends_at: float | None = None
        self._gone = False
        self._refused = False
        self._closing_at = 0.0
        self._last_word = "NULL"
        self._connected_at = self._heard_at = desk.reactor.seconds()

    def __repr__(self) -> str:
        return f"<BusConnection {self.label}>"

    @property
    def label(self) -> str:
        """The name it goes by in logs."""
        return f"{self.conn_id}:{self.shown_name or self.address}"

    @property
    def shown_name(self) -> str:
        """Who it is, or says it is."""
        return self.name or self.title.decode("ascii")

    @property
    def process(self) -> str:
        """What its process is known by, should it be lost and come back; empty for nothing."""
        return self.name or (f"pid {self.pid}" if self.pid else "")

    @property
    def trusted(self) -> bool:
        """Whether it has said the password, if there is one."""
        return self._reader.trusted

    @property
    def subscriptions(self) -> int:
        """How many channels and patterns it listens to."""
        return len(self.channels) + len(self.patterns)

    @property
    def may_speak(self) -> bool:
        """Whether it may use every command: in RESP2 who listens may do little else."""
        return self.proto == 3 or not self.subscriptions

    @property
    def subscribers(self) -> list[Subscriber]:
        """Its subscriptions of the homeserver's channel."""
        found = (*self.channels.values(), *(one for _, one in self.patterns.values()))
        return [one for one in found if one is not None]

    # -- IProtocol ---------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Note that it is there (Twisted calls this)."""
        self.transport = transport
        if hasattr(transport, "setTcpKeepAlive"):
            transport.setTcpKeepAlive(True)
        self.pid = process_of(transport)
        self.counts = self.desk.counts_of(self.process)
        self._outlet = make_outlet(transport, self._drained)
        self.desk.connected(self)

    def connectionMade(self) -> None:
        """Do nothing: `makeConnection` did it all (Twisted never calls this itself)."""

    def dataReceived(self, data: bytes) -> None:
        """Do what *data* says, in turns (Twisted calls this)."""
        if self.closing is None:
            self._heard_at = self.desk.reactor.seconds()
            if self.visit is not None:
                self.desk.processes.spoke(self.visit)
            self._reader.feed(data)
            self.desk.turns.serve(self)

    def readConnectionLost(self) -> None:
        """End, once all that it said is done: it has closed its side (Twisted calls this)."""
        if self._paused or self.desk.turns.awaits(self):
            self._ends_at = self.desk.reactor.seconds() + HALF_CLOSED_S
        else:
            self._end()

    def writeConnectionLost(self) -> None:
        """Do nothing: whoever closes our side has taken our place (Twisted does not call this)."""

    def connectionLost(self, reason: Failure) -> None:
        """Do what was read of it, and forget it (Twisted calls this)."""
        self.desk.turns.forget(self)
        self._gone = True
        why = self.closing or close_reason_of(reason)
        self._work_off()
        self._depart()
        self.desk.lost(self, why)

    # -- what it says ------------------------------------------------------------------

    def work(self, lines: int, ends_at: float) -> Worked:
        """Do what the client asks for, as far as share and time go and while it takes answers."""
        done = 0
        more = False
        while not more and not self._waits:
            if not self._requests and not self._read(lines - done):
                break
            done += self._next()
            more = done >= lines or self.desk.reactor.seconds() >= ends_at
        more = more and not self._waits
        self._read_on(self.closing is not None or (not more and not self._waits))
        if self._ends_at is not None and not more and not self._waits:
            self._end()
        return Worked(done, more)

    @property
    def _waits(self) -> bool:
        """Whether it is not listened to for now."""
        return (
            self.closing is not None
            or self._reply_bytes > MAX_REPLY_BYTES
            or (self.lines is not None and self.desk.full)
        )

    def _read(self, limit: int) -> bool:
        """Take the next requests, or close at a fault; return whether there are any."""
        # One at a time before AUTH: it decides how the next is read.
        self._requests.extend(self._reader.take(limit if self.trusted else 1))
        if not self._requests and self._reader.fault is not None:
            self.write(error(f"ERR {self._reader.fault}"))
            log.info("bus.fault", client=self.label, fault=self._reader.fault)
            self.close(CloseReason.WRONG_PROTOCOL)
        return bool(self._requests)

    def _next(self) -> int:
        """Carry out the next request, or a run of what is published; return how many."""
        requests = self._requests
        if type(requests[0]) is bytes and self.trusted and self.may_speak:
            payloads: list[bytes] = []
            while requests and isinstance(requests[0], bytes):
                payloads.append(requests[0])
                requests.popleft()
            self._last_word = "publish"
            reached = self.desk.published(self, payloads)
            self.write(integer(reached) * len(payloads))
            return len(payloads)
        request = requests.popleft()
        words = [b"PUBLISH", self.desk.channel, request] if isinstance(request, bytes) else request
        self._last_word = words[0][:32].decode("ascii", "replace").lower()
        self.desk.count(self._last_word)
        reply = run(self, words)
        for piece in reply if isinstance(reply, list) else (reply,):
            if piece:
                self.write(piece)
        if self._leaving:
            self.close(CloseReason.PEER_CLOSED)
        return 1

    def _read_on(self, reading: bool) -> None:
        """Read from the socket, or do not: what is not read, it cannot send for ever."""
        if reading is self._paused:
            self._paused = not reading
            if self._ends_at is not None:
                return  # there is nothing more to read
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _end(self) -> None:
        """End; with the answers that wait for its socket, if it wants nothing else."""
        if self.subscriptions or not self._reply_bytes or self.closing is not None:
            self.transport.connectionLost(Failure(ConnectionDone()))
        else:
            self.close(CloseReason.PEER_CLOSED)

    def _work_off(self) -> None:
        """Do what was read before it was lost, as far as others notice it.

        What it published is not for itself: that nobody is left to be answered is no reason to
        drop it. Who listens may say nothing that others notice.
        """
        while self.closing is None and self.may_speak and (self._requests or self._read(1_000)):
            request = self._requests[0]
            if isinstance(request, list) and request[0].lower() in _LISTENING:
                self._requests.popleft()
            else:
                self._next()

    def go_on(self) -> None:
        """Listen to it again, if it was not."""
        if self._paused:
            self.desk.turns.serve(self)

    # -- what commands do to it --------------------------------------------------------

    def let_in(self, name: str) -> None:
        """Trust it from now on; it is called *name*, if that is not empty."""
        self._reader.trusted = True
        self.name = name
        self.counts = self.desk.counts_of(self.process)

    def refuse(self) -> None:
        """Note that it said a wrong password."""
        metrics.REFUSED_ACCESS.labels("bus", "wrong_password").inc()
        if not self._refused:
            self._refused = True
            log.warning("bus.password.wrong", client=self.label)

    def subscribe(self, names: Sequence[bytes], *, by_pattern: bool) -> bytes:
        """Listen to channels; return the confirmations, or write them where rows may follow."""
        kind = b"psubscribe" if by_pattern else b"subscribe"
        for name in names:
            held = self.patterns if by_pattern else self.channels
            if name not in held:
                if self.subscriptions >= MAX_SUBSCRIPTIONS:
                    return error(f"ERR more than {MAX_SUBSCRIPTIONS} subscriptions")
                self._subscribe(name, by_pattern=by_pattern, kind=kind)
            else:
                self.write(push((bulk(kind), bulk(name), integer(self.subscriptions)), self.proto))
        return b""

    def _subscribe(self, name: bytes, *, by_pattern: bool, kind: bytes) -> None:
        self.write(push((bulk(kind), bulk(name), integer(self.subscriptions + 1)), self.proto))
        assert self._outlet is not None
        if by_pattern:
            pattern = Pattern(name)
            one = None
            if pattern.matches(self.desk.channel):
                one = self.desk.subscribers.add(self._outlet, name, self.label, proto=self.proto)
            self.patterns[name] = pattern, one
        else:
            self.channels[name] = self._listen() if name == self.desk.channel else None
            self.counts["subscribed"] += name == self.desk.channel
        self.desk.channels.add(self, name, by_pattern=by_pattern)

    def _listen(self) -> Subscriber:
        """Subscribe the homeserver's channel."""
        assert self._outlet is not None
        if not self.process or self.proto == 3:  # no Synapse speaks that
            return self.desk.subscribers.add(self._outlet, None, self.label, proto=self.proto)
        self.visit = self.desk.processes.come(
            self.process, self.pid, self._outlet, self.transport, self.label
        )
        return self.visit.subscriber

    def unsubscribe(self, names: Sequence[bytes], *, by_pattern: bool) -> bytes:
        """Listen to channels no longer, to none if no names are given; return what to say."""
        kind = b"punsubscribe" if by_pattern else b"unsubscribe"
        held: Any = self.patterns if by_pattern else self.channels
        said: list[bytes] = []
        for name in names or tuple(held) or (None,):
            if name is not None and name in held:
                self._unsubscribe(name, by_pattern=by_pattern)
            shown = optional(name, self.proto)
            said.append(push((bulk(kind), shown, integer(self.subscriptions)), self.proto))
        return b"".join(said)

    def _unsubscribe(self, name: bytes, *, by_pattern: bool) -> None:
        one = self.patterns.pop(name)[1] if by_pattern else self.channels.pop(name)
        if self.closing is None and self.visit is not None and one is self.visit.subscriber:
            self.desk.processes.forget(self.visit)
            self.visit = None
        if one is not None:
            self.counts["rows_out"] += one.rows
            self.desk.subscribers.remove(one)
        self.desk.channels.remove(self, name, by_pattern=by_pattern)

    def _unsubscribe_all(self) -> None:
        for by_pattern, names in ((False, tuple(self.channels)), (True, tuple(self.patterns))):
            for name in names:
                self._unsubscribe(name, by_pattern=by_pattern)

    def _depart(self) -> None:
        """Listen to nothing any longer; what it missed is for when it comes back."""
        if self.visit is not None:
            self.desk.processes.leave(self.visit, by_itself=self.closing is None)
            self.visit = None
        self._unsubscribe_all()

    def reset(self) -> None:
        """Forget everything that was said on it."""
        self._unsubscribe_all()
        self.name = ""
        self.counts = self.desk.counts_of(self.process)
        self.title = b""
        self.proto = 2
        self._reader.trusted = not self.desk.guarded

    def leave(self) -> None:
        """Close once the reply has been written."""
        self._leaving = True

    def turn_away(self) -> None:
        """Close without an answer: this is a request over HTTP, perhaps of a browser."""
        log.warning(
            "bus.http", client=self.label, reason="a page in a browser may try to speak to the bus"
        )
        self.close(CloseReason.WRONG_PROTOCOL)

    # -- what goes out -----------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write a reply."""
        assert self._outlet is not None
        if self.closing is None and not self._gone and not self._outlet.write(data):
            self._reply_bytes += len(data)

    def push(self, message: bytes) -> None:
        """Write a message of another channel than the homeserver's, if it keeps up."""
        assert self._outlet is not None
        if self.closing is not None or self._gone or self._outlet.write(message):
            return
        self._push_bytes += len(message)
        plain = isinstance(self._outlet, SocketOutlet)
        waiting = self._outlet.buffered_bytes if plain else self._push_bytes
        if waiting > MAX_PUSH_BYTES:
            log.warning("bus.client.cut_off", client=self.label, waiting_bytes=waiting)
            self.closing = CloseReason.ABORTED
            self.transport.abortConnection()

    def _drained(self) -> None:
        self._reply_bytes = self._push_bytes = 0
        for subscriber in self.subscribers:
            self.desk.subscribers.drained(subscriber)
        self.go_on()

    def close(self, reason: CloseReason) -> None:
        """Close once everything has been written."""
        if self.closing is None:
            self.closing = reason
            self._closing_at = self.desk.reactor.seconds()
            if self._gone:
                return
            if self.visit is not None:
                self.desk.processes.part(self.visit)
            self._unsubscribe_all()
            assert self._outlet is not None
            self._outlet.close()

    def failed(self) -> None:
        """Close: something that nobody expected came out of its requests, and was logged."""
        self.close(CloseReason.LOCAL_ERROR)

    def sweep(self, now: float) -> None:
        """Look whether a close does not end, or answers to who has closed its side."""
        if self.closing is not None:
            overdue = now - self._closing_at >= CLOSE_TIMEOUT_S
        else:
            overdue = self._ends_at is not None and now >= self._ends_at
        if overdue:
            self.transport.abortConnection()

    # -- looking -----------------------------------------------------------------------

    def line(self) -> bytes:
        """Return what CLIENT LIST says of it."""
        now = self.desk.reactor.seconds()
        user = self.name.encode("utf-8", "replace").translate(None, b" \r\n") or b"default"
        return (
            b"id=%d addr=%b name=%b age=%d idle=%d db=0 sub=%d psub=%d omem=%d cmd=%b user=%b"
            % (
                self.conn_id,
                self.address.encode("utf-8", "replace"),
                self.title,
                now - self._connected_at,
                now - self._heard_at,
                len(self.channels),
                len(self.patterns),
                0 if self._outlet is None else self._outlet.buffered_bytes,
                self._last_word.encode(),
                user,
            )
        )

    def status(self, now: float) -> PeerStatus | None:
        """Return what is to be told of it: nothing of one that has subscribed nothing."""
        subscribers = self.subscribers
        if not subscribers:
            return None
        hub = self.desk.hub
        lags = [(hub.lag(one.reader), one.reader) for one in subscribers]
        lag, reader = max(lags, key=lambda pair: pair[0].rows)
        paused = reader.paused_s
        if reader.backlog is not None:
            paused += now - reader.backlog.began_at
        rows = sum(one.rows for one in subscribers)
        assert self._outlet is not None
        return PeerStatus(
            conn_id=self.conn_id,
            name=self.shown_name,
            address=self.address,
            dialect="redis",
            state="head" if reader.backlog is None or not lag.rows else "behind",
            behind_rows=lag.rows,
            behind_bytes=lag.bytes,
            behind_seconds=lag.seconds,
            behind_stream=lag.stream,
            paused_seconds=paused,
            buffered_bytes=self._outlet.buffered_bytes,
            sent_bytes=sum(one.reader.served_bytes for one in subscribers),
            gaps=sum(one.reader.gaps for one in subscribers),
            connected_seconds=now - self._connected_at,
            replay="" if self.visit is None else self.visit.given.told,
            process=process_status(self.counts, rows) if self.process else None,
        )
