"""The world with federation: who sends to other servers, and those servers."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from tests import invariants
from tests.harness import TCPREPL, environment, wait_until
from tests.https_remote import OK, HttpsRemote, Reply, matrix_error
from tests.ports import free_port
from tests.torture.layouts import ServeWorld
from tests.torture.publishing import EduPublisher
from tests.torture.world import NAME, READY_S

REMOTES = ("r1.example", "r2.example")
#: What a remote says that has not taken it, and asks for no time.
DENIED = (500, 502)


class TcpWorld(ServeWorld):
    """A server, a relay of it, workers at both, a producer, a sender and its remotes."""

    layout = "tcp"

    def build_rest(self) -> None:
        """Add the others."""
        self.add_worker("worker-twisted", "twisted", self.through(self.port))
        self.add_worker("worker-asyncio", "asyncio", self.through(self.port))
        at_relay = self.add_relay_of("relay", self.through(self.port))
        self.add_worker("worker-relay", "async-for", at_relay, at_relay=True)
        self.add_producer()
        self._add_sender()

    def _add_sender(self) -> None:
        authority = trustme.CA()
        ca = self.where / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        key = self.where / "signing.key"
        shutil.copy(self.data / "signing.key", key)
        self.outbox = self.where / "sender-data"
        argv: list[str | Path] = [*TCPREPL, "federation-sender", "--name", "fed1"]
        argv += ["--from", self.through(self.port), "--server-name", NAME, "--senders", "fed1"]
        argv += ["--data", self.outbox, "--signing-key", key, "--ca", ca]
        argv += ["--allow-private", "--retry-first", "0.3", "--retry-cap", "1"]
        self.remotes: dict[str, HttpsRemote] = {}
        #: How often each has refused an EDU alone.
        self.refused: dict[str, Counter[int]] = {name: Counter() for name in REMOTES}
        for name in REMOTES:
            remote = self.remotes[name] = HttpsRemote(self.where, name, authority, free_port())
            remote.reply = self._failing(name, random.Random(self.chance.random()))
            remote.__enter__()
            argv += ["--resolve", f"{name}={self.through(remote.port)}"]
        self.add("sender", *argv)
        self.edus = EduPublisher(self.url, self.seed, REMOTES, 0.1)
        self.publishers.append(self.edus)

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

    def check_others(self) -> None:
        """Compare what remotes have taken with what was queued; what is parked is sent again."""
        for name, remote in self.remotes.items():
            self._take_up_again(name, remote)

            def faults(name: str = name, remote: HttpsRemote = remote) -> list[str]:
                return invariants.remote_faults(
                    list(remote.seen),
                    [edu["content"]["n"] for edu in remote.taken],
                    self.edus.queued[name],
                    # What was answered before a copy was restored may be lost with that future.
                    self.edus.answered[name][self.edus.void[name] :],
                    once=not self.restored,
                )

            self.level(name, faults)
            self.compared += len(remote.taken)

    def _take_up_again(self, name: str, remote: HttpsRemote) -> None:
        """Look at what is in quarantine, and let it go again: then nothing may be missing."""
        parked = self._fed("show", name)["quarantined_edus"]
        if not parked:
            return
        told = self.actors["sender"].logged(f"event=federation.edu.refused destination={name} ")
        # Out of a copy, what was taken before comes again.
        taken = set() if self.restored else {edu["content"]["n"] for edu in remote.taken}
        found = invariants.parked_faults(parked, told, self.refused[name], taken)
        self.failures += [f"{name}: {fault}" for fault in found]
        again = self._fed("retry", name, "--quarantined")["taken_up_again"]
        if again != parked:
            self.failures.append(f"{name}: EDUs in quarantine: {parked}; taken up again: {again}")
        self.tally["EDUs parked"] += parked

    def _fed(self, *words: str) -> dict[str, Any]:
        """Return what the sender answers an operator."""
        argv = [*TCPREPL, "fed", "--json", "--data", str(self.outbox), *words]
        done = subprocess.CompletedProcess[str](argv, 1)

        def answered() -> bool:
            nonlocal done
            self.tend()
            done = subprocess.run(
                argv, env=environment(), capture_output=True, text=True, check=False
            )
            return done.returncode == 0

        wait_until(answered, f"fed {' '.join(words)}", READY_S)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def restore(self) -> None:
        """Go back to a copy; EDUs that were answered before may be lost with that future."""
        super().restore()
        if self.restored:
            self.edus.forget()
