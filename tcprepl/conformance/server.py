"""protocol.md's conversations against somebody else's server, over a real connection.

The server need not be new. What it has already is not in the conversations, so a written token
stands for a real one: 0 for where the stream was when the conversation began, any other for the
one that its row got. Lines about other streams and instances, and `PING` where none is written,
are passed over; lines of different streams may come in any order. Texts for people are not
compared. Rows go in over a connection of the tool's own, by ``PUBLISH``.
"""

from __future__ import annotations

import json
import secrets
import shlex
import socket
from contextlib import suppress
from typing import Any, Final

from twisted.internet.error import ConnectError
from twisted.internet.utils import getProcessOutputAndValue

from tcprepl.conformance.document import Block
from tcprepl.conformance.notation import (
    ConversationFailed,
    Step,
    Talker,
    Unexpected,
    matches,
    parse,
    require,
)
from tcprepl.conformance.stage import ServerPlayer
from tcprepl.conformance.target import QUIET_S, CannotPlay, Probe, Target
from tcprepl.errors import TcpreplError
from tcprepl.ids import Pair
from tcprepl.protocol.commands import Reason
from tcprepl.protocol.dialects import NATIVE_TAG

#: Lines of a server that may come at any time.
_AT_ANY_TIME: Final = frozenset({"PING", "REMOTE_SERVER_UP", "AUTHORIZED"})
#: Lines whose text, behind so many words, is for people.
_FREE_TEXT: Final = {"ERROR": 1, "INFO": 1}


#: How often a conversation is played into which others write.
_ATTEMPTS: Final = 3


async def play(target: Target, block: Block) -> None:
    """Play *block* against *target*; anew where others wrote into its streams meanwhile.

    A server may itself write: who synced goes offline later, and that is a row.

    Raises:
        CannotPlay: It cannot be played here, and why.
        ConversationFailed: Something else happened than is written.
    """
    for left in reversed(range(_ATTEMPTS)):
        probe = await target.probe(block.streams)
        if why := target.why_not(block, probe):
            raise CannotPlay(why)
        player = RemotePlayer(target, block, probe)
        try:
            await player.play()
        except ConversationFailed as failure:
            try:
                disturbed = left and player.disturbed(await target.probe(block.streams))
            except (CannotPlay, TcpreplError, ConnectError):
                raise failure from None
            if not disturbed:
                raise
        else:
            return


