"""Federation senders in a simulated world, and the servers that they send to."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.answer import Answer, Meaning
from tcprepl.federation.wire.failures import RequestFailed
from tcprepl.federation.wire.transaction import MIN_TRANSACTION_BYTES, TransactionLimits
from tcprepl.protocol.commands import Command, FederationAckCommand, RemoteServerUpCommand
from tcprepl.protocol.dialects import NATIVE
from tcprepl.replication.following.client import ReplicationClient
from tests import invariants
from tests.federation_world import QUICK, US, Remote
from tests.simulation.machines import Machine, Server, kept

if TYPE_CHECKING:
    from tests.simulation.operators import Copy, StoredEdus
    from tests.simulation.world import World

#: How remote servers may behave.
MODES = (
    *("ok", "ok", "500", "502", "429", "hang", "reset", "lost", "dead"),
    *("413", "flaky", "401", "404", "page"),
)
#: Types of which only the newest of each key counts, and which never grow too old.
KEYED = ("m.receipt", "m.device_list_update")
KEYS = ("k0", "k1")
MAX_CONCURRENT = 3


class Remotes:
    """The other servers, and what they should have got.

    Attributes:
        said: EDUs that somebody tried to queue: number -> where it goes.
        wanted: Those without a key that were answered: destination -> number -> token.
        newest: The newest that was answered: (destination, type, key) -> number, token.
        doubted: Transactions of which nobody knew at some time whether they had arrived.
        overtaken: EDUs that others may have passed: destination -> numbers.
        tokens: Those that were answered: number -> token.
        may_be_twice: Those that may come twice, by what an operator did.
        unsettled: (destination, type, key) of which an older one may arrive last, until all that
            waits has been sent.
    """

    limits = TransactionLimits(edus=20, max_bytes=MIN_TRANSACTION_BYTES)

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = [f"remote{number}.example" for number in range(4)]
        self.by_name = {name: Remote(name, self) for name in self.names}  # type: ignore[arg-type]
        self.wrong: list[str] = []
        self.said: dict[int, str] = {}
        self.wanted: dict[str, dict[int, int]] = {name: {} for name in self.names}
        self.newest: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.doubted: set[str] = set()
        self.overtaken: dict[str, set[int]] = {name: set() for name in self.names}
        self.tokens: dict[int, int] = {}
        self.may_be_twice: set[int] = set()
        self.unsettled: set[tuple[str, str, str]] = set()

    @property
    def chance(self) -> random.Random:
        """What a `Remote` decides by."""
        return self.world.universe.chance

    def queue(self, server: Server, chance: random.Random) -> None:
        """Queue an EDU."""
        number = len(self.said)
        destination = chance.choice(self.names)
        self.said[number] = destination
        content: dict[str, Any] = {"n": number, "pad": "x" * chance.randrange(100)}
        if chance.random() < 0.6:
            answered = server.send_queue.build_and_send_edu(
                destination, "m.direct_to_device", content
            )
            key = ("", "")
        else:
            key = (chance.choice(KEYED), chance.choice(KEYS))
            content["key"] = key[1]
            answered = server.send_queue.build_and_send_edu(destination, key[0], content, key[1:])

        def note(answer: Any) -> None:
            self.tokens[number] = answer.last
            if key[0]:
                self.newest[destination, *key] = number, answer.last
            else:
                self.wanted[destination][number] = answer.last

        _ = answered.addCallbacks(note, lambda _: None)

    def note_answer(
        self, destination: str, transaction_id: str, body: bytes, answer: Answer
    ) -> None:
        """Note whom others may pass after this answer (protocol.md section 14.4)."""
        edus = json.loads(body)["edus"]
        meaning = answer.meaning()
        refused = meaning in (Meaning.REFUSED, Meaning.DENIED)
        if meaning is Meaning.UNCLEAR:
            self.doubted.add(transaction_id)
        if (
            meaning is Meaning.UNCLEAR
            or (refused and len(edus) == 1)
            or (meaning is Meaning.DENIED and transaction_id in self.doubted)
        ):
            self.overtaken[destination].update(edu["content"]["n"] for edu in edus)

    def voided(self, upto: int) -> None:
        """The writer's log was put back to *upto*: what was queued above may be lost."""
        for name, wanted in self.wanted.items():
            self.wanted[name] = {n: token for n, token in wanted.items() if token <= upto}
        self.newest = {key: found for key, found in self.newest.items() if found[1] <= upto}
        self.tokens = {n: token for n, token in self.tokens.items() if token <= upto}

    def lost(self, names: Collection[str], after: int, upto: int) -> None:
        """A sender was told that it lacks what is in ``(after, upto]``, of what is for *names*."""
        for name in names:
            wanted = self.wanted[name]
            self.wanted[name] = {n: t for n, t in wanted.items() if not after < t <= upto}
        self.newest = {
            key: found
            for key, found in self.newest.items()
            if key[0] not in names or not after < found[1] <= upto
        }

    def may_be_passed(self, kept: StoredEdus) -> None:
        """What waits in an outbox is sent, but perhaps behind what was queued later."""
        for (name, number), key in kept.edus.items():
            self.overtaken[name].add(number)
            if key is not None:
                self.unsettled.add((name, *key))

    def may_be_twice_above(self, token: int, names: Collection[str]) -> list[tuple[str, int]]:
        """What is above *token* and for one of *names* may be taken twice; return what that is."""
        below = max((n for n, known in self.tokens.items() if known <= token), default=-1)
        found = [(name, n) for n, name in self.said.items() if n > below and name in names]
        self.may_be_twice.update(number for _, number in found)
        return found

    def purged(self, name: str) -> None:
        """An operator has had everything for *name* forgotten."""
        self.wanted[name].clear()
        self.newest = {key: found for key, found in self.newest.items() if key[0] != name}

    def heal(self) -> None:
        """Let all of them take everything."""
        for remote in self.by_name.values():
            remote.mode = "ok"
            remote.poison = set()

    def check(self, *, once: bool) -> None:
        """They have got what they had to, and nothing else."""
        # what came by two transactions came twice, which is counted below
        wrong = [text for text in self.wrong if " came by " not in text]
        kept("remotes", [f"of a remote: {text}" for text in wrong[:3]])
        last: dict[tuple[str, str, str], int] = {}
        had: dict[str, set[int]] = {}
        for name, remote in self.by_name.items():
            loose = []
            for edu_type, content in remote.deliveries:
                if "key" in content:
                    last[name, edu_type, content["key"]] = content["n"]
                else:
                    loose.append(content["n"])
            said = [number for number, destination in self.said.items() if destination == name]
            taken = [content["n"] for _, content in remote.deliveries]
            had[name] = set(taken)
            faults = invariants.remote_faults(
                (), taken, said, self.wanted[name], once=once, may_be_twice=self.may_be_twice
            )
            kept(name, faults)
            if once:
                kept(name, invariants.lane_faults(loose, self.overtaken[name]))
        stale = [
            f"{key} {last.get(key)}, {number} was queued"
            for key, (number, _) in self.newest.items()
            if last.get(key, -1) < number and not (key in self.unsettled and number in had[key[0]])
        ]
        kept("remotes", [f"not the newest of its key: {text}" for text in stale[:3]])
        for key in self.unsettled:  # nothing waits any more that could arrive last
            self.newest.pop(key, None)
        self.unsettled.clear()


