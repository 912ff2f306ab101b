"""A sender as a process, put together on a reactor in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.testing import MemoryReactorClock, StringTransport

from tcprepl import metrics
from tcprepl.app import sender as module
from tcprepl.app.sender import NAME_FILE, FederationWorker, find_server_name
from tcprepl.config import build
from tcprepl.errors import ConfigError, LogFenced
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.protocol.commands import FederationAckCommand, PingCommand, RemoteServerUpCommand
from tcprepl.storage.fenced import FencedDatabase
from tests import postgres_world


class Reactor(MemoryReactorClock):
    """In memory, and called by threads, too."""

    def callFromThread(self, f: Any, *args: Any) -> None:
        self.callLater(0, f, *args)


class Client:
    """Stands for the replication client: notes what it is told to send."""

    def __init__(self) -> None:
        self.connected = True
        self.dialect = "tcprepl"
        self.incarnation: str | None = "x"
        self.sent: list[object] = []

    def send(self, command: object) -> bool:
        self.sent.append(command)
        return True


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FederationWorker]:
    monkeypatch.setattr(FederationWorker, "_run", lambda self, work: run_inline(work))
    reactor: Any = Reactor()
    made = FederationWorker(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
        tmp_path,
        build(
            {"server_name": "x.example", "federation": {"senders": ["fed1", "fed2"]}}, "t"
        ).config,
        name="fed1",
    )
    assert result(made.start()) is None
    yield made
    stopping = Deferred.fromCoroutine(made.stop())
    reactor.pump([1.0] * 20)
    assert stopping.called


def test_what_is_on_disk_is_acknowledged_by_name(worker: FederationWorker) -> None:
    client: Any = Client()
    worker.client = client
    worker._on_position("federation", "master", 7)
    worker._reactor.advance(0)
    assert client.sent == [FederationAckCommand("fed1", 7)]
    worker._on_connected(client)
    worker._reactor.advance(0)
    assert len(client.sent) == 1  # not before this writer has said where it stands
    worker._on_position("federation", "master", 7)
    worker._reactor.advance(0)
    assert client.sent == [FederationAckCommand("fed1", 7)] * 2
    client.connected = False
    worker._acknowledge("master", 8)
    assert len(client.sent) == 2


def test_only_our_own_writers_are_taken_at_their_word(worker: FederationWorker) -> None:
    client: Any = Client()
    worker.client = client
    worker._on_connected(client)
    assert worker.sender.intake.canonical
    client.dialect = "1.22"
    worker._on_connected(client)
    assert not worker.sender.intake.canonical


def test_a_server_that_is_up_again_is_tried(
    worker: FederationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(worker.sender, "remote_server_up", heard.append)
    worker._on_command(RemoteServerUpCommand("y.example"))
    worker._on_command(PingCommand("1"))
    assert heard == ["y.example"]


def test_it_starts_and_stops(worker: FederationWorker) -> None:
    assert worker.client.running
    assert worker.facts()["server_name"] == "x.example"
    assert worker.status_line() == "0 destinations, the writer is away"
    ((address, *_),) = worker._reactor.unixServers
    assert address.endswith(module.control.SOCKET_FILE)
    done: list[object] = []
    Deferred.fromCoroutine(worker.stop()).addBoth(done.append)
    worker._reactor.pump([1.0] * 60)
    assert done == [None]
    assert not worker.client.running


def test_the_position_of_the_client_is_that_of_the_outbox(worker: FederationWorker) -> None:
    worker.outbox.add([], 0, {("federation", "master"): 5})
    assert worker.sender.intake.load() == {("federation", "master"): 5}


def test_the_name_is_asked_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["", "x.example"]

    async def ask(reactor: Any, endpoint: Any) -> str:
        return answers.pop(0)

    nothing: Any = None
    monkeypatch.setattr(module, "ask_server_name", ask)
    assert result(find_server_name(nothing, nothing, tmp_path, None)) == "x.example"
    assert (tmp_path / NAME_FILE).read_text() == "x.example\n"
    assert result(find_server_name(nothing, nothing, tmp_path, None)) == "x.example"
    assert result(find_server_name(nothing, nothing, tmp_path, "x.example")) == "x.example"
    with pytest.raises(ConfigError, match="the outbox of"):
        result(find_server_name(nothing, nothing, tmp_path, "y.example"))


def test_a_name_that_is_none_is_told(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="server-name"):
        result(find_server_name(nothing, nothing, tmp_path, "not a name"))


def test_a_key_that_is_named_is_not_made(tmp_path: Path) -> None:
    """Nobody would take what a new one signs, and nothing said so."""
    reactor: Any = Reactor()
    made = FederationWorker(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
        tmp_path / "data",
        build({"federation": {"signing_key": str(tmp_path / "a.key")}}, "t").config,
        name="fed1",
    )
    with pytest.raises(ConfigError, match=r"a\.key: there is no such file; expected the signing"):
        result(made.start())
    assert not (tmp_path / "a.key").exists()


def test_what_is_reloaded_holds(worker: FederationWorker) -> None:
    """Where servers are, whose certificates and which addresses."""
    resolve = {"resolve": {"y.example": "127.0.0.1:5"}, "allow_private_addresses": True}
    new = build({"federation": resolve}, "test").config
    worker.reload(new)()
    (target,) = result(worker.transport.discovery.resolve("y.example"))
    assert target.port == 5
    with pytest.raises(ConfigError, match=r"federation.ca"):
        worker.reload(build({"federation": {"ca": "/absent"}}, "test").config)


# --- asked over HTTP ----------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FederationWorker]:
    monkeypatch.setattr(FederationWorker, "_run", lambda self, work: run_inline(work))
    reactor: Any = Reactor()
    settings = {"http": {"listen": "127.0.0.1:9094", "token": "first"}}
    made = FederationWorker(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
        tmp_path,
        build(settings, "t").config,
        name="fed1",
        source="127.0.0.1:1",
        http=True,
    )
    yield made
    stopping = Deferred.fromCoroutine(made.stop())
    reactor.pump([1.0] * 20)
    assert stopping.called


def get(worker: FederationWorker, path: str, token: str) -> tuple[int, Any]:
    """Ask the site that the reactor listens for."""
    reactor: Any = worker._reactor
    peer = IPv4Address("TCP", "127.0.0.1", 1)
    ((_, factory, *_),) = reactor.tcpServers
    channel = factory.buildProtocol(peer)
    transport: Any = StringTransport(peerAddress=peer)
    channel.makeConnection(transport)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    channel.dataReceived(request.encode())
    head, _, body = transport.value().partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


def test_it_can_be_asked_while_it_waits_for_its_writer(
    watched: FederationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then, while it follows, and while it ends."""
    said: Deferred[str] = Deferred()

    async def ask(reactor: Any, endpoint: Any) -> str:
        return await said

    monkeypatch.setattr(module, "ask_server_name", ask)
    starting = Deferred.fromCoroutine(watched.start())
    waits = "127.0.0.1:1 has not said yet which homeserver it is"
    assert get(watched, "/health", "") == (503, {"live": True, "ready": False, "reason": waits})
    said.callback("x.example")
    assert starting.called
    status, health = get(watched, "/health", "")
    assert status == 200
    assert health["degraded"][0].startswith("writer 127.0.0.1:1: away for 0 s")
    status, found = get(watched, "/_tcprepl/v1/status", "first")
    assert (status, found["server_name"], found["ready"]) == (200, "x.example", True)
    assert metrics.LINK_UP.samples()["127.0.0.1:1", "writer"] == 0
    client: Any = Client()
    watched._on_connected(client)
    watched.client = client
    client.reconnects, client.received_rows, client.last_error = 1, 5, None
    watched._reactor.advance(3)
    (link,) = watched.links()
    assert (link.up, link.seconds, link.rows) == (True, 3, 5)
    assert watched.facts()["http"] == " ".join(watched.http_addresses)