class RemotePlayer(ServerPlayer):
    """Plays one conversation against a server.

    Args:
        target: The server.
        block: The conversation.
        probe: Where the server was before it.
    """

    def __init__(self, target: Target, block: Block, probe: Probe) -> None:
        super().__init__()
        self._target = target
        self._steps = parse(block)
        self._streams = block.streams
        mark = secrets.token_hex(3)
        #: What names of the document are called here: nobody else has them.
        self._names = {name: f"{name}-{mark}" for name in ("importer", "worker2", "worker9")}
        self._names["master"] = target.instance
        #: For each pair the real token of each that is written.
        self._tokens: dict[Pair, dict[int, int]] = {
            (stream, name): {0: probe.positions.get((stream, real), 0)}
            for stream in block.streams
            for name, real in self._names.items()
        }
        self._written: dict[Pair, int] = dict.fromkeys(self._tokens, 0)
        self._server_name = ""
        self._held: dict[Talker, list[str]] = {}
        self._batches: dict[tuple[Talker, tuple[str, str | None]], list[str]] = {}
        self._publisher: Talker | None = None

    async def play(self) -> None:
        """Play it, and close everything."""
        try:
            await self.perform(self._steps)
        finally:
            everybody = [*self.everybody, *filter(None, [self._publisher])]
            for talker in everybody:
                if talker.transport is not None and not talker.closed:
                    talker.transport.resumeProducing()  # type: ignore[attr-defined]
                    talker.transport.loseConnection()

    def disturbed(self, now: Probe) -> bool:
        """Return whether others wrote into its streams since it began, as is found *now*."""
        return any(
            now.positions.get((stream, self._names[name]), 0) > max(known.values())
            for (stream, name), known in self._tokens.items()
        )

    # -- the wire ------------------------------------------------------------------------------

    async def connect(self) -> Talker:
        """Make a connection."""
        return await self._target.connect()

    def send(self, talker: Talker, data: bytes) -> None:
        """Write *data*."""
        assert talker.transport is not None
        talker.transport.write(data)

    async def settle(self) -> None:
        """Do nothing: what is sent is read when it is read."""

    async def wait(self, talker: Talker) -> bool:
        """Wait for news."""
        return await self._target.news(talker, self._target.wait_s)

    async def quiet(self, connection: int) -> None:
        """Expect nothing for a moment, that is not skipped."""
        talker = await self.talker(connection)
        while not talker.closed and await self._target.news(talker, QUIET_S):
            pass
        while (line := await self._take(talker)) is not None:
            require(connection in self.skipping, f"got  {line}")
        self.skipping.discard(connection)

    async def _take(self, talker: Talker) -> str | None:
        """Return a line that is about the conversation and was received already."""
        held = self._held.get(talker)
        if held:
            return held.pop(0)
        while (line := talker.take_line()) is not None:
            self._held[talker] = self._about(talker, line)
            if self._held[talker]:
                return self._held[talker].pop(0)
        return None

    async def next_line(self, talker: Talker) -> str | None:
        """Return the next line that is about the conversation."""
        while (line := await self._take(talker)) is None:
            if talker.closed or not await self.wait(talker):
                return await self._take(talker)
        return line

    async def expect(self, step: Step) -> None:
        """Expect a line of the server; lines of other pairs may come before it."""
        talker = await self.talker(step.connection)
        pair = _pair(step.text)
        if step.text.startswith("PING"):
            await self._expect_ping(talker, step)
            return
        if pair is None or step.connection in self.skipping:
            await super().expect(step)
            return
        others: list[str] = []
        try:
            while (line := await self.next_line(talker)) is not None:
                if self.fits(step.text, line):
                    return
                about = _pair(line)
                if about is None or about[0] == pair[0]:
                    raise Unexpected(f"got  {line}")
                others.append(line)
            what = "the connection is closed" if talker.closed else "nothing comes"
            raise Unexpected(f"{what}; before it came {others}" if others else what)
        finally:
            self._held[talker] = others + self._held.get(talker, [])

    async def _expect_ping(self, talker: Talker, step: Step) -> None:
        """Expect a PING."""
        deadline = self._target.reactor.seconds() + self._target.wait_s
        while True:
            while (line := talker.take_line()) is not None:
                if line.startswith("PING"):
                    tagged = NATIVE_TAG in line.split(" ") or NATIVE_TAG not in step.text
                    require(tagged, f"got  {line}")
                    self.skipping.discard(step.connection)
                    return
                skipped = step.connection in self.skipping or not self._about(talker, line)
                require(skipped, f"got  {line}")
            left = deadline - self._target.reactor.seconds()
            came = left > 0 and not talker.closed and await self._target.news(talker, left)
            require(came, "the connection is closed" if talker.closed else "nothing comes")

    # -- what stands for what ------------------------------------------------------------------

    def _about(self, talker: Talker, line: str) -> list[str]:
        """Return *line* if the conversation may speak of it, and the rows of its batch."""
        pair = _pair(line)
        if pair is None or not line.startswith("RDATA"):
            return [line] if self._is_about(line) else []
        batch = self._batches.setdefault((talker, pair), [])
        batch.append(line)
        if line.split(" ")[2 if pair[1] is None else 3] == "batch":
            return []  # the last one says which token it is
        del self._batches[talker, pair]
        return batch if self._is_about(line) else []

    def _is_about(self, line: str) -> bool:
        """Return whether the conversation may speak of *line*, the last of its batch."""
        word = line.split(" ", 1)[0]
        if word in _AT_ANY_TIME:
            return word != "PING" and any(step.text.startswith(word) for step in self._steps)
        pair = _pair(line)
        if pair is None:
            return True
        stream, instance = pair
        name = "master" if instance is None else self._name_of(instance)
        if stream not in self._streams or name is None:
            return False
        token = line.split(" ")[2 if instance is None else 3]
        old = self._tokens[stream, name][0]
        return not (word == "RDATA" and token.isdigit() and int(token) <= old)

    def _name_of(self, real: str) -> str | None:
        return next((name for name, mine in self._names.items() if mine == real), None)

    def said(self, text: str) -> bytes:
        """Return what a client says, by the names and tokens of this server."""
        words = text.split(" ")
        match words:
            case ["PRODUCER" | "NAME" | "KICK" as word, name, *rest]:
                text = " ".join((word, self._names.get(name, name), *rest))
            case ["REPLICATE", stream, token] if token.isdigit() and stream in self._streams:
                text = f"REPLICATE {stream} {self._real(stream, 'master', token)}"
            case ["REPLICATE", stream, instance, *places] if stream in self._streams:
                name = "master" if instance == "*" else instance
                said = [self._real(stream, name, word) for word in places]
                text = " ".join(("REPLICATE", stream, self._names.get(instance, instance), *said))
        return super().said(text)

    def _real(self, stream: str, name: str, word: str) -> str:
        """Return the token that stands for a written one; any other word as it is."""
        if not (word.isdigit() and len(word) < 16):
            return word
        known = self._tokens[stream, name]
        token = int(word)
        below = max(written for written in known if written <= token)
        return str(known[below] + token - below)

    def fits(self, pattern: str, line: str) -> bool:
        """Return whether *line* is what is written, by the names and tokens of this server."""
        expected, words = pattern.split(" "), line.split(" ")
        word = expected[0]
        if word in _FREE_TEXT:
            return words[0] == word and len(words) > 1
        if word != words[0]:
            return False
        match word:
            case "SERVER":
                self._server_name = self._server_name or words[-1]
                return len(words) == 2 and words[1] == self._server_name
            case "POSITION" | "RDATA" | "PUBLISHED":
                return self._fits_place(pattern, line)
            case "PRODUCER":
                return words == [word, self._names.get(expected[1], expected[1]), *expected[2:]]
            case "REFUSED":
                # the subject, perhaps a number, reason and value; the rest is for people
                count = 5 if expected[2].startswith("#") else 4
                head = [self._names.get(one, one) for one in expected[:count]]
                return len(words) > count and words[:count] == head
        return matches(pattern, line)

    def _fits_place(self, pattern: str, line: str) -> bool:
        named, found = _pair(pattern), _pair(line)
        assert named is not None
        stream, name = named[0], named[1] or "master"
        if found != (stream, named[1] and self._names[name]):
            return False
        first = 2 if named[1] is None else 3
        if pattern.startswith("POSITION") and pattern.endswith(" ..."):
            return True
        row = pattern.startswith("RDATA")
        expected, words = (
            text.split(" ", first + 1 if row else -1)[first:] for text in (pattern, line)
        )
        if len(expected) != len(words) or (row and not _same_row(expected.pop(), words.pop())):
            return False
        same = zip(expected, words, strict=True)
        return all(self._same_token((stream, name), *both) for both in same)

    def _same_token(self, pair: Pair, written: str, real: str) -> bool:
        if written == "...":
            return bool(real)
        if not (written.isdigit() and real.isdigit()):
            return written == real
        known = self._tokens[pair]
        token, found = int(written), int(real)
        if token == 0:
            return found <= known[0]
        if token not in known:
            below = max(one for one in known if one < token)
            if found <= known[below]:
                return False
            known[token] = found
            self._written[pair] = max(self._written[pair], token)
        return known[token] == found

    # -- directions ----------------------------------------------------------------------------

    async def append(
        self, stream: str, rows: list[bytes], *, instance: str | None = None, batch: bool = False
    ) -> None:
        """Publish rows over a connection of our own, and note which tokens they got."""
        if self._publisher is None or self._publisher.closed:
            self._publisher = await self._target.connect()
        name = instance or "master"
        writer = f"@{self._names[instance]} " if instance else ""
        word, body = "PUBLISH", rows[0]
        if len(rows) > 1 or batch:
            word, body = "PUBLISH_BATCH" if batch else "PUBLISH_ROWS", b"[%b]" % b",".join(rows)
        self.send(self._publisher, f"{word} {stream} {writer}#1 ".encode() + body + b"\n")
        while True:
            line = self._publisher.take_line()
            if line is None:
                require(
                    not self._publisher.closed
                    and await self._target.news(self._publisher, self._target.wait_s),
                    f"no answer to {word}",
                )
                continue
            words = line.split(" ")
            if words[0] == "PUBLISHED":
                break
            if words[0] == "REFUSED" and Reason.READ_ONLY.value in words:
                raise CannotPlay(f"rows are not taken here: {line}")
            others = ("SERVER", "PING", "AUTHORIZED")
            require(words[0] in others, f"{word} was answered with {line}")
        pair = (stream, name)
        first = self._written[pair] + 1
        last = first if batch else first + len(rows) - 1
        self._tokens[pair][first] = int(words[3])
        self._tokens[pair][last] = int(words[4])
        self._written[pair] = last

    async def do_streams(self, names: str) -> None:
        """Do nothing: it was looked at before."""

    async def do_after(self, seconds: str) -> None:
        """Let time pass."""
        await self._target.pause(float(seconds))

    async def do_pause(self) -> None:
        """The first client stops reading; its buffers are small."""
        transport: Any = self.talkers[1].transport
        with suppress(AttributeError):
            transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        transport.pauseProducing()

    async def do_resume(self) -> None:
        """The first client reads on."""
        transport: Any = self.talkers[1].transport
        transport.resumeProducing()

    async def do_behind(self) -> None:
        """Do nothing: where it keeps its place is the server's own matter."""

    async def do_heard(self, word: str, count: str) -> None:
        """Expect no complaint: what becomes of it is not seen from here."""
        await self.do_open()

    async def do_acked(self, name: str, token: str) -> None:
        """Expect no complaint: what becomes of it is not seen from here."""
        await self.do_open()

    async def do_dialect(self, name: str) -> None:
        """Do nothing: it shows in what is said."""

    async def do_restart(self) -> None:
        """Restart the server, and wait until it is there."""
        program, *arguments = shlex.split(self._target.restart)
        _, errors, code = await getProcessOutputAndValue(
            program, arguments, None, reactor=self._target.reactor
        )
        require(code == 0, f"{self._target.restart} ended with {code}: {errors.decode()[-500:]}")
        self.talkers.clear()
        deadline = self._target.reactor.seconds() + 10 * self._target.wait_s
        while True:
            why = "it says nothing"
            try:
                talker = await self._target.connect()
            except (TcpreplError, ConnectError) as error:
                why = str(error)
            else:
                # Whoever is about to end may accept a connection all the same.
                await self._target.news(talker, self._target.wait_s)
                assert talker.transport is not None
                talker.transport.loseConnection()
                if talker.received:
                    return
            require(self._target.reactor.seconds() < deadline, f"it does not come back: {why}")
            await self._target.pause(0.1)


def _pair(line: str) -> tuple[str, str | None] | None:
    """Return stream and instance of a line about rows; no instance in the dialect of 2017."""
    words = line.split(" ")
    if words[0] not in ("POSITION", "RDATA", "PUBLISHED") or len(words) < 3:
        return None
    if words[0] != "PUBLISHED" and (words[2].isdigit() or words[2] == "batch"):
        return words[1], None
    return words[1], words[2]


def _same_row(written: str, real: str) -> bool:
    """Return whether two rows are the same JSON."""
    if written == "...":
        return bool(real)
    try:
        return bool(json.loads(written) == json.loads(real))
    except ValueError:
        return False
