"""A bus in a simulated world, in Redis's place, and processes of Synapse over it.

What they write is in a database that nobody takes away from them, as Synapse's is. They publish
it, and lose that with their connections; what they make of what they hear, and where they have to
ask the database, is `tests.synapse_model`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from tcprepl.replication.bus.listener import BusListener
from tcprepl.replication.bus.places import Places
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.redis.resp import RespReader, encode
from tcprepl.streams.registry import Registry
from tests import invariants
from tests.simulation.machines import SERVER, Broken, Machine, Server, kept, row_for
from tests.simulation.relays import Relay
from tests.synapse_model import SynapseModel, Written

if TYPE_CHECKING:
    from tests.simulation.world import World

BUS_ADDRESS = "bus-redis"
#: Streams of Synapse, each with a sequence of tokens that its writers share, and the writers.
STREAMS = ("push_rules", "to_device")
WRITERS = ("s1", "s2")
#: How often a connection is asked whether it is there, and when it is given up.
PING_S = 15.0
GIVE_UP_S = 40.0
RETRY_S = 1.0


class Database:
    """What the processes of a Synapse have written.

    Attributes:
        written: The tokens of each pair.
        numbers: The row of each token, by stream.
    """

    def __init__(self) -> None:
        self.written: Written = {(stream, name): [] for stream in STREAMS for name in WRITERS}
        self.numbers: dict[str, dict[int, int]] = {stream: {} for stream in STREAMS}

    def write(self, stream: str, instance: str, number: int) -> int:
        """Keep a row, and return its token."""
        token = len(self.numbers[stream]) + 1
        self.numbers[stream][token] = number
        self.written[stream, instance].append(token)
        return token

    async def fetch(self, stream: str, instance: str, after: int, upto: int) -> CatchUpPage:
        """Return rows."""
        tokens = [t for t in self.written[stream, instance] if after < t <= upto]
        numbers = self.numbers[stream]
        return CatchUpPage([(t, row_for(numbers[t])) for t in tokens], upto, limited=False)


class Bus(Relay):
    """``tcprepl bus``, as far as replication goes."""

    def __init__(self, world: World, name: str, database: Database) -> None:
        super().__init__(world, name)
        self.kind = "bus"
        self.database = database

    def make_upstream(self, registry: Registry) -> Any:
        process: Any = self.process
        bus = BusListener(
            process,
            self.replication,
            self.intake,
            registry,
            server_name=SERVER,
            catch_up=self.database,
            on_command=self._down,
            places=Places(self.disk.directory, process.seconds),
        )
        listening = Deferred.fromCoroutine(bus.listen(self.endpoint(BUS_ADDRESS)))
        assert listening.called
        return bus

    def check_upstream(self, server: Server) -> None:
        """It holds what was written since it came, or a gap: the database has it all."""
        for pair, written in self.database.written.items():
            if not written:
                continue
            where = f"{self.name} {pair}"
            kept(where, invariants.level_fault(self.log.position(*pair), written[-1]))
            had = {token for token, _ in self.truth.get(pair, ())}
            gaps = [gap for known, gap in self.relay_state.gaps if known == pair]
            lost = [
                token
                for token in written
                if token > self.log.floor(*pair)
                and token not in had
                and not any(gap.after < token <= gap.upto for gap in gaps)
            ]
            kept(where, [f"neither held nor told as missing: {lost[:5]}"] if lost else [])


class _Link(Protocol):
    """A connection to the bus: it listens, or it speaks."""

    def __init__(self, owner: Synapse, listens: bool) -> None:
        self.owner = owner
        self.listens = listens
        self.reader = RespReader(SERVER.encode())
        self.heard_at = 0.0
        self.ping: Any = None

    def connectionMade(self) -> None:
        self.heard_at = self.owner.process.seconds()
        self.transport.write(encode(b"AUTH", self.owner.name.encode(), b"any"))
        if self.listens:
            self.owner.model.connect()
            self.transport.write(encode(b"SUBSCRIBE", SERVER.encode()))
        self._ping()

    def _ping(self) -> None:
        now = self.owner.process.seconds()
        if now - self.heard_at > GIVE_UP_S:
            self.transport.abortConnection()
            return
        self.transport.write(encode(b"PING"))
        self.ping = self.owner.process.callLater(PING_S, self._ping)

    def dataReceived(self, data: bytes) -> None:
        self.heard_at = self.owner.process.seconds()
        payloads, others = self.reader.feed(data)
        for payload in payloads:
            self.owner.heard(payload.decode())
        for other in others:
            if isinstance(other, list) and other[0] == b"subscribe":
                self.owner.say("REPLICATE")

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self.ping is not None and self.ping.active():
            self.ping.cancel()
        self.owner.lost(self)


class Synapse(Machine):
    """A process of a Synapse: it writes, and follows what the others write."""

    kind = "synapse"

    def __init__(self, world: World, name: str, database: Database) -> None:
        super().__init__(world, name)
        self.database = database
        self.model = self._model()
        self.links: dict[bool, _Link | None] = {}
        self.fetched = 0

    def _model(self) -> SynapseModel:
        return SynapseModel(self.name, self.database.written, set(STREAMS))

    def begin(self) -> None:
        self.model = self._model()
        self.links = {}
        self.stopping = False
        for listens in (True, False):
            self._connect(listens)

    def _connect(self, listens: bool) -> None:
        if self.stopping:
            return
        life = self.lives
        factory = Factory.forProtocol(partial(_Link, self, listens))
        connecting = self.endpoint(BUS_ADDRESS).connect(factory)

        def connected(link: _Link) -> None:
            if life != self.lives or self.stopping:
                link.transport.abortConnection()
                return
            self.links[listens] = link
            if not listens:
                self._say_where()

        def refused(failure: Failure) -> None:
            if life == self.lives:
                self.process.callLater(RETRY_S, self._connect, listens)

        _ = connecting.addCallbacks(connected, refused)

    def lost(self, link: _Link) -> None:
        """A connection has ended."""
        self.links[link.listens] = None
        if not self.stopping:
            self.process.callLater(RETRY_S, self._connect, link.listens)

    def say(self, *lines: str) -> None:
        """Publish lines, if there is a connection."""
        link = self.links.get(False)
        if link is not None:
            for line in lines:
                link.transport.write(encode(b"PUBLISH", SERVER.encode(), line.encode()))

    def _say_where(self) -> None:
        for (stream, instance), tokens in self.database.written.items():
            if instance == self.name:
                at = max(tokens, default=0)
                self.say(f"POSITION {stream} {instance} {at} {at}")

    def heard(self, line: str) -> None:
        """Take a line."""
        if line.strip() == "REPLICATE":  # it says it with a space behind
            self._say_where()
            return
        before = len(self.model.fetches)
        try:
            self.model.hear(line)
        except AssertionError as error:
            raise Broken(self.name, [f"hears what it cannot: {error}"]) from error
        if len(self.model.fetches) > before:
            self.world.saw("synapse asks its database", self.state())

    def write(self, stream: str, number: int) -> None:
        """Write a row, and publish it."""
        token = self.database.write(stream, self.name, number)
        self.say(f"RDATA {stream} {self.name} {token} {row_for(number).decode()}")

    def check(self) -> None:
        """It has what the others wrote."""
        missing = [f"missed: {pair} {tokens[:5]}" for pair, tokens in self.model.missing().items()]
        kept(self.name, missing)

    def stop(self) -> Deferred[Any]:
        self.stopping = True
        for link in list(self.links.values()):
            if link is not None:
                link.transport.loseConnection()
        return succeed(None)

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        return "listening" if self.links.get(True) else "away"