def test_nobody_finds_the_link_of_one_that_has_ended(watched: FederationWorker) -> None:
    watched.config = build({"server_name": "x.example", "http": {"listen": []}}, "t").config
    assert result(watched.start()) is None
    assert ("127.0.0.1:1", "writer") in metrics.LINK_UP.samples()
    stopping = Deferred.fromCoroutine(watched.stop())
    assert watched.trouble() == "stopping"
    watched._reactor.pump([1.0] * 20)
    assert stopping.called
    assert ("127.0.0.1:1", "writer") not in metrics.LINK_UP.samples()


def test_who_may_ask_is_reloaded(watched: FederationWorker) -> None:
    (watched._data / NAME_FILE).write_text("x.example\n")
    assert result(watched.start()) is None
    assert "http.token" in watched.reloads
    assert get(watched, "/_tcprepl/v1/status", "second")[0] == 401
    watched.reload(build({"http": {"token": "second"}}, "t").config)()
    assert get(watched, "/_tcprepl/v1/status", "second")[0] == 200
    assert get(watched, "/_tcprepl/v1/status", "first")[0] == 401


def test_what_nobody_asks_has_nothing_of_it_to_reload(worker: FederationWorker) -> None:
    assert "http.token" not in worker.reloads
    assert worker.http_addresses == []
    assert "http" not in worker.facts()


