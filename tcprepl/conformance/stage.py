"""What plays conversations, whatever is at the other end."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from tcprepl.conformance.notation import (
    ConversationFailed,
    Step,
    Talker,
    Unexpected,
    json_values,
    matches,
    require,
    written_bytes,
)
from tcprepl.protocol.display import counted


class Player(ABC):
    """Acts out the steps of a conversation.

    Attributes:
        directions: What may stand in brackets, as a pattern, and the method that does it.
    """

    directions: ClassVar[Sequence[tuple[str, str]]]

    async def perform(self, steps: Sequence[Step]) -> None:
        """Act out *steps*.

        Raises:
            ConversationFailed: something else happened than is written.
        """
        for step in steps:
            try:
                if step.kind == "(":
                    await self._direct(step.text)
                else:
                    await self.line(step)
            except AssertionError as error:
                raise ConversationFailed(step, str(error)) from error

    @abstractmethod
    async def line(self, step: Step) -> None:
        """Say a line, or expect one."""

    async def _direct(self, text: str) -> None:
        for pattern, name in self.directions:
            if found := re.fullmatch(pattern, text):
                await getattr(self, name)(*found.groups())
                return
        raise Unexpected("no such direction")


_ROWS = r"(\[.*|\{.*|\".*)"


class ServerPlayer(Player):
    """Plays the clients' lines, and expects those of the server.

    Attributes:
        talkers: The clients, by number.
        everybody: Those that there ever were.
        skipping: On which connections lines come that are not shown.
    """

    directions: ClassVar[Sequence[tuple[str, str]]] = (
        (r"streams: (.+)", "do_streams"),
        (r"token (\S+) of (\S+): (read .+)", "do_token"),
        (r"the tokens are taken back", "do_no_token"),
        (r"publish (batch )?(?:as (\S+) )?(\S+) " + _ROWS, "do_publish"),
        (r"publish ([0-9]+) rows to (\S+)", "do_publish_many"),
        (r"publish a row of ([0-9]+) bytes to (\S+)", "do_publish_long"),
        (r"trim (\S+) up to ([0-9]+)", "do_trim"),
        (r"(\S+) moves on to ([0-9]+) without rows", "do_advance"),
        (r"after ([0-9]+) s", "do_after"),
        (r"the client stops reading", "do_pause"),
        (r"the server keeps its place", "do_behind"),
        (r"the client reads on", "do_resume"),
        (r"the client sends a bad line ([0-9]+) times", "do_bad_lines"),
        (r"the server stops", "do_stop"),
        (r"the connection is open", "do_open"),
        (r"the connection is closed", "do_closed"),
        (r"nothing else comes to the (first|second)", "do_nothing"),
        (r"a new connection", "do_again"),
        (r"the server restarts", "do_restart"),
        (r"the server has heard (\S+), ([0-9]+) times?", "do_heard"),
        (r"the server knows that (\S+) has acknowledged ([0-9]+)", "do_acked"),
        (r"the dialect is (\S+)", "do_dialect"),
    )

    def __init__(self) -> None:
        self.talkers: dict[int, Talker] = {}
        self.everybody: list[Talker] = []
        self.skipping: set[int] = set()

    @abstractmethod
    async def connect(self) -> Talker:
        """Make a connection."""

    @abstractmethod
    def send(self, talker: Talker, data: bytes) -> None:
        """Send *data* from a client."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until everything sent so far has been read at the other end."""

    @abstractmethod
    async def wait(self, talker: Talker) -> bool:
        """Wait for something to come to *talker*; return whether it is worth to look again."""

    @abstractmethod
    async def append(
        self, stream: str, rows: list[bytes], *, instance: str | None = None, batch: bool = False
    ) -> None:
        """Append rows."""

    async def talker(self, connection: int) -> Talker:
        """Return the client of a connection, connecting it when it is new."""
        if connection not in self.talkers:
            self.talkers[connection] = await self.connect()
            self.everybody.append(self.talkers[connection])
        return self.talkers[connection]

    async def next_line(self, talker: Talker) -> str | None:
        """Return the next line from the server; None when it closed or keeps silent."""
        while True:
            line = talker.take_line()
            if line is not None:
                return line
            if talker.closed or not await self.wait(talker):
                return talker.take_line()

    async def line(self, step: Step) -> None:
        """Say a line of a client, or expect one of the server."""
        if step.kind == "C":
            self.send(await self.talker(step.connection), self.said(step.text))
            await self.settle()
        elif step.text == "...":
            self.skipping.add(step.connection)
        else:
            await self.expect(step)

    def said(self, text: str) -> bytes:
        """Return what a client says."""
        return written_bytes(text)

    def fits(self, pattern: str, line: str) -> bool:
        """Return whether *line* is what is written."""
        return matches(pattern, line)

    async def expect(self, step: Step) -> None:
        """Expect a line of the server."""
        talker = await self.talker(step.connection)
        skip = step.connection in self.skipping
        self.skipping.discard(step.connection)
        skipped = 0
        while True:
            line = await self.next_line(talker)
            if line is None:
                how = "the connection is closed" if talker.closed else "nothing comes"
                raise Unexpected(f"{how}, after skipping {counted(skipped, 'line')}")
            if self.fits(step.text, line):
                return
            if not skip:
                raise Unexpected(f"got  {line}")
            skipped += 1

    # -- directions ----------------------------------------------------------------------------

    async def do_publish(
        self, batch: str | None, instance: str | None, stream: str, rows: str
    ) -> None:
        """Publish rows."""
        found = [row.encode() for row in json_values(rows)]
        require(bool(batch) or len(found) == 1, "not one row")
        await self.append(stream, found, instance=instance, batch=bool(batch))

    async def do_publish_many(self, count: str, stream: str) -> None:
        """Publish many rows."""
        for first in range(0, int(count), 1_000):
            rows = [
                b'["!room:example.com","m.read","@ann:example.com","$%064d",{}]' % number
                for number in range(first, min(first + 1_000, int(count)))
            ]
            await self.append(stream, rows)

    async def do_publish_long(self, size: str, stream: str) -> None:
        """Publish one long row."""
        await self.append(stream, [b'["' + b"x" * (int(size) - 4) + b'"]'])

    async def do_bad_lines(self, count: str) -> None:
        """Send bad lines."""
        self.send(await self.talker(1), b"RUBBISH\n" * int(count))
        await self.settle()

    async def do_open(self) -> None:
        """Nothing else came, and the connection is open."""
        await self.quiet(1)
        require(not self.talkers[1].closed, "the connection is closed")

    async def do_closed(self) -> None:
        """The server closed the connection, and nothing else came."""
        talker = await self.talker(1)
        while (line := await self.next_line(talker)) is not None:
            require(1 in self.skipping, f"got  {line}")
        self.skipping.discard(1)
        require(talker.closed, "the connection is open")

    async def do_nothing(self, which: str) -> None:
        """Nothing came on a connection."""
        await self.quiet({"first": 1, "second": 2}[which])

    async def quiet(self, connection: int) -> None:
        """Expect nothing that is not skipped."""
        talker = await self.talker(connection)
        await self.settle()
        while (line := talker.take_line()) is not None:
            require(connection in self.skipping, f"got  {line}")
        self.skipping.discard(connection)

    async def do_again(self) -> None:
        """The client begins a new connection."""
        old = self.talkers.pop(1, None)
        if old is not None and old.transport is not None:
            old.transport.loseConnection()
        await self.settle()