class Transport:
    """How a sender's transactions leave; what is answered comes after a while."""

    def __init__(self, machine: Sender) -> None:
        self.machine = machine
        self.under_way: set[str] = set()

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        """Send one, and wait for the answer."""
        world = self.machine.world
        remote = world.remotes.by_name[destination]
        if destination in self.under_way or len(self.under_way) >= MAX_CONCURRENT:
            world.remotes.wrong.append(f"{len(self.under_way)} at once, one to {destination}")
        self.under_way.add(destination)
        if not transaction_id.startswith(self.machine.sender._attempts._prefix):
            world.remotes.doubted.add(transaction_id)  # it was begun before a crash
        world.saw(f"transaction, remote {remote.mode}", self.machine.kind)
        try:
            if remote.mode == "hang":
                await self._pass(60.0)
                raise RequestFailed("no answer within 60 s")
            await self._pass(world.universe.chance.uniform(0.001, 0.3))
            answer = remote.answer(transaction_id, body)
            world.remotes.note_answer(destination, transaction_id, body, answer)
            return answer
        except RequestFailed:
            world.remotes.doubted.add(transaction_id)
            raise
        finally:
            self.under_way.discard(destination)

    async def _pass(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        self.machine.process.callLater(seconds, waiting.callback, None)
        await waiting


class Sender(Machine):
    """``tcprepl federation-sender``, for its share of the destinations.

    One that was taken away runs without a writer, and sends what it has.

    Attributes:
        owned: Destinations that have been in its share.
        copies: Copies of its directory, by the same list of senders.
        was_put_back: Whether one of them was put in the place of its directory.
    """

    kind = "sender"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.outbox: Any = None
        self.owned: set[str] = set()
        self.copies: list[Copy] = []
        self.was_put_back = False

    @property
    def is_empty(self) -> bool:
        """Whether it was taken away and has sent all that it had."""
        if not self.up or self.process.frozen or self.name in self.world.sender_names:
            return False
        destinations = self.sender.destinations.values()
        return not any(one.has_work or one.quarantined for one in destinations)

    def begin(self) -> None:
        listed = self.name in self.world.sender_names
        shard = self.shard = Shard(self.name, self.world.sender_names if listed else ())
        if listed:
            self.owned.update(filter(shard.owns, self.world.remotes.names))
        process: Any = self.process
        thread = self.thread()

        def run(work: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()
            thread.submit(
                work,
                lambda result, error: done.callback(result if error is None else Failure(error)),
            )
            return done

        self.outbox = Outbox(self.disk.directory / "outbox.sqlite", run)
        self.sender = FederationSender(
            process,
            self.outbox,
            Transport(self),
            US,
            shard=shard,
            limits=Remotes.limits,
            backoff=QUICK,
            max_concurrent=MAX_CONCURRENT,
            acknowledge=self._acknowledge,
            chance=random.Random(self.world.universe.chance.getrandbits(32)),
        )
        intake = self.sender.intake
        self.client = ReplicationClient(
            process,
            self.endpoint("server" if listed else "nowhere"),
            ["federation"],
            intake.handle_rows,
            positions=intake,
            name=self.name,
            server_name=US,
            since="start",
            on_reset=self._on_reset,
            on_position=intake.handle_position,
            on_command=self._on_command,
            on_connected=self._on_connected,
            join_batches=True,
        )
        self.sender.start()
        self.client.startService()

    def _acknowledge(self, instance: str, token: int) -> None:
        if self.client.connected:
            self.client.send(FederationAckCommand(self.name, token))

    def _on_connected(self, client: ReplicationClient) -> None:
        self.sender.intake.canonical = client.dialect == NATIVE
        self.sender.intake.connected(client.incarnation)

    def _on_reset(self, stream: str, instance: str, known: int | None, token: int) -> None:
        if known is not None and token > known:
            if not self.was_put_back and not self.world.server.forks:
                self.world.remotes.wrong.append(f"told as lost for no reason: ({known}, {token}]")
            self.world.saw("outbox put back", "rows are gone, and told")
            owned = list(filter(self.shard.owns, self.world.remotes.names))
            self.world.remotes.lost(owned, known, token)
        self.sender.intake.handle_reset(stream, instance, known, token)

    def _on_command(self, command: Command) -> None:
        if isinstance(command, RemoteServerUpCommand):
            self.sender.remote_server_up(command.server)

    def end_process(self, *, silent: bool = False) -> None:
        if self.outbox is not None:
            with suppress(OSError):  # it was stopped in order
                self.outbox._lock.release()
            self.outbox = None
        super().end_process(silent=silent)

    def stop(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.client.stopService()
        await self.sender.stop()
        outbox, self.outbox = self.outbox, None
        await outbox.close()

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        if self.disk.mood != "ok":
            return f"disk {self.disk.mood}"
        if self.sender._running:
            return "sending"
        return "with EDUs that wait" if self.sender.pending() else "with nothing to do"

    def retry_everything(self) -> None:
        """Try everything now, also what was refused."""
        for name in self.world.remotes.names:
            if name in self.owned:
                _ = self.sender.resume(name).addErrback(lambda _: None)
                retried = Deferred.fromCoroutine(self.sender.retry(name, quarantined=True))
                _ = retried.addErrback(lambda _: None)
