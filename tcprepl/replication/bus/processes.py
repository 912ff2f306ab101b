"""The processes that listen: who is who, and what each missed (protocol.md section 15.7).

A process is known by the name that it says with AUTH, or on a Unix socket by its number. One that
comes back gets what it missed since it was last here: at least what had not arrived when its
connection was lost. One that is not known, that was away for long, or that began anew, gets
what comes from now on, as from Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Final, NamedTuple

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import LogError
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.limits import MAX_CONNECTIONS
from tcprepl.logger import get_logger
from tcprepl.replication.bus.delivered import Delivered, Stand
from tcprepl.replication.bus.places import Place, Places, Replayed
from tcprepl.replication.bus.replay import (
    UNCOUNTED,
    Covered,
    End,
    NotInLogError,
    Start,
    Unsaid,
    look_back,
    starts_of,
    unsaid_of,
)
from tcprepl.replication.bus.subscribers import Subscriber, Subscribers
from tcprepl.replication.relaying.intake import IN_MEMORY, RelayIntake
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.transport import Outlet
from tcprepl.streams.log import Block, Log

log = get_logger(__name__)

#: Whoever leaves within this time of being given what it missed may have left because of it.
AT_ONCE_S: Final = 2.0
#: How often it is written down where one stands that is behind.
WRITE_INTERVAL_S: Final = 5.0
#: How long a writer that is back may take to say what it writes, once it can be asked: it
#: listens on a connection of its own, which may come back later.
SETTLE_S: Final = 2.0
#: For how long a process that writes a stream with others is not told of it, if none of them does:
#: the connection on which a Synapse says where it is itself comes back after 10 s at the latest.
UNSAID_S: Final = 15.0
#: A connection that says something this long after another one of its name came is another's.
SHARED_AFTER_S: Final = 1.0


class Bounds(NamedTuple):
    """What is replayed at most.

    Attributes:
        seconds: To who was away for longer nothing is.
        rows: To who missed more nothing is.
    """

    seconds: float = 600.0
    rows: int = 100_000


class Said:
    """Of which pairs processes are told that missed none of their rows.

    They are those that a writer says now, or said last. A writer that is back says what it
    writes. What it said before and does not say now belongs to another writer, or to a release
    that is no more: whoever were told of it would take harm. And of a stream that is in memory
    alone there is one writer at a time.

    Args:
        carried: The pairs of an earlier run of the bus.
        listens_since: Returns when the process that is an instance began to listen; None while it
            does not, 0 if it is not known which that is.
    """

    def __init__(
        self,
        carried: set[Pair],
        listens_since: Callable[[InstanceName], float | None] = lambda instance: 0.0,
    ) -> None:
        self._listens_since = listens_since
        self._by: dict[Pair, object] = dict.fromkeys(carried)
        self._writers: dict[InstanceName, tuple[object, float]] = {}
        self._only: dict[StreamName, Pair] = {
            pair[0]: pair for pair in sorted(carried) if pair[0] in IN_MEMORY
        }

    def hear(self, pair: Pair, connection: object, now: float) -> None:
        """Note that something of *pair* is said on *connection* for the first time."""
        self._by[pair] = connection
        if pair[0] in IN_MEMORY:
            self._only[pair[0]] = pair
        if self._writers.get(pair[1], (None,))[0] is not connection:
            self._writers[pair[1]] = connection, now

    def alone(self, pair: Pair, now: float) -> bool:
        """Return whether nobody but its writer is heard of the stream of *pair*."""
        return all(other == pair or other[0] != pair[0] for other in self.pairs(now))

    def pairs(self, now: float) -> set[Pair]:
        """Return the pairs."""
        found: set[Pair] = set()
        for pair, connection in self._by.items():
            writer, since = self._writers.get(pair[1], (connection, now))
            current = writer is connection or now < self._settled_at(pair[1], since)
            if current and self._only.get(pair[0], pair) == pair:
                found.add(pair)
        return found

    def _settled_at(self, instance: InstanceName, since: float) -> float:
        """Return by when a writer that is back since *since* has said what it writes."""
        listens_since = self._listens_since(instance)
        if listens_since is None:
            return since + UNSAID_S
        return min(since + UNSAID_S, max(since, listens_since) + SETTLE_S)


class Visit:
    """One connection of a known process that listens on the channel.

    Attributes:
        process: Who it is.
        pid: The number of the process, where it is known; otherwise 0.
        subscriber: Its subscription.
        delivered: What of it has arrived.
        place: Where it stood, while what it missed is looked up.
        given: What it was given.
        began_at: When it began to listen.
        replaced_at: When another connection of the same name came; None while none has.
        written_at: When it was last written down where it stands, not being at the head.
        parted: Up to where it had been given each pair when we closed the connection, and how
            many rows it was behind.
    """

    def __init__(
        self, process: str, pid: int, subscriber: Subscriber, delivered: Delivered, now: float
    ) -> None:
        self.process = process
        self.pid = pid
        self.subscriber = subscriber
        self.delivered = delivered
        self.place: Place | None = None
        self.given = Replayed.UNKNOWN
        self.began_at = now
        self.replaced_at: float | None = None
        self.written_at: float | None = None
        self.parted: tuple[dict[Pair, Token], int] | None = None


class Processes:
    """Gives processes what they missed.

    Args:
        reactor: For the time.
        stream_log: The log.
        hub: Where rows come from.
        intake: Where rows go.
        subscribers: Everybody who listens.
        places: Where those who are away stand; it is loaded, and closed in the end.
        bounds: What is replayed at most; may be changed at any time.

    Attributes:
        said: Of which pairs processes are told.
        replays: How often each was given, by outcome.
        on_given: Called with each process that listens, and what it is given.
    """

    def __init__(
        self,
        reactor: Reactor,
        stream_log: Log,
        hub: Hub,
        intake: RelayIntake,
        subscribers: Subscribers,
        places: Places,
        bounds: Bounds = Bounds(),  # noqa: B008 - it is immutable
    ) -> None:
        self.bounds = bounds
        self._reactor = reactor
        self._log = stream_log
        self._hub = hub
        self._intake = intake
        self._subscribers = subscribers
        self._places = places
        self._here: dict[str, Visit] = {}
        self._shared: set[str] = set()
        self._covered = Covered()
        self._looked_back = False
        #: The newest FEDERATION_ACK of each instance.
        self._acks: dict[InstanceName, Token] = {}
        self.on_given: Callable[[str, Replayed], object] = lambda process, given: None
        places.load({pair: stream_log.position(*pair) for pair in stream_log.pairs()})
        self.said = Said(places.said, self._listens_since)
        stream_log.add_listener(self._used)

    @property
    def _now(self) -> float:
        now: float = self._reactor.seconds()
        return now

    def _listens_since(self, instance: InstanceName) -> float | None:
        known = [name for name, own in self._places.instances.items() if own == instance]
        if not known:
            return 0.0
        return max(
            (self._here[name].began_at for name in known if name in self._here), default=None
        )

    def _used(self, block: Block) -> None:
        self._covered.add(block.stream, block.tokens)

    # -- coming ------------------------------------------------------------------------

    def come(self, process: str, pid: int, outlet: Outlet, transport: Any, label: str) -> Visit:
        """Let *process* listen: first to what it missed, if that can be had."""
        delivered = Delivered(outlet, transport)
        now = self._now
        before = self._here.get(process)
        place = self._places.take(process)
        if before is not None:
            place = self._place_of(before)
            before.replaced_at = now
        given = self._judge(place, pid, now)
        if process in self._shared:
            given = Replayed.UNKNOWN
        others = None if place is None or given is not Replayed.LINES else place.others
        subscriber = self._subscribers.add(
            outlet, None, label, delivered, others=others, hold=given is Replayed.LINES
        )
        visit = self._here[process] = Visit(process, pid, subscriber, delivered, now)
        if given is Replayed.LINES:
            visit.place = place
            visit.written_at = now
            run_in_background(self._replay, visit)
        else:
            self._places.at_head(process, pid)
            self._tell(visit, given, place)
        self._keep()
        return visit

    def _judge(self, place: Place | None, pid: int, now: float) -> Replayed:
        if place is None:
            return Replayed.UNKNOWN
        if pid and place.pid and pid != place.pid:
            return Replayed.BEGAN_ANEW
        if now - place.left_at > self.bounds.seconds:
            return Replayed.TOO_LONG
        if self._missed_rows(place) > self.bounds.rows:
            return Replayed.TOO_MANY
        return Replayed.LEFT_AT_ONCE if place.left_at_once else Replayed.LINES

    def _missed_rows(self, place: Place) -> int:
        return place.rows + self._intake.rows_taken - place.counted_at

    async def _replay(self, visit: Visit) -> None:
        place = visit.place
        assert place is not None
        given = Replayed.LINES
        try:
            starts = await self._starts(place)
        except (NotInLogError, LogError) as error:
            log.warning("bus.replay.impossible", process=visit.process, reason=str(error))
            given, starts = Replayed.NOT_IN_LOG, {}
        if not visit.subscriber.reader.live:
            return
        unsaid = unsaid_of(self._places.instances.get(visit.process, visit.process), starts)
        self._subscribers.begin(visit.subscriber, starts, unsaid)
        visit.place = None
        if unsaid is not None:
            self._reactor.callLater(UNSAID_S, self._speak_up, visit, unsaid)
        self._write_down(visit)
        self._tell(visit, given, place)

    async def _starts(self, place: Place) -> dict[Pair, Start]:
        """Return where a process goes on that stood at *place*."""
        if not self._looked_back:
            before = {pair: head.token for pair, head in self._hub.heads.items()}
            await look_back(self._log, before, self._covered)
            self._looked_back = True
        streams = {stream for stream, _ in place.stands}
        starts: dict[Pair, Start] = {}
        while ends := self._ends(streams, starts):
            # What is not in its place was first written meanwhile.
            stands = {pair: place.stands.get(pair, Stand(0)) for pair in ends}
            said = self.said.pairs(self._now)
            for pair, start in (await starts_of(self._log, stands, ends)).items():
                told = pair in said or start.missed
                starts[pair] = start._replace(told=told)
        return starts

    def _ends(self, streams: set[StreamName], starts: Container[Pair]) -> dict[Pair, End]:
        """Return where each pair of *streams* ends that is not in *starts*."""
        self._hub.flush()
        return {
            pair: End(head.token, self._covered.end(pair[0], head.token))
            for pair, head in self._hub.heads.items()
            if pair[0] in streams and pair not in starts
        }

    def _speak_up(self, visit: Visit, unsaid: Unsaid) -> None:
        """Tell a process of streams of which no row has come for a while."""
        if not visit.subscriber.reader.live or visit.subscriber.pushes.unsaid is not unsaid:
            return
        said = self.said.pairs(self._now)
        starts: dict[Pair, Start] = {}
        for pair, end in self._ends(unsaid.streams, ()).items():
            prev = unsaid.prev(pair)
            if pair in said and pair[1] != unsaid.own:
                starts[pair] = Start(end.token if prev is None else prev, end.covered, end.token)
        if not self._subscribers.speak_up(visit.subscriber, starts):
            self._reactor.callLater(1.0, self._speak_up, visit, unsaid)

    def speaks(self, process: str, pair: Pair, connection: object) -> None:
        """Note that *process*, empty if it is not known, says something of *pair*."""
        self.said.hear(pair, connection, self._now)
        if process:
            self._places.is_instance(process, pair[1])

    def _tell(self, visit: Visit, given: Replayed, place: Place | None) -> None:
        visit.given = given
        self.on_given(visit.process, given)
        metrics.BUS_REPLAYS.labels(given.value).inc()
        if place is not None:
            log.info(
                "bus.process.back",
                process=visit.process,
                given=given.value,
                away_s=round(self._now - place.left_at, 1),
                missed_rows=self._missed_rows(place),
            )

    # -- being here --------------------------------------------------------------------

    def spoke(self, visit: Visit) -> None:
        """Note that the client of *visit* said something.

        If another one of the same name is here, they are two: nobody knows who is who.
        """
        at = visit.replaced_at
        if at is None or self._now - at < SHARED_AFTER_S or visit.process in self._shared:
            return
        self._shared.add(visit.process)
        log.warning(
            "bus.process.shared_name",
            process=visit.process,
            reason="two that listen say this name: give each a name of its own, or none",
        )

    def sweep(self) -> None:
        """Write down where those stand who are not at the head."""
        now = self._now
        self._places.alive(self.said.pairs(now))
        for visit in self._here.values():
            self._write_down(visit)
        for _, place in self._places.away():
            if now - place.left_at > self.bounds.seconds:
                place.others = None
        self._keep()

    def _write_down(self, visit: Visit) -> None:
        if visit.place is not None:
            return  # that is written down, and nothing was given to it since
        now = self._now
        if visit.subscriber.reader.backlog is None:
            if visit.written_at is not None:
                visit.written_at = None
                self._places.at_head(visit.process, visit.pid)
        elif visit.written_at is None or now - visit.written_at >= WRITE_INTERVAL_S:
            visit.written_at = now
            self._places.stay(visit.process, self._place_of(visit))

    # -- leaving -----------------------------------------------------------------------

    def part(self, visit: Visit) -> None:
        """Note that the connection of *visit*, which is still subscribed, is being closed."""
        visit.parted = self._standing(visit)

    def _standing(self, visit: Visit) -> tuple[dict[Pair, Token], int]:
        reader = visit.subscriber.reader
        return self._hub.standing(reader), self._hub.lag(reader).rows

    def forget(self, visit: Visit) -> None:
        """Note that the client of *visit* listens no longer, and misses nothing."""
        visit.delivered.close()
        if self._here.get(visit.process) is visit:
            del self._here[visit.process]
            self._places.forget(visit.process)

    def leave(self, visit: Visit, *, by_itself: bool) -> None:
        """Note that the connection of *visit*, still subscribed unless it parted, is lost.

        Args:
            visit: What `come` returned.
            by_itself: Whether its client ended it, or the network, and not we.
        """
        place = self._place_of(visit)
        visit.delivered.close()
        if self._here.get(visit.process) is not visit:
            return  # another one has come in its place
        del self._here[visit.process]
        if visit.process in self._shared:
            self._shared.discard(visit.process)
            self._places.forget(visit.process)
            return
        place.left_at_once = (
            by_itself and visit.given is Replayed.LINES and self._now - visit.began_at < AT_ONCE_S
        )
        self._places.leave(visit.process, place)
        self._keep()

    def _place_of(self, visit: Visit) -> Place:
        """Return where the process of *visit* stands now."""
        if visit.place is not None:
            return visit.place  # it was given nothing yet
        subscriber = visit.subscriber
        standing, behind_rows = visit.parted or self._standing(visit)
        stands = {pair: Stand(token) for pair, token in standing.items()}
        stands.update(visit.delivered.under_way(subscriber.pusher.size_of))
        for pair in stands:
            if pair[0] == UNCOUNTED:
                stands[pair] = Stand(min(stands[pair].token, self._acked(visit.process, pair)))
        return Place(
            self._now,
            stands,
            behind_rows,
            self._intake.rows_taken,
            visit.pid,
            subscriber.next,
        )

    def acknowledge(self, instance: InstanceName, token: Token) -> None:
        """Note up to where *instance* has taken EDUs.

        Of as many as can be connected: one beyond that is served from where the last of all is.
        """
        if instance in self._acks or len(self._acks) < MAX_CONNECTIONS:
            self._acks[instance] = token

    def _acked(self, process: str, pair: Pair) -> Token:
        """Return up to where EDUs of *pair* have been taken: nobody else knows that."""
        acked = self._acks.get(process, min(self._acks.values(), default=None))
        return self._hub.heads[pair].token if acked is None else self._intake.ours(pair, acked)

    def _keep(self) -> None:
        self._subscribers.keep(any(p.others is not None for _, p in self._places.away()))

    def close(self) -> None:
        """Close the file, once everybody has left."""
        self._places.close()
