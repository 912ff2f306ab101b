"""The composition root: what is built, in which order it starts and stops, what can fail."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.app import server as app
from tcprepl.app.server import (
    CannotListen,
    Server,
    registry_of,
    retention_of,
    sd_notify,
    server_endpoint,
)
from tcprepl.config import TlsSettings, build, parse_address
from tcprepl.errors import ConfigError, LogLocked
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
    server = made(reactor)
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
    assert server._stops == []


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


def test_a_part_that_fails_to_stop_does_not_keep_the_others() -> None:
    """Its failure is logged, and the rest goes on."""
    server = made()
    stopped: list[str] = []

    def fails() -> None:
        raise ZeroDivisionError

    server._stops = [("first", lambda: stopped.append("first")), ("second", fails)]
    result_of(server.stop())
    assert stopped == ["first"]


def test_extra_streams_and_retention() -> None:
    """What the configuration says of streams reaches registry and logs."""
    config = build(
        {
            "streams": {
                "extra": ["mine", {"name": "loud", "durable": False}],
                "retention": {"age": "1h"},
                "retention_ephemeral": {"rows": 7},
                "retention_of": {"typing": {"bytes": 9}, "mine": {"rows": 8}, "unknown": {}},
            }
        },
        "x",
    ).config
    registry = registry_of(config)
    assert registry.get("mine").durable
    assert not registry.get("loud").durable
    retention = retention_of(config)
    assert retention.durable.max_age_s == 3600
    assert retention.bounds("typing", durable=False).max_bytes == 9
    assert retention.bounds("typing", durable=False).max_rows == 7
    assert retention.bounds("mine", durable=True).max_rows == 8
    assert retention.bounds("mine", durable=True).max_age_s == 3600
    assert retention.bounds("unknown", durable=True) == retention.durable


def test_endpoints(tmp_path: Path) -> None:
    """HOST:PORT of both families, endpoint strings, TLS with and without client certificates."""
    reactor = MemoryReactorClock()
    kinds = {
        "127.0.0.1:1": TCP4ServerEndpoint,
        "[::1]:1": TCP6ServerEndpoint,
        "tcp:1:interface=127.0.0.1": TCP4ServerEndpoint,
    }
    for text, kind in kinds.items():
        assert isinstance(server_endpoint(reactor, parse_address(text), None), kind)
    for text in ("nonsense:x", "tcp:1:interfac=x"):
        with pytest.raises(ConfigError, match="not an endpoint to listen on"):
            server_endpoint(reactor, parse_address(text), None)

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key, ca = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    authority.cert_pem.write_to_path(chain, append=True)
    authority.cert_pem.write_to_path(ca)
    for client_ca in (None, ca):
        tls = TlsSettings(certificate=chain, private_key=key, client_ca=client_ca)
        endpoint = server_endpoint(reactor, parse_address("0.0.0.0:1"), tls)
        assert isinstance(endpoint, SSL4ServerEndpoint)
        options = app.tls_context(tls)
        assert len(options.extraCertChain) == 1
        assert bool(options.verify) is (client_ca is not None)
    for bad, text in (
        (TlsSettings(certificate=tmp_path / "no", private_key=key), "cannot be read"),
        (TlsSettings(certificate=key, private_key=key), "expected PEM"),
        (TlsSettings(certificate=chain, private_key=key, client_ca=key), "expected PEM"),
    ):
        with pytest.raises(ConfigError, match=text):
            app.tls_context(bad)


def test_federation_settings(tmp_path: Path) -> None:
    """Placed servers, trusted files; what is wrong with them names its key."""
    server = made(federation={"resolve": {"b.example": "127.0.0.1:8448"}})
    assert app.placed_servers(server.config) == {"b.example": ("127.0.0.1", 8448)}
    for resolve in ({"b.example": "127.0.0.1:0"}, {"no server": "127.0.0.1:1"}):
        bad = made(federation={"resolve": resolve})
        with pytest.raises(ConfigError, match=r"federation.resolve"):
            app.placed_servers(bad.config)
    (tmp_path / "ca.pem").write_text("nothing", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"federation.ca"):
        result_of(made(federation={"ca": str(tmp_path / "ca.pem")}).start())


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listening, a path, an abstract name, a socket that has gone."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not sd_notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0tcprepl-test-notify-" + tmp_path.name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@tcprepl-test-notify-" + tmp_path.name)
        assert sd_notify("READY=1", "STATUS=fine")
        assert systemd.recv(100) == b"READY=1\nSTATUS=fine"


def test_streams_go_over_redis_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a URL a link is made; without what the extra installs, the error names it."""
    reactor = MemoryReactorClock()
    server = made(reactor, redis={"url": "redis://:hush@127.0.0.1:6379"})
    result_of(server.start())
    assert [port for _, port, *_ in reactor.tcpClients] == [6379]
    assert [link.name for link in server.replication.status().links] == ["redis://127.0.0.1:6379"]
    server._server_is_up("far.example.com")
    result_of(server.stop(), reactor)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module", name="txredisapi")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r"tcprepl\[redis\]"):
        app.redis_extra("bus.redis_writer")
