"""protocol.md's conversations against somebody else's client, which connects to us.

A client is a program. It is started for each conversation, and told in its environment what it is
to be; what its handlers are called with it prints, a line for each call. The variables:

=====================  ==============================================================
``TCPREPL_ADDR``       where to connect, HOST:PORT
``TCPREPL_NAME``       what it calls itself
``TCPREPL_SERVER``     the homeserver that it expects
``TCPREPL_FOLLOW``     the streams, with spaces between them
``TCPREPL_KNOWN``      STREAM=TOKEN, with spaces between them: what it has of `master`
``TCPREPL_SINCE``      ``now`` or ``start``: where it begins with what it does not know
``TCPREPL_HTTP``       where `master` answers requests for missed rows
=====================  ==============================================================

It prints ``gets STREAM TOKEN ROW...`` and ``resets STREAM from TOKEN to TOKEN``, and is ended by
SIGTERM. Whoever has no program starts a client by hand, and what it does with the rows is not seen.

What a client may do differently is not held against it: `NAME` and the order of `REPLICATE`s are
its own, and so is asking for all instances of a stream besides those that it knows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tcprepl.clocks import Reactor
from tcprepl.conformance.document import Block
from tcprepl.conformance.notation import Talker, json_values, parse, require
from tcprepl.conformance.stage import ClientPlayer
from tcprepl.limits import RECONNECT_MAX_S

INSTANCE: Final = "master"
WORKER: Final = "worker1"
SERVER_NAME: Final = "example.com"
#: How often what a process prints is looked at.
_LOOK_S: Final = 0.02
#: How long a line that need not come may take.
_OPTIONAL_S: Final = 0.5
_UPDATES: Final = re.compile(r"/_synapse/replication/get_repl_stream_updates/([^/]+)/[^/]+")


class _Printed(ProcessProtocol):
    """The program under test: its lines, and its end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.complaints = ""
        self.ended = False
        self._rest = b""

    def outReceived(self, data: bytes) -> None:
        """Cut into lines (Twisted calls this)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        words = (b"gets ", b"resets ")  # whatever else it says is its own matter
        self.lines += [line.decode(errors="replace") for line in lines if line.startswith(words)]

    def errReceived(self, data: bytes) -> None:
        """Keep the end of it (Twisted calls this)."""
        self.complaints = (self.complaints + data.decode(errors="replace"))[-2_000:]

    def processEnded(self, reason: Failure) -> None:
        """Note the end (Twisted calls this)."""
        self.ended = True


class Caller:
    """Where clients under test connect to.

    Args:
        reactor: The reactor.
        endpoint: Where to listen.
        command: The program; empty for a client that somebody starts by hand.
        ask: Tells that person what to start.
        http: Whether the client fetches missed rows over HTTP.
        wait_s: How long a line may take to come.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamServerEndpoint,
        command: Sequence[str] = (),
        *,
        ask: Callable[[str], object] = print,
        http: bool = False,
        wait_s: float = 5.0,
    ) -> None:
        self.reactor: Any = reactor
        self.command = command
        self.ask = ask
        self.http = http
        self.wait_s = wait_s
        self.address = ""
        self.servers: list[Talker] = []
        self._endpoint = endpoint
        self._port: IListeningPort | None = None

    async def listen(self) -> None:
        """Begin to listen."""
        factory = _Servers(self)
        self._port = await self._endpoint.listen(factory)
        where: Any = self._port.getHost()
        self.address = f"{where.host}:{where.port}" if hasattr(where, "port") else str(where)

    async def close(self) -> None:
        """Stop listening."""
        if self._port is not None:
            stopped: Any = self._port.stopListening()
            if stopped is not None:
                await stopped

    def why_not(self, block: Block) -> str:
        """Return why a conversation cannot be played; nothing if it can."""
        if "fetches" in block.text and not (self.http and self.command):
            return "the client would have to fetch missed rows (--http, and a COMMAND)"
        return ""


class _Servers(Factory):
    noisy = False

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def buildProtocol(self, addr: Any) -> Talker:
        return _Registering(self._caller.servers)


