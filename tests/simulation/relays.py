"""Relays in a simulated world, over TCP and over a Redis that keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from tcprepl.app.relay import DOWNWARD, UPWARD, ReadOnly
from tcprepl.ephemeral.presence_peers import SyncsBelow
from tcprepl.ids import Pair
from tcprepl.protocol.commands import Command
from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.redis_source import RedisUpstream
from tcprepl.replication.relaying.state import Epoch, RelayState
from tcprepl.replication.relaying.tcp_source import TcpUpstream
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds
from tests import invariants
from tests.invariants import Row, Told
from tests.redis_world import FakeRedis
from tests.simulation.machines import ROWS, SERVER, LogMachine, Machine, Server, kept, retention

if TYPE_CHECKING:
    from tests.simulation.world import World


class Redis(Machine):
    """A Redis: who is not subscribed at the moment of a message never gets it."""

    kind = "redis"

    class _Joined:
        """What `FakeRedis` takes for the network that it is joined to."""

        factory: Any = None

    def begin(self) -> None:
        self.redis = FakeRedis(self._Joined())  # type: ignore[arg-type]
        assert self.endpoint("redis").listen(self.redis).called

    def stop(self) -> Deferred[Any]:
        stopped: Deferred[Any] = Deferred()
        self.process.callLater(0.1, stopped.callback, None)
        return stopped

    def lose(self, chance: Any) -> None:
        """Cut off a subscriber, as a Redis does whose buffers are full."""
        if self.redis.connections:
            chance.choice(self.redis.connections).transport.abortConnection()


class Relay(LogMachine):
    """``tcprepl relay``, as far as replication goes."""

    kind = "relay"
    retention = retention(Bounds(max_rows=300), states=True)

    def __init__(self, world: World, name: str, *, over_redis: bool = False) -> None:
        super().__init__(world, name)
        self.over_redis = over_redis
        self.streams = [name for name in ROWS if not over_redis or name != "alpha"]
        #: Where its upstream was when it first went away, after it had listened.
        self.began: dict[Pair, int] | None = None
        #: Every gap that it was told of.
        self.told: list[tuple[Pair, Gap]] = []
        if over_redis:
            self.kind = "relay of redis"

    def begin(self) -> None:
        process: Any = self.process
        self.relay_state = RelayState(self.disk.directory)
        self.relay_state.add_gap = self._note_gap  # type: ignore[method-assign]
        self.relay_state.begin_anew = self._note_anew  # type: ignore[method-assign]
        registry = relay_registry(self.relay_state.streams())
        self.open_log(registry, self.relay_state.gaps)
        self.intake = RelayIntake(process, self.log, registry, self.relay_state)
        # a process that cannot go on ends, and is started again
        self.intake.failed.addErrback(lambda _: self.process.callLater(0, self._ends))
        self.replication = ReplicationServer(process, self.log, registry, SERVER, self.name)
        self.intake.on_pair = self.replication.hub.announce
        for command in UPWARD:
            self.replication.on(command, self._up)
        listening = Deferred.fromCoroutine(self.replication.listen(self.endpoint(self.name)))
        assert listening.called
        self.serve_http(registry, ReadOnly(), self.replication)
        self.upstream: Any = self.make_upstream(registry)
        self.syncs = SyncsBelow(process, self.replication, self.upstream.send)
        self.syncs.start()
        self.upstream.start()

    def make_upstream(self, registry: Registry) -> Any:
        """Return where its rows come from."""
        process: Any = self.process
        kind = RedisUpstream if self.over_redis else TcpUpstream
        address = "redis" if self.over_redis else "server"
        return kind(
            process,
            self.endpoint(address),
            address,
            self.intake,
            registry,
            server_name=SERVER,
            on_command=self._down,
        )

    def _ends(self) -> None:
        self.world.saw("relay gives up", self.state())
        self.kill()

    def _up(self, command: Command, peer: Any) -> None:
        self.upstream.send(command)

    def _down(self, command: Command) -> None:
        if isinstance(command, DOWNWARD):
            self.replication.broadcast(command)

    def stop(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.site.drain()
        await self.upstream.stop()
        await self.syncs.stop()
        await self.replication.stop()
        await self.intake.close()
        await self.log.close()
        self.relay_state.close()

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        if self.disk.mood != "ok":
            return f"disk {self.disk.mood}"
        if not self.upstream.status().up:
            return "away from its upstream"
        return "committing" if self.threads[0].busy else "serving"

    def end_process(self, *, silent: bool = False) -> None:
        # what a relay over Redis has heard nothing of may have been before it came; not later
        if self.began is None and self.listened:
            truth = self.world.server.truth
            self.began = {pair: rows[-1][0] for pair, rows in truth.items() if rows}
        super().end_process(silent=silent)

    @property
    def listened(self) -> bool:
        """Whether it knows that it has listened to its upstream, with this directory."""
        state: RelayState | None = getattr(self, "relay_state", None)
        return state is not None and state._followed

    def _note_gap(self, pair: Pair, gap: Gap) -> None:
        if gap.cause is not Cause.RECORD:
            self.told.append((pair, gap))
        self.relay_state.__class__.add_gap(self.relay_state, pair, gap)

    def _note_anew(self, pair: Pair, *where: Any, gap: Gap, epoch: Epoch) -> None:
        self.told.append((pair, gap))
        RelayState.begin_anew(self.relay_state, pair, *where, gap=gap, epoch=epoch)

    @property
    def may_repeat(self) -> bool:
        return self.world.server.returned

    def check_beginning(self, pair: Pair, server: Server) -> None:
        """What was written since it went away has come, or was told as missing.

        Nothing can be said where tokens of several histories are about.
        """
        if self.began is None or self.forks or server.forks:
            return
        had = {token for token, _ in self.truth.get(pair, ())}
        had.update(
            token
            for known, gap in self.told
            if known == pair
            for token in range(gap.after + 1, gap.upto + 1)
        )
        began = self.began.get(pair, 0)
        lost = [t for t, _ in server.truth[pair] if began < t and t not in had]
        kept(f"{self.name} {pair}", [f"left out without a word: {lost[:5]}"] if lost else [])

    def _goes_back(
        self, same: dict[Pair, int], truth: Mapping[Pair, list[tuple[int, int]]]
    ) -> None:
        self.began = None
        super()._goes_back(same, truth)

    def check_upstream(self, server: Server) -> None:
        """It has what its upstream has, or a gap, as a reader of it has."""
        for pair in server.truth:
            if pair[0] not in self.streams:
                continue
            if self.over_redis and not server.log.position(*pair):
                continue  # it is not said there before the first row
            self.check_beginning(pair, server)
            offset, start = self.relay_state.epoch(pair)
            start = max(start, self.log.floor(*pair))
            where = f"{self.name} {pair} of its upstream"
            diary: list[Row | Told] = [Told(None, start - offset)]
            entries: list[tuple[int, int, Row | Told]] = [
                (token, 1, Row(token - offset, str(number)))
                for token, number in self.truth.get(pair, ())
                if token > start
            ]
            for known, gap in self.relay_state.gaps:
                if known == pair and gap.upto > start:
                    # a gap of what never came, and of what came and was damaged, may be one
                    came = [t for t, _ in self.truth.get(pair, ()) if gap.after < t <= gap.upto]
                    upto = came[0] - 1 if came else gap.upto
                    entries.append((gap.after, 2, Told(gap.after - offset, upto - offset)))
            diary += [entry for _, _, entry in sorted(entries, key=lambda entry: entry[:2])]
            kept(where, invariants.reader_faults(diary, server.history(pair)))
            head = server.log.position(*pair)
            kept(where, invariants.level_fault(self.log.position(*pair) - offset, head))
            if self.over_redis or server.reasons or self.reasons:
                self.reasons.add("upstream")
            else:
                kept(where, invariants.unfounded_faults(diary[1:], self.reasons))
