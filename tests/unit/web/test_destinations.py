"""Asking the senders of this machine what they have to send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.federation.sending.control import SOCKET_FILE
from tcprepl.web import destinations
from tcprepl.web.destinations import ANSWER_TIMEOUT_S, ASK_INTERVAL_S, SenderDestinations

FOUND = [{"destination": "matrix.org", "queued_edus": 3}]


class Sender:
    """A sender that is asked, as far as the fake reactor is concerned."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        self.path, factory, self.timeout_s, _ = reactor.unixClients.pop()
        self.protocol: Any = factory.buildProtocol(UNIXAddress("x"))
        self.factory = factory
        self.transport = StringTransport()

    def accept(self) -> Sender:
        """Let the question come."""
        self.protocol.makeConnection(self.transport)
        assert json.loads(self.transport.value()) == {"op": "ls"}
        return self

    def say(self, text: bytes) -> Sender:
        """Answer with *text*, in pieces."""
        for start in range(0, len(text), 7):
            self.protocol.dataReceived(text[start : start + 7])
        return self

    def end(self) -> None:
        """The connection is gone."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def reactor() -> MemoryReactorClock:
    """A reactor without sockets."""
    return MemoryReactorClock()


@pytest.fixture
def asking(reactor: MemoryReactorClock, tmp_path: Path) -> Iterator[SenderDestinations]:
    """One sender that is asked already; nothing may be left on the clock."""
    (tmp_path / SOCKET_FILE).touch()
    made = SenderDestinations(reactor, [tmp_path])
    made.start()
    yield made
    assert made.stop().called
    assert [call for call in reactor.getDelayedCalls() if call.active()] == []


def test_what_a_sender_says_is_known(
    reactor: MemoryReactorClock, asking: SenderDestinations, tmp_path: Path
) -> None:
    """From the first answer on, and until it says something else."""
    assert asking() == []
    sender = Sender(reactor).accept()
    assert Path(sender.path).name == SOCKET_FILE
    sender.say(json.dumps({"ok": FOUND}).encode() + b"\n")
    assert sender.transport.disconnecting
    sender.end()
    assert asking() == FOUND
    reactor.advance(ASK_INTERVAL_S)
    Sender(reactor).accept().say(b'{"ok": []}\n').end()
    assert asking() == []


@pytest.mark.parametrize(
    "text", [b"", b"rubbish\n", b"[]\n", b'{"error": "no"}\n', b'{"ok": {}}\n', b'{"ok": [\xff]}\n']
)
def test_an_answer_that_is_none_leaves_it_out(
    reactor: MemoryReactorClock, asking: SenderDestinations, text: bytes
) -> None:
    """What it said before would be a lie by now."""
    Sender(reactor).accept().say(json.dumps({"ok": FOUND}).encode() + b"\n").end()
    reactor.advance(ASK_INTERVAL_S)
    Sender(reactor).accept().say(text).end()
    assert asking() == []


def test_a_sender_that_does_not_run_is_left_out(
    reactor: MemoryReactorClock, asking: SenderDestinations
) -> None:
    """And asked again later."""
    sender = Sender(reactor)
    sender.factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    assert asking() == []
    reactor.advance(ASK_INTERVAL_S)
    Sender(reactor).accept().say(json.dumps({"ok": FOUND}).encode() + b"\n").end()
    assert asking() == FOUND


def test_a_sender_that_hangs_is_given_up(
    reactor: MemoryReactorClock, asking: SenderDestinations
) -> None:
    """Its late answer counts for nothing."""
    sender = Sender(reactor).accept()
    reactor.advance(ANSWER_TIMEOUT_S)
    assert sender.transport.disconnecting
    sender.say(json.dumps({"ok": FOUND}).encode()).end()
    assert asking() == []
    reactor.advance(ASK_INTERVAL_S)
    Sender(reactor).accept().say(b'{"ok": []}\n').end()


def test_a_stop_does_not_wait_for_an_answer(
    reactor: MemoryReactorClock, asking: SenderDestinations
) -> None:
    """Neither for a connection nor for what is said on it (the fixture stops it)."""
    reactor.advance(0.1)
    assert len(reactor.unixClients) == 1


def test_a_stop_in_the_middle_of_an_answer(
    reactor: MemoryReactorClock, asking: SenderDestinations
) -> None:
    """It is not read to its end."""
    Sender(reactor).accept().say(b'{"ok": [')
    assert asking() == []


def test_a_directory_without_a_socket_is_not_asked(
    reactor: MemoryReactorClock, asking: SenderDestinations, tmp_path: Path
) -> None:
    """The sender is gone, and what it said is forgotten."""
    Sender(reactor).accept().say(json.dumps({"ok": FOUND}).encode() + b"\n").end()
    (tmp_path / SOCKET_FILE).unlink()
    reactor.advance(ASK_INTERVAL_S)
    assert (asking(), reactor.unixClients) == ([], [])


def test_an_endless_answer_is_cut(
    reactor: MemoryReactorClock, asking: SenderDestinations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing from outside may grow without a bound."""
    monkeypatch.setattr(destinations, "MAX_ANSWER_BYTES", 20)
    sender = Sender(reactor).accept().say(b"[" * 28)
    assert sender.transport.disconnecting
    sender.end()
    assert asking() == []


def test_it_need_not_have_been_started(reactor: MemoryReactorClock) -> None:
    """Stopping is always possible."""
    assert SenderDestinations(reactor, []).stop().called
