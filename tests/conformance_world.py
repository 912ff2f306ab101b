"""Servers and clients to play conversations against, in memory and on a fake clock.

Whoever is to be wrong has a change made to the lines that it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred

from tcprepl.background import run_in_background
from tcprepl.conformance.client import Caller, LocalPlayer
from tcprepl.conformance.document import Block, conversations, specification
from tcprepl.conformance.server import play
from tcprepl.conformance.target import CannotPlay, Target
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.codec import Rows
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tests.wire import Network, run_until

#: Returns the lines that are said in place of one.
Change = Callable[[bytes], Sequence[bytes]]


def honest(line: bytes) -> Sequence[bytes]:
    """Say what there is to say."""
    return (line,)


def block_of(name: str, *, of_client: bool = False) -> Block:
    """Return the conversation whose caption begins with *name*."""
    return next(
        block
        for _, block in conversations(specification())
        if block.caption.startswith(name) and ("client" in block.options) is of_client
    )


class _Changed:
    """A transport on which other lines are said."""

    def __init__(self, transport: Any, change: Change) -> None:
        self._transport = transport
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        lines = data.split(b"\n")
        rest = lines.pop()
        said = [out + b"\n" for line in lines for out in self._change(line)]
        self._transport.write(b"".join(said) + rest)


class _Shim:
    """A protocol that says other lines."""

    def __init__(self, protocol: Any, change: Change) -> None:
        self._protocol = protocol
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def makeConnection(self, transport: Any) -> None:
        self._protocol.makeConnection(_Changed(transport, self._change))


class _Factory:
    def __init__(self, factory: Any, change: Change) -> None:
        self._factory = factory
        self._change = change

    def buildProtocol(self, address: Any) -> Any:
        return _Shim(self._factory.buildProtocol(address), self._change)


class ServerWorld:
    """A server, and a target for it."""

    def __init__(self, change: Change = honest, *, publishing: bool = True, **target: Any) -> None:
        self.network = Network(window_bytes=65_536)
        registry = Registry()
        self.log = MemoryLog(registry, lambda: int(self.network.clock.seconds() * 1000))
        for stream in registry.names():
            self.log.ensure(stream, "master")
        self.server = ReplicationServer(
            self.network.clock,
            self.log,
            registry,
            "some.where",
            publisher=Publisher(self.log, registry, "master") if publishing else None,
        )
        self.run(self.server.listen(self.network.server_endpoint()))
        self.network.factory = _Factory(self.network.factory, change)
        reactor: Any = self.network.clock
        self.target = Target(reactor, self.network.client_endpoint("tool"), **target)

    def run(self, coroutine: Any) -> Any:
        """Run *coroutine* to its end, and return its result."""
        task = Deferred.fromCoroutine(coroutine)
        run_until(self.network, lambda: task.called, seconds=1_200)
        results: list[Any] = []
        failures: list[Any] = []
        _ = task.addCallbacks(results.append, failures.append)
        if failures:
            failures[0].raiseException()
        return results[0]

    def play(self, block: Block) -> str:
        """Play *block*; return why it cannot be, if so."""
        try:
            self.run(play(self.target, block))
        except CannotPlay as reason:
            return str(reason)
        return ""


class FakeReactor:
    """A clock that starts clients when it is asked for processes.

    Attributes:
        stubborn: Whether they do not end when they are asked to.
    """

    def __init__(self, network: Network, change: Change) -> None:
        self.network = network
        self.change = change
        self.stubborn = False
        self.failing = False
        self.site: Any = None
        self.signals: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network.clock, name)

    def listenTCP(self, port: int, site: Any, interface: str) -> Any:
        """Keep the site."""
        self.site = site
        return self

    def getHost(self) -> Any:
        """Return a port."""

        class Host:
            port = 1

        return Host

    async def stopListening(self) -> None:
        """Forget the site."""
        self.site = None

    def spawnProcess(
        self, printed: Any, program: str, arguments: list[str], env: Mapping[str, str]
    ) -> Any:
        """Start a client that does what *env* says."""
        return _Process(self, printed, env)


class _Process:
    def __init__(self, reactor: FakeReactor, printed: Any, env: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._printed = printed
        if reactor.failing:
            printed.errReceived(b"no such thing")
            printed.processEnded(None)
            return
        known = dict(word.split("=") for word in env["TCPREPL_KNOWN"].split())

        def rows(stream: str, instance: str, token: int, some: Rows) -> None:
            self._say(f"gets {stream} {token} {b' '.join(some.raw).decode()}")

        def reset(stream: str, instance: str, before: int | None, token: int) -> None:
            self._say(f"resets {stream} from {before} to {token}")

        self.client = ReplicationClient(
            reactor.network.clock,
            reactor.network.client_endpoint("client"),
            env["TCPREPL_FOLLOW"].split(),
            rows,
            positions=MemoryPositionStore({(s, "master"): int(t) for s, t in known.items()}),
            name=env["TCPREPL_NAME"],
            server_name=env["TCPREPL_SERVER"],
            since=env["TCPREPL_SINCE"],  # type: ignore[arg-type]
            on_reset=reset,
            catch_up=self if env["TCPREPL_HTTP"] else None,
        )
        self.client.startService()

    def _say(self, line: str) -> None:
        for said in self._reactor.change(line.encode()):
            self._printed.outReceived(b"a line of a log\n" + said + b"\n")

    def signalProcess(self, name: str) -> None:
        """End it."""
        self._reactor.signals.append(name)
        if name == "KILL" or not self._reactor.stubborn:
            run_in_background(self.client.stopService)
            self._printed.processEnded(None)

    def fetch(self, stream: str, instance: str, after: int, upto: int) -> Deferred[CatchUpPage]:
        """Ask the tool's site."""
        request = _Request(f"/_synapse/replication/get_repl_stream_updates/{stream}/x")
        request.args = {b"from_token": [b"%d" % after], b"upto_token": [b"%d" % upto]}
        self._reactor.site.resource.render_GET(_Request("/elsewhere"))
        self._reactor.site.resource.render_GET(request)
        return request.page