class ClientPlayer(Player):
    """Plays the server's lines, and expects those of the client.

    Attributes:
        servers: What the client has connected to, in order.
        streams: What it is to follow.
        known: What it knows from before.
        since: Where it begins with what it does not know.
        events: What it was heard to do, in the words of the directions.
        taken: How many of these were expected.
    """

    directions: ClassVar[Sequence[tuple[str, str]]] = (
        (r"the client follows (.+)", "do_follow"),
        (r"the client knows (\S+) up to ([0-9]+)", "do_known"),
        (r"the client wants all there is", "do_from_the_start"),
        (r"(the client gets .+)", "expect_event"),
        (r"(the client resets .+)", "expect_event"),
        (r"the client is at ([0-9]+) in (\S+)", "do_at"),
        (
            r"the client fetches (\S+) after ([0-9]+) up to ([0-9]+) by HTTP, which gives ?(.*)",
            "do_fetch",
        ),
        (r"after ([0-9]+) s", "do_after"),
        (r"the connection is lost", "do_lose"),
        (r"the client closes", "do_closed"),
        (r"the client connects again", "do_again"),
    )

    def __init__(self) -> None:
        self.servers: list[Talker] = []
        self.streams: list[str] = []
        self.known: dict[str, int] = {}
        self.since = "now"
        self.events: list[str] = []
        self.taken = 0

    @abstractmethod
    async def start(self) -> None:
        """Start the client, once, and wait until it has connected."""

    @abstractmethod
    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for *condition*; return whether it came about."""

    @abstractmethod
    def send(self, talker: Talker, data: bytes) -> None:
        """Send *data* from the server."""

    async def perform(self, steps: Sequence[Step]) -> None:
        """Act out *steps*; nothing may be left over.

        Raises:
            ConversationFailed: something else happened than is written.
        """
        await super().perform(steps)
        try:
            self.finish()
        except AssertionError as error:
            raise ConversationFailed(Step("(", "the end", steps[-1].number), str(error)) from error

    def finish(self) -> None:
        """Expect nothing more."""
        if self.servers:
            line = self.servers[-1].take_line()
            require(line is None, f"got  {line}")
        require(self.taken == len(self.events), f"got  {self.events[self.taken :]}")

    async def line(self, step: Step) -> None:
        """Say a line of the server, or expect one of the client."""
        await self.start()
        if step.kind == "S":
            self.send(self.servers[-1], written_bytes(step.text))
        else:
            await self.expect(step.text)

    async def expect(self, pattern: str) -> None:
        """Expect a line of the client."""
        line = await self.next_line()
        closed = self.servers[-1].closed
        require(line is not None, "the connection is closed" if closed else "nothing comes")
        assert line is not None
        require(matches(pattern, line), f"got  {line}")

    async def next_line(self) -> str | None:
        """Return the next line from the client; None if none comes."""
        talker = self.servers[-1]
        found: list[str] = []

        def look() -> bool:
            line = talker.take_line()
            found.extend([] if line is None else [line])
            return bool(found) or talker.closed

        await self.until(look)
        return found[0] if found else None

    # -- directions ----------------------------------------------------------------------------

    async def do_follow(self, names: str) -> None:
        """Say what the client follows."""
        self.streams = names.split(", ")

    async def do_known(self, stream: str, token: str) -> None:
        """Say what the client knows from before."""
        self.known[stream] = int(token)

    async def do_from_the_start(self) -> None:
        """Let the client want all there is."""
        self.since = "start"

    async def expect_event(self, text: str) -> None:
        """Expect the next call of a handler to be *text*."""
        await self.until(lambda: len(self.events) > self.taken)
        require(len(self.events) > self.taken, "nothing comes")
        got = self.events[self.taken]
        self.taken += 1
        require(matches(text, got), f"got  {got}")

    async def do_lose(self) -> None:
        """The server goes away."""
        transport = self.servers[-1].transport
        assert transport is not None
        transport.loseConnection()
        await self.until(lambda: self.servers[-1].closed)

    async def do_closed(self) -> None:
        """Expect the client to have closed the connection."""
        await self.until(lambda: self.servers[-1].closed)
        line = self.servers[-1].take_line()
        require(line is None, f"got  {line}")
        require(self.servers[-1].closed, "the connection is open")
