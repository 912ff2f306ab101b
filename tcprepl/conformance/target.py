"""What is examined: a server that somebody else has started, and what can be played against it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from tcprepl.clocks import Reactor
from tcprepl.conformance.document import Block
from tcprepl.conformance.notation import Step, Talker, parse
from tcprepl.ids import Pair
from tcprepl.protocol.dialects import NATIVE_TAG
from tcprepl.protocol.specs import COMMANDS

#: How long nothing has to come until nothing comes.
QUIET_S: Final = 0.3
#: What clients say that changes nothing for anybody else.
_HARMLESS: Final = frozenset({"NAME", "PING", "REPLICATE", "HELP", "STATUS", "RDATA"})
#: Commands that publish rows, and where their stream stands.
_PUBLISHING: Final = ("PUBLISH", "PUBLISH_ROWS", "PUBLISH_BATCH")
#: Directions that only a look inside, or a hand on its configuration, can follow.
_INSIDE: Final = {
    "trim ": "rows would have to be made to go",
    "the server stops": "the server would have to stop",
    "token ": "the server would have to be given a token",
}


def writes(steps: Sequence[Step]) -> list[str]:
    """Return what a conversation changes in a server: streams, and words of other commands."""
    found: dict[str, None] = {}
    for step in steps:
        words = step.text.split(" ")
        if step.kind == "C":
            word = words[0].upper()
            if word in _PUBLISHING:
                found[words[1]] = None
            elif word in COMMANDS and word not in _HARMLESS:
                found[word] = None
        elif step.kind == "(" and step.text.startswith("publish "):
            plain = step.text.removeprefix("publish ").removeprefix("batch ")
            if plain[0].isdigit() or plain.startswith("a row of "):
                found[plain.rpartition(" ")[2]] = None
            else:
                named = plain.split(" ")
                found[named[2 if named[0] == "as" else 0]] = None
    return list(found)


class CannotPlay(Exception):
    """A conversation that shows, on the way, that it cannot be played here."""


class Probe:
    """What a server is found to be before anything is played.

    Attributes:
        positions: Where every pair is that a bare REPLICATE, or one of a stream, tells of.
        incarnation: What its first PING names; empty for none.
        native: Whether its first PING has the mark of the protocol.
    """

    def __init__(self) -> None:
        self.positions: dict[Pair, int] = {}
        self.incarnation = ""
        self.native = False

    @property
    def in_use(self) -> list[str]:
        """The streams that have rows."""
        return sorted({stream for (stream, _), token in self.positions.items() if token})

    def offers(self, stream: str) -> bool:
        """Return whether there is *stream*."""
        return any(stream == pair[0] for pair in self.positions)


class Target:
    """A server under test.

    Args:
        reactor: The reactor.
        endpoint: Where it is.
        instance: As which instance it writes what it is not told otherwise.
        dialect: What a bare REPLICATE is answered in there.
        restart: A command that restarts it; empty for none.
        token: What it asks for; empty for nothing.
        wait_s: How long a line may take to come.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        *,
        instance: str = "master",
        dialect: str = "1.22",
        restart: str = "",
        token: str = "",
        wait_s: float = 5.0,
    ) -> None:
        self.reactor = reactor
        self.endpoint = endpoint
        self.instance = instance
        self.dialect = dialect
        self.restart = restart
        self.token = token
        self.wait_s = wait_s

    async def connect(self) -> Talker:
        """Make a connection, and say the token there."""
        found: Talker = await self.endpoint.connect(Factory.forProtocol(Talker))  # type: ignore[assignment]
        if self.token:
            assert found.transport is not None
            found.transport.write(f"AUTH {self.token}\n".encode())
        return found

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        await deferLater(self.reactor, seconds)

    async def news(self, talker: Talker, seconds: float) -> bool:
        """Wait for something to come to *talker*; return whether it did."""
        arrived: Deferred[None] = Deferred()
        before = len(talker.received)

        def tell() -> None:
            if not arrived.called:
                arrived.callback(None)

        talker.news = tell
        call = self.reactor.callLater(seconds, tell)
        await arrived
        talker.news = lambda: None
        if call.active():
            call.cancel()
        return len(talker.received) > before or talker.closed

    async def probe(self, streams: Sequence[str], *, everything: bool = False) -> Probe:
        """Ask where *streams* are, or everything that there is; that changes nothing.

        Raises:
            CannotPlay: The server asks for a token, or for another one.
        """
        found = Probe()
        if everything:
            await self._ask(found, b"REPLICATE\n", ())
        asked = b"".join(f"REPLICATE {stream} * NOW\n".encode() for stream in streams)
        await self._ask(found, asked, streams)
        return found

    async def _ask(self, found: Probe, asked: bytes, streams: Sequence[str]) -> None:
        """Note what is answered to *asked*, until there is an answer about each of *streams*.

        For how long nobody says anything does not count there: a busy server may take a second.
        """
        talker = await self.connect()
        assert talker.transport is not None
        talker.transport.write(asked)
        deadline = self.reactor.seconds() + self.wait_s
        missing, answered = set(streams), False
        while True:
            while (line := talker.take_line()) is not None:
                words = line.split(" ")
                if words[0] == "POSITION" and words[-1].isdigit():
                    instance = words[2] if len(words) > 3 else self.instance
                    found.positions[words[1], instance] = int(words[-1])
                    missing.discard(words[1])
                    answered = True
                elif line.startswith(("ERROR AUTH: ", "ERROR not allowed: ")):
                    raise CannotPlay(f"the server says: {line.removeprefix('ERROR ')}")
                elif words[0] == "ERROR":
                    missing -= set(re.findall(r"\w+", line))
                    answered = True
                elif words[0] == "PING" and NATIVE_TAG in words:
                    found.native = True
                    found.incarnation = " ".join(words[words.index(NATIVE_TAG) + 1 :])
            left = deadline - self.reactor.seconds()
            # Of a stream there may be more instances than the first that is named.
            wait_s = left if missing or not answered else min(left, QUIET_S)
            if talker.closed or wait_s <= 0 or not await self.news(talker, wait_s):
                break
        talker.transport.loseConnection()

    def why_not(self, block: Block, probe: Probe) -> str:
        """Return why a conversation cannot be played; nothing if it can."""
        steps = parse(block)
        missing = [stream for stream in block.streams if not probe.offers(stream)]
        if missing:
            return f"the server does not offer {', '.join(missing)}"
        dialect = block.options.get("dialect", "1.22")
        if dialect != self.dialect and any(step.text == "REPLICATE" for step in steps):
            return f"a bare REPLICATE would have to be answered in dialect {dialect} (--dialect)"
        if "restart" in block.options and not self.restart:
            return "the server would have to be restarted (--restart)"
        for step in steps:
            for beginning, why in _INSIDE.items():
                if step.kind == "(" and step.text.startswith(beginning):
                    return why
            if step.kind == "(" and "moves on to" in step.text:
                return "a position would have to move without rows"
            said = step.text.split(" ") if step.kind == "C" else []
            if said[:1] == ["DRAIN"]:
                return "the server would have to be drained, and would end"
            if said[:1] == ["REPLICATE"] and len(said) > 4 and not probe.incarnation:
                return "the server's first PING names no incarnation"
        return ""
