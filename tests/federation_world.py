"""A world for a federation sender: writer, disk and remote servers on a fake clock.

Everything is decided by one seed. The sender may be killed at any moment: what the disk had
committed stays, all else is gone. Remote servers fail in every way there is, and check what
they are sent.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.sending.turns import Place
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import PresenceState, build_edu, edu_row, presence_row
from tcprepl.federation.wire.failures import NotReached, RequestFailed
from tcprepl.federation.wire.transaction import MIN_TRANSACTION_BYTES, TransactionLimits

US = "here.example"
START_S = 1_700_000_000.0
#: Waits short enough for hours of failure to pass in a test.
QUICK = BackoffPolicy(quick_ms=(1_000, 4_000), first_ms=30_000, cap_ms=600_000)


class RawRows:
    """Rows as the replication client delivers them."""

    def __init__(self, *raw: bytes) -> None:
        self.raw = list(raw)


class Disk:
    """Runs the outbox's work a little later, as a thread would; may die, or refuse."""

    def __init__(self, clock: Clock, chance: random.Random, delay_s: float = 0.02) -> None:
        self.clock = clock
        self.chance = chance
        self.delay_s = delay_s
        self.dead = False

    def __call__(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Run *work* a little later, unless the process has died by then."""
        done: Deferred[Any] = Deferred()
        self.clock.callLater(self.chance.uniform(0, self.delay_s), self._run, work, done)
        return done

    def _run(self, work: Callable[[], Any], done: Deferred[Any]) -> None:
        if self.dead:
            return
        try:
            result = work()
        except Exception:  # noqa: BLE001  # as a thread would
            done.errback(Failure())
        else:
            done.callback(result)


class Remote:
    """A remote server: takes transactions, or fails in the ways of *mode*.

    Attributes:
        mode: ok, or how it fails.
        accepted: Transactions by id, in order.
        poison: Numbers of EDUs that make it refuse the transaction that holds them.
        poison_answer: How it does that.
        deliveries: (edu_type, content) of each EDU in the order of their acceptance.
    """

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.mode = "ok"
        self.max_edus = 100
        self.poison: set[int] = set()
        self.poison_answer = Answer(400, b'{"errcode":"M_BAD_JSON","error":"poison"}')
        #: Answers to everything, or to single transactions, instead of what *mode* says.
        self.refuse_all: Answer | None = None
        self.refuse_only: dict[str, Answer] = {}
        #: Every id that was seen.
        self.ids: dict[str, None] = {}
        self.carriers: dict[tuple[str, int], str] = {}
        self.bodies: dict[str, bytes] = {}
        self.accepted: list[str] = []
        self.deliveries: list[tuple[str, dict[str, Any]]] = []
        self.requests = 0
        self.under_way = 0

    def take(self, transaction_id: str, body: bytes) -> None:
        """Accept a transaction; a repeated one must be equal and counts once."""
        known = self.bodies.setdefault(transaction_id, body)
        if known != body:
            self.world.wrong.append(f"{transaction_id} came with another body")
        if transaction_id in self.accepted:
            return
        self.accepted.append(transaction_id)
        for edu in json.loads(body).get("edus", ()):
            self.deliveries.append((edu["edu_type"], edu["content"]))
            if "n" in edu["content"]:
                carrier = self.carriers.setdefault(
                    (edu["edu_type"], edu["content"]["n"]), transaction_id
                )
                if carrier != transaction_id:
                    self.world.wrong.append(f"{edu} came by {carrier} and {transaction_id}")

    def answer(self, transaction_id: str, body: bytes) -> Answer:
        """Return the answer to one request, or fail."""
        self.requests += 1
        decoded = json.loads(body)
        edus = decoded.get("edus", [])
        assert 0 < len(edus) <= 100
        assert len(body) <= self.world.limits.max_bytes
        assert decoded["origin"] == US
        chance = self.world.chance
        self.ids[transaction_id] = None
        if self.refuse_all is not None:
            return self.refuse_all
        if transaction_id in self.refuse_only:
            return self.refuse_only[transaction_id]
        # Who refuses a body has seen the id: a repeated transaction gets the first answer.
        repeated = transaction_id in self.accepted
        if not repeated and any(edu["content"].get("n") in self.poison for edu in edus):
            return self.poison_answer
        if self.mode == "ok":
            self.take(transaction_id, body)
            return Answer(200, b'{"pdus":{}}')
        if self.mode == "flaky":
            mode = chance.choice(
                ["ok", "500", "lost", "reset", "dead", "429", "413", "502", "401", "404", "page"]
            )
            self.mode, before = mode, self.mode
            try:
                return self.answer(transaction_id, body)
            finally:
                self.mode = before
        if self.mode == "500":
            return Answer(500, b"{}")
        if self.mode == "429":
            return Answer(429, b'{"errcode":"M_LIMIT_EXCEEDED"}', chance.randrange(0, 20_000))
        if self.mode == "413":
            if len(edus) > self.max_edus and not repeated:
                return Answer(413, b"<html>too large</html>")
            self.take(transaction_id, body)
            return Answer(200, b'{"pdus":{}}')
        if self.mode == "401":
            return Answer(401, b'{"errcode":"M_UNAUTHORIZED"}')
        if self.mode == "404":
            return Answer(404, b"<html>no such page</html>", None, "text/html")
        if self.mode == "502":
            if chance.random() < 0.5:
                self.take(transaction_id, body)
            return Answer(502, b"<html>bad gateway</html>", None, "text/html")
        if self.mode == "page":
            return Answer(200, b"<html>this domain is for sale</html>", None, "text/html")
        if self.mode == "reset":
            raise RequestFailed("the connection was reset")
        if self.mode == "lost":
            self.take(transaction_id, body)
            raise RequestFailed("the answer was lost")
        assert self.mode == "dead"
        raise NotReached("connection refused")


class Network:
    """The sender's transport: answers come after a while, or never (a hang times out)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        """Send one, and wait for the answer."""
        world = self.world
        remote = world.remote(destination)
        assert not remote.under_way, "two transactions at once"
        remote.under_way += 1
        world.under_way += 1
        assert world.under_way <= world.max_concurrent
        try:
            if remote.mode == "hang":
                await self._pass(60.0)
                raise RequestFailed("no answer within 60 s")
            await self._pass(world.chance.uniform(0.001, 0.3))
            return remote.answer(transaction_id, body)
        finally:
            if not self.dead:
                remote.under_way -= 1
                world.under_way -= 1

    async def _pass(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        self.world.clock.callLater(seconds, waiting.callback, None)
        await waiting


class World:
    """Everything around a sender, and what it should have done."""

    def __init__(
        self,
        path: Path,
        seed: int,
        *,
        destinations: int = 6,
        max_concurrent: int = 3,
        max_edus: int = 100,
        backoff: BackoffPolicy = QUICK,
    ) -> None:
        self.backoff = backoff
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.clock.advance(START_S)
        self.path = path
        self.max_concurrent = max_concurrent
        self.limits = TransactionLimits(edus=max_edus, max_bytes=MIN_TRANSACTION_BYTES)
        self.remotes: dict[str, Remote] = {}
        self.names = [f"remote{n}.example" for n in range(destinations)]
        self.under_way = 0
        self.rows: list[tuple[int, bytes]] = []
        self.acked = 0
        #: Unkeyed EDUs that have to arrive: (destination, number).
        self.wanted: set[tuple[str, int]] = set()
        #: The newest of each key: (destination, type, key) -> number, time in s.
        self.newest: dict[tuple[str, str, str], tuple[int, float]] = {}
        self.number = 0
        #: What remotes saw that must not be; an exception would only be one more failure.
        self.wrong: list[str] = []
        self.kills = 0
        self.refuse_disk = False
        self.disk_has_refused = False
        self.delivered_upto = 0
        self.boot()

    def remote(self, name: str) -> Remote:
        """Return the remote server called *name*."""
        found = self.remotes.get(name)
        if found is None:
            found = self.remotes[name] = Remote(name, self)
        return found

    # -- the sender's process -----------------------------------------------------------------

    def boot(self) -> None:
        """Start the sender's process."""
        self.disk = Disk(self.clock, self.chance)
        self.network = Network(self)
        self.outbox = Outbox(self.path, self.disk)
        # The fake process dies, the machine does not: waiting for the real disk proves nothing.
        self.outbox._connection.execute("PRAGMA synchronous=OFF")
        self._refusable(self.outbox)
        self.sender = FederationSender(
            self.clock,
            self.outbox,
            self.network,
            US,
            shard=Shard("fed1", ()),
            limits=self.limits,
            backoff=self.backoff,
            max_concurrent=self.max_concurrent,
            acknowledge=self.acknowledge,
            chance=random.Random(self.chance.random()),
        )
        self.sender.start()
        stored = self.outbox.positions().get(("federation", "master"), 0)
        # What was acknowledged may be gone at the writer: it has to be on disk here.
        assert stored >= self.acked
        self.delivered_upto = stored
        self.deliver()

    def _refusable(self, outbox: Outbox) -> None:
        commit = outbox._in_one

        def refusing(ops: Any) -> Any:
            if self.refuse_disk:
                self.disk_has_refused = True
                raise sqlite3.OperationalError("database or disk is full")
            return commit(ops)

        outbox._in_one = refusing  # type: ignore[method-assign]

    def kill(self) -> None:
        """Kill the sender's process: only what is committed stays."""
        self.kills += 1
        self.disk.dead = True
        self.network.dead = True
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()
        self.outbox._connection.close()
        self.outbox._lock.release()
        self.under_way = 0
        for remote in self.remotes.values():
            remote.under_way = 0
        for live, source in self.sender._sources:
            live.remove_source(source)

    def acknowledge(self, instance: str, token: int) -> None:
        """Take an acknowledgement: the rows below it are gone at the writer."""
        assert instance == "master"
        assert token <= self.rows[-1][0]
        self.acked = max(self.acked, token)

    # -- the writer ---------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish one random EDU and let the sender read it."""
        self.number += 1
        number = self.number
        destination = self.chance.choice(self.names)
        kind = self.chance.randrange(10)
        now_s = self.clock.seconds()
        if kind < 4:
            content = {"n": number, "pad": "x" * self.chance.randrange(200)}
            row = edu_row(build_edu(US, destination, "m.direct_to_device", content))
            self.wanted.add((destination, number))
        elif kind < 5:
            row = edu_row(build_edu(US, destination, "m.other", {"n": number}))
            self.wanted.add((destination, number))
        elif kind < 9:
            edu_type = self.chance.choice(["m.receipt", "m.typing", "m.device_list_update"])
            key = f"key{self.chance.randrange(4)}"
            edu = build_edu(US, destination, edu_type, {"n": number, "key": key}, (key,))
            row = edu_row(edu)
            self.newest[destination, edu_type, key] = number, now_s
        else:
            user = f"@user{self.chance.randrange(3)}:{US}"
            state = PresenceState(user, "online", 0, 0, 0, str(number), True)
            others = self.chance.sample(self.names, 2)
            row = presence_row(state, others)
            for other in others:
                self.newest[other, "m.presence", user] = number, now_s
        self.rows.append((len(self.rows) + 1, row))
        self.deliver()

    def deliver(self) -> None:
        """Hand the sender the rows that it has not read."""
        for token, row in self.rows[self.delivered_upto :]:
            self.sender.intake.handle_rows("federation", "master", token, RawRows(row))
        self.delivered_upto = len(self.rows)

    # -- time ---------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass, from one event to the next."""
        end = self.clock.seconds() + seconds
        while True:
            calls = self.clock.getDelayedCalls()
            due = min((call.getTime() for call in calls), default=None)
            if due is None or due > end:
                break
            # Set, not advanced: so many seconds since 1970 cannot be added to exactly.
            self.clock.rightNow = max(due, self.clock.rightNow)
            self.clock.advance(0)
            self.check_running()
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def heal(self) -> None:
        """End every fault, and let everything settle."""
        self.refuse_disk = False
        for remote in self.remotes.values():
            remote.mode = "ok"
            remote.poison = set()
        for _ in range(60):
            self.run(120)
            for name in self.names:
                # A remote that refuses at random gets the innocent into quarantine.
                _ = Deferred.fromCoroutine(self.sender.retry(name, quarantined=True))
            self.run(120)
            if not self.sender.pending():
                break

    # -- what has to be true ------------------------------------------------------------------

    def check_running(self) -> None:
        """Check what has to be true at any time."""
        sender = self.sender
        held = 0
        for destination in sender.destinations.values():
            if destination.queue:
                held += len(destination.queue)
                waits = sender._turns.place(destination) is Place.WAITING
                assert not (destination.backoff.failures and waits)
        assert held == sender._attempts.held
        assert len(sender._running) <= self.max_concurrent
        # One timer for all that sleep, one for the sweep, one for the intake; the rest is ours.
        # (A disk that refuses is asked again, by a timer for each thing to write.)
        assert self.disk_has_refused or len(self.clock.getDelayedCalls()) <= 5 + self.max_concurrent

    def check_settled(self) -> None:
        """Check that everything arrived that had to, each EDU by one transaction id."""
        assert not self.wrong
        assert self.acked == len(self.rows)
        arrived: set[tuple[str, int]] = set()
        last: dict[tuple[str, str, str], int] = {}
        for name, remote in self.remotes.items():
            assert len(set(remote.accepted)) == len(remote.accepted)
            for edu_type, content in remote.deliveries:
                if edu_type == "m.presence":
                    for push in content["push"]:
                        last[name, edu_type, push["user_id"]] = int(push["status_msg"])
                elif "key" in content:
                    last[name, edu_type, content["key"]] = content["n"]
                else:
                    arrived.add((name, content["n"]))
        assert self.wanted <= arrived
        lifetime_s = {"m.typing": 60.0, "m.presence": 600.0}
        for key, (number, _sent_s) in self.newest.items():
            if key[1] in lifetime_s:
                assert last.get(key, 0) <= number
            else:
                assert last[key] == number, key
        assert self.sender.pending() == 0
        for table in ("edus", "journal"):
            rows = self.outbox._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            assert rows == 0, table
