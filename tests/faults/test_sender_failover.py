"""Senders of one name on two machines, with one outbox in PostgreSQL: one dies, or sleeps."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests import postgres_world
from tests.faults.test_federation_kill import message
from tests.federation_servers import Homeserver, rows_of
from tests.harness import FULL, tcprepl
from tests.interop.processes import Child, wait_until

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(180)]

EACH = 40 if FULL else 8


class Pair:
    """A homeserver with two senders, of which one waits; and a remote."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.url = postgres_world.fresh_url()
        self.home = Homeserver(directory, "a.example", authority)
        self.remote = Homeserver(directory, "b.example", authority)
        self.home.place(self.remote)
        self.remote.place(self.home)
        self.home.start_writer()
        self.remote.start_writer()
        self.tail = self.remote.tail("to_device_messages")
        (directory / "lease.yaml").write_text("lease: 2\n")
        self.home.extra_options = ("--config", str(directory / "lease.yaml"))
        self.count = 0
        self.senders: list[Child] = []

    def start(self, *options: str) -> Child:
        """Start a sender with a directory of its own."""
        number = len(self.senders)
        where = self.home.directory / f"sender{number}"
        child = self.home.spawn_sender(
            "fed1", self.url, "--directory", str(where), *options, log=f"sender{number}"
        )
        self.senders.append(child)
        return child

    def wait_for(self, sender: Child) -> None:
        """Wait until a sender has the outbox."""
        sender.wait_ready("it took over", lambda: "tcprepl sends" in sender.output() or None)

    def send(self, count: int) -> None:
        """Queue EDUs."""
        for _ in range(count):
            self.count += 1
            self.home.send_edu(**message(self.count))

    def in_flight(self, number: int) -> Any:
        """Wait until a sender has a transaction in flight, and return its id."""
        self.home.sender_data = self.home.directory / f"sender{number}"
        return wait_until("a request", lambda: self.home.fed("show", "b.example")["transaction_id"])

    def arrived(self) -> list[int]:
        """Wait until the last EDU has arrived, and return the numbers of all."""
        wait_until("the last EDU", lambda: self.count in self._numbers() or None)
        return self._numbers()

    def _numbers(self) -> list[int]:
        return [row["content"]["n"] for row in rows_of(self.tail)]

    def stop(self) -> None:
        """Stop everything."""
        for sender in self.senders:
            if sender.running:
                sender.stop()
        self.home.stop()
        self.remote.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Return them with one sender at work and one that waits."""
    it = Pair(tmp_path)
    try:
        it.start()
        it.start("--standby")
        yield it
    finally:
        it.stop()


def test_who_goes_on_for_one_that_was_killed_loses_nothing(pair: Pair) -> None:
    """What was in flight goes out again under the same id, and arrives once."""
    first, second = pair.senders
    pair.send(1)
    assert pair.arrived() == [1]
    assert pair.remote.writer is not None
    os.kill(pair.remote.writer.pid, signal.SIGSTOP)
    try:
        pair.send(EACH)
        flying = pair.in_flight(0)
        first.kill()
        pair.wait_for(second)
        assert pair.in_flight(1) == flying
        pair.send(EACH)
    finally:
        os.kill(pair.remote.writer.pid, signal.SIGCONT)
    assert pair.arrived() == list(range(1, pair.count + 1))


def test_one_that_stands_by_says_so(pair: Pair) -> None:
    """And who has what it waits for; once it has it itself, it answers as any."""
    first, second = pair.senders
    pair.wait_for(first)
    waits = str(pair.home.directory / "sender1")

    def asked() -> Any:
        return tcprepl("fed", "ls", "--data", waits)

    wait_until("it waits", lambda: f":{first.pid} " in asked().stderr or None)
    answer = asked()
    assert answer.returncode == 1
    assert answer.stderr == (
        "tcprepl: this sender stands by, and sends nothing: the outbox of fed1 is held by "
        f"{socket.gethostname()}:{first.pid} (HOST:PROCESS); ask there\n"
    )
    first.kill()
    pair.wait_for(second)
    assert asked().stdout == "nothing waits\n"


def test_who_slept_for_longer_than_its_lease_sends_nothing_new_and_ends(pair: Pair) -> None:
    first, second = pair.senders
    pair.send(EACH)
    assert pair.arrived() == list(range(1, EACH + 1))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        pair.send(EACH)
        pair.wait_for(second)
        assert pair.arrived() == list(range(1, pair.count + 1))
    finally:
        os.kill(first.pid, signal.SIGCONT)
    pair.send(EACH)
    wait_until("it ends", lambda: not first.running or None)
    assert "federation.taken_over" in first.output()
    assert "this process ends" in first.output()
    assert pair.arrived() == list(range(1, pair.count + 1))
    assert second.running
