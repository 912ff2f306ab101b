"""The composition root: what is built, in which order it starts and stops, what can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.access import ALL, EVERYTHING, NOTHING, Grant, Streams, digest
from tcprepl.app.listening import CannotListen
from tcprepl.app.server import Server
from tcprepl.config import BadConfig, build
from tcprepl.errors import LogLocked, LogUnavailable
from tcprepl.protocol.commands import FederationAckCommand
from tcprepl.storage.lock import DirectoryLock


def made(reactor: Any = None, **raw: Any) -> Server:
    """Return a server that keeps everything in memory."""
    config = build({"data_directory": None, "server_name": "example.com", **raw}, "test").config
    return Server(reactor or MemoryReactorClock(), config, wall_ms=lambda: 5_000)


def result_of(awaitable: Any, reactor: Any = None) -> Any:
    """Return what a coroutine comes to, or raise what it fails with."""
    task = Deferred.fromCoroutine(awaitable)
    found: list[Any] = []
    failed: list[Any] = []
    _ = task.addCallbacks(found.append, failed.append)
    for _ in range(5):
        if reactor is not None:
            reactor.advance(1.0)
    if failed:
        failed[0].raiseException()
    return found[0]


def test_publishing_through_a_started_server() -> None:
    """Start, publish in one line, stop; every part is there."""
    reactor = MemoryReactorClock()
    server = made(reactor)
    result_of(server.start())
    assert len(server.replication_addresses) == len(server.http_addresses) == 1
    assert [port for port, *_ in reactor.tcpServers] == [9092, 9093]

    async def publish() -> Any:
        return await server.publisher.publish("typing", [("!r:example.com", ["@a:example.com"])])

    assert result_of(publish()).last == 1
    assert server.log.position("typing", "master") == 1
    assert server.status_line() == "0 peers, most behind 0 ms"
    result_of(server.stop(), reactor)


def test_peers_are_told_why() -> None:
    """Stopping drains: an ERROR with the reason, then the close."""
    reactor = MemoryReactorClock()
    server = made(reactor)
    result_of(server.start())
    protocol = reactor.tcpServers[0][1].buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert server.status_line().startswith("1 peer,")
    stopping = Deferred.fromCoroutine(server.stop("gone fishing"))
    assert b"ERROR " in transport.value()
    assert transport.disconnecting
    protocol.connectionLost(Failure(ConnectionDone()))
    for _ in range(5):
        reactor.advance(1.0)
    assert stopping.called


def test_acknowledgements_reach_the_send_queue() -> None:
    """FEDERATION_ACK, with the instance named or known from the connection."""
    reactor = MemoryReactorClock()
    server = made(reactor, federation={"senders": ["fed1", "fed2"]})
    result_of(server.start())
    result_of(_queue_edu(server))

    class SomePeer:
        name = "fed1"

    for command in (FederationAckCommand("fed2", 1), FederationAckCommand(None, 1)):
        server._acknowledged(command, SomePeer())  # type: ignore[arg-type]
    assert server.federation.send_queue.acknowledged() == {"fed1": 1, "fed2": 1}
    result_of(server.stop(), reactor)


async def _queue_edu(server: Server) -> None:
    await server.federation.send_queue.send_to(["b.example"], "m.test", {"a": 1})


def test_what_was_started_is_stopped_when_something_is_in_the_way(tmp_path: Path) -> None:
    """A port in use: the error names setting and address, and the data is free again."""

    class Taken(MemoryReactorClock):
        def listenTCP(self, port: int, *args: Any, **kwargs: Any) -> Any:
            if port == 9093:
                raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))
            return super().listenTCP(port, *args, **kwargs)

    reactor = Taken()
    server = made(reactor)
    with pytest.raises(
        CannotListen, match=r"http.listen: cannot listen on 127.0.0.1:9093: Address already in use"
    ):
        result_of(server.start(), reactor)
    assert server.log._closed


def test_data_of_another_process(tmp_path: Path) -> None:
    """A locked directory is told as it is; nothing listens."""

    class Threaded(MemoryReactorClock):
        def callFromThread(self, *args: object) -> None:
            raise AssertionError("nothing was opened")

    lock = DirectoryLock(tmp_path)
    reactor = Threaded()
    with pytest.raises(LogLocked, match=str(tmp_path)):
        result_of(made(reactor, data_directory=str(tmp_path)).start())
    assert reactor.tcpServers == []
    lock.release()


def test_streams_go_over_redis_too() -> None:
    """With a URL a link is made, and what goes there is known."""
    reactor = MemoryReactorClock()
    server = made(reactor, redis={"url": "redis://:hush@127.0.0.1:6379"})
    result_of(server.start())
    assert [port for _, port, *_ in reactor.tcpClients] == [6379]
    assert [link.name for link in server.replication.status().links] == ["redis://127.0.0.1:6379"]
    assert server._unpublished("typing", "master") is None
    assert server._unpublished("typing", "other") is not None
    server._server_is_up("far.example.com")
    result_of(server.stop(), reactor)


def test_what_is_reloaded_holds() -> None:
    """Each part of a server takes its own."""
    reactor = MemoryReactorClock()
    server = made(reactor, http={"token": "old"})
    result_of(server.start())
    new = build(
        {
            "data_directory": None,
            "http": {"token": "new", "client_tokens": [{"token": "t"}], "max_body_bytes": 9},
            "replication": {"max_connections": 3},
            "streams": {"retention": {"rows": 4}},
            "federation": {"senders": ["fed1"], "resolve": {"b.example": "127.0.0.1:1"}},
        },
        "test",
    ).config
    server.reload(new)()
    assert server._web.secrets == ["new"]
    assert server._web.client_tokens == {"t": None}
    assert server._site.max_body_bytes == 9
    assert server.replication.max_connections == 3
    assert server.federation.send_queue.senders == ("fed1",)
    assert server.federation.send_queue.acknowledged() == {"fed1": 0}
    bad = build({"federation": {"ca": "/absent", "resolve": {"b c": "127.0.0.1:1"}}}, "x").config
    with pytest.raises(BadConfig) as caught:
        server.reload(bad)
    assert len(caught.value.faults) == 2
    assert server._web.secrets == ["new"]
    result_of(server.stop(), reactor)


def test_tokens_hold_at_once_on_the_line_and_over_http() -> None:
    """And whether rows are taken on the line follows what is asked for there."""
    reactor = MemoryReactorClock()
    server = made(reactor)
    result_of(server.start())
    replication = server.replication
    assert replication.granted(None, vouched=True) == EVERYTHING
    assert replication.granted(None, vouched=False) == NOTHING
    assert replication.door.publisher is server.publisher

    def reload(**sections: Any) -> None:
        server.reload(build({"data_directory": None, **sections}, "test").config)()

    reload(http={"token": "asked-for"})
    assert replication.door.publisher is None
    tokens = [{"name": "w1", "token": "a-token-of-sixteen", "write": ["typing"]}]
    reload(http={"token": "asked-for"}, replication={"tokens": tokens})
    grant = Grant("w1", write=Streams(frozenset({"typing"})))
    assert replication.granted(digest("a-token-of-sixteen"), vouched=False) == grant
    assert replication.granted(digest("another-of-sixteen"), vouched=True) is None
    assert replication.granted(None, vouched=True) == NOTHING
    assert replication.door.publisher is server.publisher
    assert server._web.grants == [("a-token-of-sixteen", grant)]
    reload(replication={"tokens": tokens, "anonymous": {"read": "all"}})
    assert replication.granted(None, vouched=True) == Grant(read=ALL)
    result_of(server.stop(), reactor)


def test_a_drained_server_is_over_and_a_reload_opens_no_door() -> None:
    """It takes nothing, is not ready, says so to systemd, and ends without a failure."""
    reactor = MemoryReactorClock()
    server = made(reactor)
    result_of(server.start())
    protocol = reactor.tcpServers[0][1].buildProtocol(None)
    protocol.makeConnection(StringTransport())
    drain = server.drain(30.0, "there:1")
    assert server.drain(1.0) is drain
    assert server.status_line() == (
        "the server is being drained; go to there:1: 1 peer, most behind 0 ms"
    )
    server.reload(server.config)()
    assert server.replication.door.publisher is not server.publisher
    assert server._web.shut() == drain.text
    assert server._not_ready == drain.text
    for _ in range(5):
        reactor.advance(0.1)
    protocol.connectionLost(Failure(ConnectionDone()))
    assert not server.failed.called
    for _ in range(5):
        reactor.advance(0.1)
    assert server.failed.called
    server.log.failed.errback(LogUnavailable("too late"))
    assert server.failed.result is None
    result_of(server.stop(), reactor)