class _Request:
    def __init__(self, path: str) -> None:
        self.path = path.encode()
        self.args: dict[bytes, list[bytes]] = {}
        self.page: Deferred[CatchUpPage] = Deferred()
        self._body = b""
        self.query = urlencode({})

    def setResponseCode(self, code: int) -> None:
        """Take no notice."""

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Take no notice."""

    def write(self, data: bytes) -> None:
        """Keep *data*."""
        self._body += data

    def finish(self) -> None:
        """Give the page to the client."""
        import msgspec

        answer = msgspec.json.decode(self._body)
        updates = [(token, msgspec.json.encode(row)) for token, row in answer["updates"]]
        self.page.callback(CatchUpPage(updates, answer["upto_token"], answer["limited"]))


class ClientWorld:
    """Clients, and the tool that they connect to.

    Args:
        lines: Changes the lines that the client sends.
        printed: Changes what it prints.
    """

    def __init__(
        self, lines: Change = honest, printed: Change = honest, *, http: bool = True
    ) -> None:
        self.network = Network()
        self.reactor = FakeReactor(self.network, printed)
        self.caller = Caller(
            self.reactor,  # type: ignore[arg-type]
            self.network.server_endpoint(),
            ["client"],
            http=http,
        )
        self.run(self.caller.listen())
        connect = self.network.connect

        def changed(factory: Any, name: str) -> Deferred[Any]:
            return connect(_Factory(factory, lines), name)

        self.network.connect = changed  # type: ignore[method-assign]

    run = ServerWorld.run

    def play(self, block: Block) -> str:
        """Play *block*; return why it cannot be, if so."""
        why = self.caller.why_not(block)
        if not why:
            self.run(LocalPlayer(self.caller, block).play())
        return why