class _Registering(Talker):
    def __init__(self, servers: list[Talker]) -> None:
        super().__init__()
        self._servers = servers

    def connectionMade(self) -> None:
        """Become the newest server."""
        self._servers.append(self)


class LocalPlayer(ClientPlayer):
    """Plays one conversation with a client.

    Args:
        caller: Where it connects to.
        block: The conversation.
    """

    def __init__(self, caller: Caller, block: Block) -> None:
        super().__init__()
        self._caller = caller
        self._block = block
        self._process: Any = None
        self._printed = _Printed()
        self._site: Any = None
        self._asked: list[tuple[str, dict[str, str], Any]] = []
        self._held: list[str] = []
        self._pinged = 0
        self._said: set[str] = set()

    async def play(self) -> None:
        """Play it, and end the client."""
        self._caller.servers.clear()
        try:
            await self.perform(parse(self._block))
        finally:
            await self._end()

    async def _end(self) -> None:
        for talker in self._caller.servers:
            if talker.transport is not None and not talker.closed:
                talker.transport.loseConnection()
        if self._process is not None and not self._printed.ended:
            self._process.signalProcess("TERM")
            if not await self.until(lambda: self._printed.ended):
                self._process.signalProcess("KILL")
                await self.until(lambda: self._printed.ended)
        if self._site is not None:
            await self._site.stopListening()

    async def start(self) -> None:
        """Start the program, or ask for a client."""
        if self._process is not None or self.servers:
            return
        told = {
            "TCPREPL_ADDR": self._caller.address,
            "TCPREPL_NAME": WORKER,
            "TCPREPL_SERVER": SERVER_NAME,
            "TCPREPL_FOLLOW": " ".join(self.streams),
            "TCPREPL_KNOWN": " ".join(f"{s}={token}" for s, token in self.known.items()),
            "TCPREPL_SINCE": self.since,
            "TCPREPL_HTTP": "",
        }
        reactor = self._caller.reactor
        if self._caller.command:
            if self._caller.http:
                self._site = reactor.listenTCP(0, Site(_Updates(self)), interface="127.0.0.1")
                told["TCPREPL_HTTP"] = f"http://127.0.0.1:{self._site.getHost().port}"
            program, *_ = self._caller.command
            self._process = reactor.spawnProcess(
                self._printed, program, list(self._caller.command), {**os.environ, **told}
            )
            patience = self._caller.wait_s * 4
        else:
            shown = " ".join(f"{name}={value!r}" for name, value in told.items() if value)
            self._caller.ask(f"{self._block.caption}: start a client with {shown}")
            patience = 600.0
        self.servers = self._caller.servers
        await self.until(lambda: bool(self.servers) or self._printed.ended, patience)
        ended = f"the program ended: {self._printed.complaints}" if self._printed.ended else ""
        require(bool(self.servers), ended or "the client does not connect")

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait for *condition*, but not for ever."""
        reactor = self._caller.reactor
        deadline = reactor.seconds() + (self._caller.wait_s if seconds is None else seconds)
        while not condition():
            self.events = [f"the client {line}" for line in self._printed.lines]
            if condition():
                break
            if reactor.seconds() > deadline:
                return False
            await deferLater(reactor, _LOOK_S)
        return True

    def send(self, talker: Talker, data: bytes) -> None:
        """Write *data*."""
        require(not talker.closed and talker.transport is not None, "the connection is closed")
        assert talker.transport is not None
        talker.transport.write(data)

    # -- lines of the client -------------------------------------------------------------------

    def _collect(self) -> None:
        """Take in what came: PINGs are counted, a NAME is its own matter."""
        while (line := self.servers[-1].take_line()) is not None:
            word = line.split(" ", 1)[0]
            if word == "PING":
                self._pinged += 1
            elif word != "NAME":
                self._held.append(line)

    async def _come(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        def look() -> bool:
            self._collect()
            return condition() or self.servers[-1].closed

        await self.until(look, seconds)
        return condition()

    async def expect(self, pattern: str) -> None:
        """Expect a line of the client."""
        word = pattern.split(" ", 1)[0].rstrip(".")
        gone = lambda: "the connection is closed" if self.servers[-1].closed else "nothing comes"  # noqa: E731
        if word == "NAME":
            return
        if word == "PING":
            require(await self._come(lambda: self._pinged > 0), gone())
            self._pinged = 0
            return
        if word == "REPLICATE" and "..." not in pattern:
            stream = pattern.split(" ")[1]
            optional = pattern.split(" ")[2] == "*" and stream in self._said
            came = await self._come(
                lambda: pattern in self._held, _OPTIONAL_S if optional else None
            )
            if came:
                self._held.remove(pattern)
                self._said.add(stream)
            elif not optional:
                require(False, f"got  {self._held[0]}" if self._held else gone())
            return
        require(await self._come(lambda: bool(self._held)), gone())
        line = self._held.pop(0)
        require(line.split(" ", 1)[0] == word, f"got  {line}")

    def finish(self) -> None:
        """Expect nothing more."""
        self._collect()
        require(not self._held, f"got  {self._held}")
        require(not self._caller.command or self.taken == len(self.events), self._too_much())

    def _too_much(self) -> str:
        return f"got  {'; '.join(self.events[self.taken :])}"

    # -- directions ----------------------------------------------------------------------------

    async def expect_event(self, text: str) -> None:
        """Expect the program to have printed *text*: rows are compared as JSON."""
        if not self._caller.command:
            return
        await self.until(lambda: len(self.events) > self.taken)
        require(len(self.events) > self.taken, f"nothing is printed{self._complaint()}")
        got = self.events[self.taken]
        self.taken += 1
        require(_values(got) == _values(text), f"got  ({got})")

    def _complaint(self) -> str:
        return f"; on stderr: {self._printed.complaints}" if self._printed.complaints else ""

    async def do_at(self, token: str, stream: str) -> None:
        """Do nothing: it shows when the client resumes."""

    async def do_after(self, seconds: str) -> None:
        """Let time pass."""
        await deferLater(self._caller.reactor, float(seconds))

    async def do_again(self) -> None:
        """Expect the client to connect again, within its longest delay."""
        before = len(self.servers)
        self._held.clear()
        self._said.clear()
        self._pinged = 0
        patience = RECONNECT_MAX_S * 2 + self._caller.wait_s
        again = await self.until(lambda: len(self.servers) > before, patience)
        require(again, "the client does not connect again")

    async def do_closed(self) -> None:
        """Expect the client to have closed the connection."""
        closed = await self.until(lambda: self.servers[-1].closed)
        require(closed, "the connection is open")

    async def do_fetch(self, stream: str, after: str, upto: str, rows: str) -> None:
        """Answer the HTTP request of the client for missed rows."""
        await self.until(lambda: bool(self._asked))
        require(bool(self._asked), "the client fetches nothing")
        asked, arguments, request = self._asked.pop(0)
        tokens = [arguments.get("from_token"), arguments.get("upto_token")]
        values = json_values(rows)
        updates = ",".join(
            f"[{token},{row}]" for token, row in zip(values[::2], values[1::2], strict=True)
        )
        request.setHeader(b"Content-Type", b"application/json")
        answer = f'{{"updates":[{updates}],"upto_token":{upto},"limited":false}}'
        request.write(answer.encode())
        request.finish()
        require([asked, *tokens] == [stream, after, upto], f"got  {asked} {tokens}")


class _Updates(Resource):
    """Where missed rows are asked for."""

    isLeaf = True

    def __init__(self, player: LocalPlayer) -> None:
        super().__init__()
        self._player = player

    def render_GET(self, request: Any) -> Any:
        """Keep the request until the conversation answers it (Twisted calls this)."""
        found = _UPDATES.fullmatch(request.path.decode())
        if found is None:
            request.setResponseCode(404)
            return b""
        arguments = {key.decode(): values[0].decode() for key, values in request.args.items()}
        self._player._asked.append((found[1], arguments, request))
        return NOT_DONE_YET


def _values(event: str) -> list[object]:
    """Return the words of an event, and its rows as JSON."""
    head, mark, rows = event.partition(" [")
    if not mark:
        return [*head.split(" ")]
    try:
        return [*head.split(" "), *map(json.loads, json_values(mark.strip() + rows))]
    except ValueError:
        return [event]