def test_a_disk_that_refuses_is_told(worker: FederationWorker) -> None:
    assert worker.trouble() is None
    worker.outbox.trouble = "outbox.sqlite: disk is full"
    assert worker.trouble() == "outbox.sqlite: disk is full"


# --- with the outbox in a database --------------------------------------------------------------


class Shared:
    """Workers on one database, each with a reactor in memory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FederationWorker, "_run", lambda self, work: run_inline(work))
        self.directory = directory
        self.url = postgres_world.fresh_url()
        self.made: list[FederationWorker] = []

    def worker(self, **options: Any) -> FederationWorker:
        """Return one that has not started."""
        reactor: Any = Reactor()
        made = FederationWorker(
            reactor,
            TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
            self.directory / f"{len(self.made)}",
            build({"server_name": "x.example", "lease": 8}, "t").config,
            name="fed1",
            database=self.url,
            **options,
        )
        self.made.append(made)
        return made

    def lapse(self) -> None:
        """Let every lease be over."""
        postgres_world.lapse(self.url, "tcprepl_sender_fed1")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    it = Shared(tmp_path, monkeypatch)
    yield it
    for made in it.made:
        stopping = Deferred.fromCoroutine(made.stop())
        reactor: Any = made._reactor
        reactor.pump([1.0] * 20)
        assert stopping.called


@pytest.mark.postgresql
def test_who_has_the_outbox_keeps_it_until_another_takes_it(shared: Shared) -> None:
    first = shared.worker()
    assert result(first.start()) is None
    assert first.facts()["data"] == first.outbox.where
    reactor: Any = first._reactor
    failed: list[Any] = []
    first.failed.addErrback(failed.append)
    shared.lapse()
    reactor.advance(2)
    assert failed == []
    held = "SELECT held_until > clock_timestamp() FROM writers"
    assert postgres_world.sql(shared.url, "tcprepl_sender_fed1", held) == [(True,)]
    shared.lapse()
    second = shared.worker(standby=True)
    assert result(second.start()) is None
    for _ in range(2):
        reactor.advance(2)
    assert [failure.type for failure in failed] == [LogFenced]
    assert second.outbox.positions() == {}


@pytest.mark.postgresql
def test_who_is_stopped_while_it_waits_stops_waiting(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[object] = []
    monkeypatch.setattr(FederationWorker, "_run", lambda self, work: Deferred())
    monkeypatch.setattr(FencedDatabase, "stop", lambda self: stopped.append(self.where))
    waiting = shared.worker(standby=True)
    starting = Deferred.fromCoroutine(waiting.start())
    assert "stands by, and sends nothing: the outbox of fed1" in (waiting.trouble() or "")
    starting.addErrback(lambda failure: failure.trap(CancelledError))
    starting.cancel()
    assert len(stopped) == 1


def test_a_database_needs_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tcprepl.federation.sending.outbox_postgres", None)
    reactor: Any = Reactor()
    made = FederationWorker(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
        tmp_path,
        build({"server_name": "x.example"}, "t").config,
        name="fed1",
        database="postgresql://127.0.0.1:1/x",
    )
    with pytest.raises(ConfigError, match=r"pip install 'tcprepl\[postgresql\]'"):
        result(made.start())
