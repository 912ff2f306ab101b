"""SIGKILL of writer, sender and remote at random moments; a remote that fails in every way."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.federation_servers import Homeserver, rows_of
from tests.harness import FULL
from tests.interop.processes import resident_bytes, wait_until

pytestmark = pytest.mark.timeout(180)

ROUNDS = int(os.environ.get("TCPREPL_KILL_ROUNDS", "4"))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Homeserver, Homeserver]]:
    """Yield A and B, running."""
    authority = trustme.CA()
    a = Homeserver(tmp_path, "a.example", authority)
    b = Homeserver(tmp_path, "b.example", authority)
    a.place(b)
    b.place(a)
    try:
        a.start()
        b.start_writer()
        yield a, b
    finally:
        a.stop()
        b.stop()


def message(number: int) -> dict[str, object]:
    """Return the arguments of a to-device EDU that stands alone."""
    content = {
        "sender": "@alice:a.example",
        "type": "m.test",
        "message_id": f"m{number}",
        "messages": {"@bob:b.example": {"DEVICE": {"n": number}}},
    }
    return {
        "destination": "b.example",
        "edu_type": "m.direct_to_device",
        "content": content,
        "transaction_id": f"message{number}",
    }


def state(number: int) -> dict[str, object]:
    """Return the arguments of a keyed EDU; only the newest counts."""
    return {
        "destination": "b.example",
        "edu_type": "org.example.state",
        "content": {"n": number},
        "key": ["state"],
        "transaction_id": f"state{number}",
    }


@pytest.mark.parametrize("seed", [1, 2, 3] if FULL else [1])
def test_nothing_acknowledged_is_lost_by_kills_of_any_process(
    pair: tuple[Homeserver, Homeserver], seed: int
) -> None:
    """Each EDU that was taken arrives, once; the newest of a key arrives last."""
    a, b = pair
    chance = random.Random(seed)
    number = 0
    for _ in range(ROUNDS):
        for _ in range(chance.randrange(5, 25)):
            number += 1
            a.send_edu(**message(number))
            a.send_edu(**state(number))
        victim = chance.choice(["writer", "sender", "remote"])
        if victim == "writer":
            assert a.writer is not None
            a.writer.kill()
            a.start_writer()
        elif victim == "sender":
            assert a.sender is not None
            a.sender.kill()
            a.start_sender()
        else:
            assert b.writer is not None
            b.writer.kill()
            b.start_writer()
    tail = b.tail("to_device_messages", "received_edus")

    def arrived() -> bool | None:
        found = {row["content"]["n"] for row in rows_of(tail, "to_device_messages")}
        states = [row["content"]["n"] for row in rows_of(tail, "received_edus")]
        return (len(found) == number and states[-1:] == [number]) or None

    wait_until("every EDU", arrived)
    numbers = [row["content"]["n"] for row in rows_of(tail, "to_device_messages")]
    assert sorted(numbers) == list(range(1, number + 1))
    states = [row["content"]["n"] for row in rows_of(tail, "received_edus")]
    assert states == sorted(set(states))


def test_a_remote_that_hangs_gets_everything_when_it_goes_on(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    """The remote is stopped, not dead: connections open, nothing answers."""
    a, b = pair
    a.send_edu(**message(1))
    tail = b.tail("to_device_messages")
    wait_until("the first", lambda: rows_of(tail) or None)
    assert b.writer is not None
    assert a.sender is not None
    os.kill(b.writer.pid, signal.SIGSTOP)
    try:
        for number in range(2, 30):
            a.send_edu(**message(number))
        wait_until("a request", lambda: a.fed("show", "b.example")["transaction_id"])
        a.sender.kill()
        a.start_sender()
    finally:
        os.kill(b.writer.pid, signal.SIGCONT)
    wait_until("all of them", lambda: len(rows_of(tail)) >= 29 or None)
    assert [row["content"]["n"] for row in rows_of(tail)] == list(range(1, 30))


def test_memory_of_the_sender_stays_flat_while_a_remote_is_down(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    """What waits is on disk: thousands of EDUs for a dead server cost little memory."""
    a, b = pair
    assert b.writer is not None
    assert a.sender is not None
    b.writer.kill()
    a.send_edu(**message(1))
    wait_until("a failure", lambda: a.fed("show", "b.example")["failures"] or None)
    before = resident_bytes(a.sender.pid)
    destinations = [f"s{n}.b.example" for n in range(200)]
    big = "x" * 2_000
    for number in range(20):
        a.send_edu(
            destinations=[*destinations, "b.example"],
            edu_type="org.example.big",
            content={"n": number, "pad": big},
        )

    def stored() -> bool | None:
        return sum(line["queued_edus"] for line in a.fed("ls")) >= 20 * 201 or None

    wait_until("they are on disk", stored)
    assert resident_bytes(a.sender.pid) - before < 40_000_000
