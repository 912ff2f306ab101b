"""The world with federation: who sends to other servers, and those servers."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from tcprepl.federation.sending.sharding import responsible_sender
from tcprepl.ids import InstanceName, ServerName
from tests import invariants
from tests.harness import TCPREPL, environment, wait_until
from tests.https_remote import OK, HttpsRemote, Reply, matrix_error
from tests.invariants import Purge
from tests.ports import free_port
from tests.torture.layouts import ServeWorld
from tests.torture.publishing import EduPublisher
from tests.torture.world import NAME, READY_S

#: Of the first and the last the second sender takes care, of the other the first.
REMOTES = ("r1.example", "r2.example", "r3.example")
#: The chance that a sender is killed in what an operator has it do, who then asks again.
KILL_ASKED = 0.4
#: The same where nobody knows then how much was thrown away, and little can be compared.
KILL_PURGING = 0.2
#: How many EDUs are queued before a purge.
WAITING = 5
#: The chance that it is killed when it has paused a destination, which it has to know later.
KILL_PAUSED = 0.6
#: What a remote says that has not taken it, and asks for no time.
DENIED = (500, 502)


class TcpWorld(ServeWorld):
    """A server, a relay of it, workers at both, a producer, two senders and their remotes."""

    layout = "tcp"

    def build_rest(self) -> None:
        """Add the others."""
        self.add_worker("worker-twisted", "twisted", self.through(self.port))
        self.add_worker("worker-asyncio", "asyncio", self.through(self.port))
        at_relay = self.add_relay_of("relay", self.through(self.port))
        self.add_worker("worker-relay", "async-for", at_relay, at_relay=True)
        self.add_producer()
        self._add_senders()

    def _add_senders(self) -> None:
        authority = trustme.CA()
        ca = self.where / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        key = self.where / "signing.key"
        shutil.copy(self.data / "signing.key", key)
        self.remotes: dict[str, HttpsRemote] = {}
        #: How often each has refused an EDU alone.
        self.refused: dict[str, Counter[int]] = {name: Counter() for name in REMOTES}
        #: What each had seen when it was paused; those that are.
        self.paused: dict[str, int] = {}
        #: What went with each purge of a destination.
        self.purges: dict[str, list[Purge]] = {name: [] for name in REMOTES}
        for name in REMOTES:
            remote = self.remotes[name] = HttpsRemote(self.where, name, authority, free_port())
            remote.reply = self._failing(name, random.Random(self.chance.random()))
            remote.__enter__()
        for sender in self.senders:
            argv: list[str | Path] = [*TCPREPL, "federation-sender", "--name", sender]
            argv += ["--from", self.through(self.port), "--server-name", NAME]
            argv += ["--senders", ",".join(self.senders), "--data", self._outbox(sender)]
            argv += ["--signing-key", key, "--ca", ca, "--allow-private"]
            argv += ["--retry-first", "0.3", "--retry-cap", "1"]
            for remote in self.remotes.values():
                argv += ["--resolve", f"{remote.name}={self.through(remote.port)}"]
            self.add(sender, *argv)
        self.edus = EduPublisher(self.url, self.seed, REMOTES, 0.1)
        self.publishers.append(self.edus)

    def _outbox(self, sender: str) -> Path:
        return self.where / f"{sender}-data"

    def _sender_of(self, remote: str) -> str:
        sender = responsible_sender(ServerName(remote), list(map(InstanceName, self.senders)))
        assert sender is not None
        return sender

    def _failing(self, name: str, chance: random.Random) -> Callable[[str, list[Any]], Reply]:
        """Return how a remote answers, which fails now and then as long as anything does."""
        taken: set[str] = set()

        def reply(transaction_id: str, edus: list[Any]) -> Reply:
            what = 0.0 if self.settled or transaction_id in taken else chance.random()
            if what < 0.85:
                taken.add(transaction_id)
                return OK
            if what < 0.9:
                return None
            status = chance.choice((429, 500, 502, 503))
            if status in DENIED and len(edus) == 1:
                self.refused[name][edus[0]["content"]["n"]] += 1
            return matrix_error(status)

        return reply

    def close(self) -> None:
        """End what is no actor."""
        super().close()
        for remote in getattr(self, "remotes", {}).values():
            remote.__exit__(None, None, None)

    # -- what an operator of senders does ------------------------------------------------------

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what an operator does."""
        return [*super().operations(), ("pause", self.pause), ("purge", self.purge)]

    def pause(self) -> None:
        """Pause a destination, whose sender may be killed then; resume others that are paused."""
        before = list(self.paused)
        name = self.chance.choice([name for name in REMOTES if name not in before])
        self._disturb(name)
        self._fed("pause", name)
        self.paused[name] = len(self.remotes[name].seen)
        self.tally["destinations paused"] += 1
        if self.chance.random() < KILL_PAUSED:
            sender = self.actors[self._sender_of(name)]
            sender.kill()
            sender.start()
            self.tally["killed when a destination was paused"] += 1
        for other in before:
            if len(self.paused) == len(REMOTES) or self.chance.random() < 0.5:
                self.resume(other)

    def resume(self, name: str) -> None:
        """Look at what a destination got while it was paused, and resume it."""
        seen = self.remotes[name].seen[self.paused.pop(name) :]
        found = invariants.paused_faults([transaction_id for transaction_id, _ in seen])
        self.failures += [f"{name}: {fault}" for fault in found]
        self._disturb(name)
        self._fed("resume", name)
        self.tally["destinations resumed"] += 1

    def purge(self) -> None:
        """Throw away all that waits for a destination, which is paused, so that something does."""
        if not self.paused:
            self.pause()
        name = self.chance.choice(sorted(self.paused))
        behind = len(self.edus.answered[name]) + WAITING

        def waits() -> bool:
            self.tend()
            return len(self.edus.answered[name]) >= behind

        with contextlib.suppress(AssertionError):
            wait_until(waits, "EDUs wait", 5.0)
        self._disturb(name, KILL_PURGING)
        gone, asked = self._fed("purge", name), self._asked
        # Of what was thrown away when nobody was told how much, only a bound is known.
        count = gone["purged"] if asked == 1 else None
        self.purges[name].append(Purge(set(self.edus.queued[name]), count))
        self.tally["purges"] += 1
        self.tally["EDUs purged"] += gone["purged"]

    def _disturb(self, name: str, chance: float = KILL_ASKED) -> None:
        """See that a destination's sender is well, and kill it in what it writes next, or not."""
        sender = self.actors[self._sender_of(name)]
        sender.heal()
        if self.chance.random() < chance:
            assert sender.shim is not None
            sender.shim.kill_in(self.chance.randint(1, 8))

    def settle(self) -> None:
        """End every fault; what is paused goes on."""
        for name in list(self.paused):
            self.resume(name)
        super().settle()

    def check_others(self) -> None:
        """Compare what was taken with what was queued; send what is in quarantine again."""
        for name, remote in self.remotes.items():
            self._take_up_again(name, remote)

            def faults(name: str = name, remote: HttpsRemote = remote) -> list[str]:
                taken = [edu["content"]["n"] for edu in remote.taken]
                # What was answered before a copy was restored may be lost with that future.
                answered = self.edus.answered[name][self.edus.void[name] :]
                found = invariants.remote_faults(
                    list(remote.seen),
                    taken,
                    self.edus.queued[name],
                    [n for n in answered if not any(n in p.queued for p in self.purges[name])],
                    once=not self.restored,
                )
                return found + invariants.purged_faults(answered, taken, self.purges[name])

            self.level(name, faults)
            self.compared += len(remote.taken)

    def _take_up_again(self, name: str, remote: HttpsRemote) -> None:
        """Look at what is in quarantine, and let it go again: then nothing may be missing."""
        quarantined = self._fed("show", name)["quarantined_edus"]
        if not quarantined:
            return
        told = self.actors[self._sender_of(name)].logged(
            f"event=federation.edu.refused destination={name} "
        )
        # Out of a copy, what was taken before comes again.
        taken = set() if self.restored else {edu["content"]["n"] for edu in remote.taken}
        found = invariants.quarantine_faults(quarantined, told, self.refused[name], taken)
        self.failures += [f"{name}: {fault}" for fault in found]
        again = self._fed("retry", name, "--quarantined")["taken_up_again"]
        if again != quarantined:
            self.failures.append(
                f"{name}: EDUs in quarantine: {quarantined}; taken up again: {again}"
            )
        self.tally["EDUs in quarantine"] += quarantined

    def _fed(self, word: str, name: str, *words: str) -> dict[str, Any]:
        """Return what the sender of a destination answers an operator."""
        outbox = self._outbox(self._sender_of(name))
        argv = [*TCPREPL, "fed", "--json", "--data", str(outbox), word, name, *words]
        done = subprocess.CompletedProcess[str](argv, 1)
        #: How often it was asked the last time.
        self._asked = 0

        def answered() -> bool:
            nonlocal done
            self.tend()
            self._asked += 1
            done = subprocess.run(
                argv, env=environment(), capture_output=True, text=True, check=False
            )
            return done.returncode == 0

        wait_until(answered, f"fed {word} {name}", READY_S)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def restore(self) -> None:
        """Go back to a copy; EDUs that were answered before may be lost with that future."""
        super().restore()
        if self.restored:
            self.edus.forget()
