"""What a process that comes back is told before the rows that it missed (protocol.md 15.7).

A Synapse takes no row of a stream before it was told, on the same connection, where some writer
of that stream is: ``POSITION stream instance prev new``. It fetches from its database unless its
own token of that writer is in ``[prev, new]``. That token is the newest that it was told of; or, in
a stream with several writers, a later one, up to which the rows of all of them leave no token
out. So *prev* is the newest of which it was told, and *new* is as high as can be: just before
the first row that it missed; where it missed none, the end of what the log has of the writer,
and of the tokens behind that, without a hole, which other writers used. Of the writers of a stream
the one with the highest *new* comes first: the process cannot be above that, and once it
follows the stream it drops what says nothing new to it.

Each such line is true, whatever the process has: there is no row in ``(prev, new]``. So one whose
place is not what it is taken for fetches what it needs, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from tcprepl.errors import TcpreplError
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.replication.bus.delivered import Stand
from tcprepl.replication.relaying.intake import IN_MEMORY
from tcprepl.streams.cursor import AtHead, Limits, Restart
from tcprepl.streams.gaps import Gap
from tcprepl.streams.log import Log, Page

#: How many tokens back the row is looked for that a process was told of last.
LOOK_BACK: Final = 1_000
#: Of this stream every process but the writer is at 0, whatever it was told: it keeps no token.
UNCOUNTED: Final = "federation"
#: Runs of tokens of a stream that are remembered.
_RUNS: Final = 64


class NotInLogError(TcpreplError):
    """What a process missed is not in the log, or what it has is not."""


class Start(NamedTuple):
    """Where a process begins with a pair: no row is in ``(prev, new]``.

    Attributes:
        prev: The token that it was told of last.
        new: Up to where the rows that follow are not.
        after: Where reading goes on.
        missed: Whether rows follow, or are missing.
        told: Whether it is told so.
    """

    prev: Token
    new: Token
    after: Token
    missed: bool = False
    told: bool = True


class Covered:
    """Which tokens of each stream were used, as far as they leave none out.

    Writers of a stream that is in memory count each for themselves: of these nothing is noted.
    """

    def __init__(self) -> None:
        self._runs: dict[StreamName, list[list[Token]]] = {}

    def add(self, stream: StreamName, tokens: Iterable[Token]) -> None:
        """Note that *tokens*, ascending, are those of rows of *stream*."""
        if stream in IN_MEMORY:
            return
        runs = self._runs.setdefault(stream, [])
        for token in tokens:
            if runs and token == runs[-1][1] + 1:
                runs[-1][1] = token
            else:
                self._add(runs, token)

    def _add(self, runs: list[list[Token]], token: Token) -> None:
        index = len(runs)
        while index and runs[index - 1][0] > token:
            index -= 1
        before = runs[index - 1] if index else None
        after = runs[index] if index < len(runs) else None
        if before is not None and token <= before[1]:
            return
        if before is not None and token == before[1] + 1:
            before[1] = token
        else:
            before = [token, token]
            runs.insert(index, before)
            index += 1
        if after is not None and before[1] + 1 == after[0]:
            before[1] = after[1]
            del runs[index]
        del runs[:-_RUNS]

    def end(self, stream: StreamName, token: Token) -> Token:
        """Return the last token up to which none above *token* is left out."""
        for first, last in reversed(self._runs.get(stream, ())):
            if first <= token + 1:
                return max(token, last)
        return token


class End(NamedTuple):
    """Where a pair ends.

    Attributes:
        token: The newest that is in the log.
        covered: Up to where other writers of the stream have used every token behind it.
    """

    token: Token
    covered: Token


async def starts_of(
    log: Log, stands: Mapping[Pair, Stand], ends: Mapping[Pair, End]
) -> dict[Pair, Start]:
    """Return where a process begins with each pair of *stands*.

    Args:
        log: The log.
        stands: Where it stood.
        ends: Where each pair ends; those that have none are left out.

    Raises:
        NotInLogError: A place is not in the log.
        LogUnavailable: The disk refuses.
    """
    starts: dict[Pair, Start] = {}
    for pair, stand in stands.items():
        end = ends.get(pair)
        if end is not None:
            prev = stand.token if stand.told else await _row_before(log, pair, stand.token)
            starts[pair] = await _start(log, pair, stand.token, prev, end)
    return starts


async def look_back(log: Log, heads: Mapping[Pair, Token], covered: Covered) -> None:
    """Note in *covered* what the log has just before *heads*.

    Raises:
        LogUnavailable: The disk refuses.
    """
    for pair, head in heads.items():
        cursor = log.cursor(pair, max(0, head - LOOK_BACK))
        while not isinstance(answer := await cursor.arrived(Limits(head)), AtHead):
            if isinstance(answer, Page):
                covered.add(pair[0], answer.tokens)


async def _start(log: Log, pair: Pair, after: Token, prev: Token, end: End) -> Start:
    cursor = log.cursor(pair, after)
    while not isinstance(answer := await cursor.arrived(Limits(end.token, 1)), AtHead):
        if isinstance(answer, Restart):
            raise NotInLogError(f"{pair[0]} of {pair[1]} ends at {answer.held} in the log")
        if isinstance(answer, Gap):
            # what is gone here the process finds in its database
            return Start(answer.upto, answer.upto, answer.upto, missed=True)
        if answer.tokens:
            return Start(prev, answer.tokens[0] - 1, after, missed=True)
    return Start(prev, end.covered, end.token)


async def _row_before(log: Log, pair: Pair, token: Token) -> Token:
    """Return the newest token up to *token* that a process was told of."""
    cursor = log.cursor(pair, max(0, token - LOOK_BACK))
    last = cursor.token
    while not isinstance(answer := await cursor.arrived(Limits(token)), AtHead):
        if isinstance(answer, Restart):
            return token
        if isinstance(answer, Gap):
            last = answer.upto
        elif answer.tokens:
            last = answer.tokens[-1]
    return last


class Unsaid:
    """Streams that a process writes with others, and of which it missed nothing.

    What it has written itself without our knowing moves its token of all writers of the stream, and
    nobody but itself knows that token: any position might make it ask its database, for nothing.
    So it is told of such a stream when another writes a row: it cannot be above that.

    Args:
        own: The instance that the process is.
        starts: Where it begins with the pairs of these streams.
    """

    def __init__(self, own: InstanceName, starts: Mapping[Pair, Start]) -> None:
        self.own = own
        self.streams = {stream for stream, _ in starts}
        self._prev = {pair: start.prev for pair, start in starts.items()}
        self._at = {pair: start.after for pair, start in starts.items()}

    def prev(self, pair: Pair) -> Token | None:
        """Return the token of *pair* that the process was told of last."""
        return self._prev.get(pair)

    def told(self, chunk: bytes) -> tuple[bytes, set[bytes]]:
        """Return *chunk*, lines that end with LF, as the process is told them.

        And those of its lines that are said although they may say nothing (``0 0``): rows of a
        stream count only behind its first position.
        """
        said: list[bytes] = []
        announced: set[bytes] = set()
        lines = chunk.split(b"\n")[:-1]
        for number, line in enumerate(lines):
            word, name, instance, rest = line.split(b" ", 3)
            pair = (name.decode(), instance.decode())
            if pair[0] in self.streams and pair[1] != self.own:
                if word == b"POSITION":
                    before, now = map(int, rest.split(b" "))
                    if before <= self._at.get(pair, before):
                        self._prev.setdefault(pair, before)
                        self._at[pair] = now
                        continue
                else:
                    head = line[: -len(rest)]
                    token = next(
                        int(row[len(head) :].split(b" ", 1)[0])
                        for row in lines[number:]
                        if row.startswith(head) and not row.startswith(b"batch ", len(head))
                    )
                    prev = self._prev.get(pair, token - 1)
                    said.append(b"POSITION %b %b %d %d" % (name, instance, prev, token - 1))
                    announced.add(said[-1])
                self.streams.discard(pair[0])
            said.append(line)
        return b"".join([line + b"\n" for line in said]), announced


def unsaid_of(own: InstanceName, starts: Mapping[Pair, Start]) -> Unsaid | None:
    """Return what is better not said yet to the process that is *own*; None if there is nothing."""
    shared = {stream for stream, instance in starts if instance == own} - IN_MEMORY
    others = {pair: at for pair, at in starts.items() if pair[0] in shared and pair[1] != own}
    missed = {stream for (stream, _), at in others.items() if at.missed}
    kept = {pair: at for pair, at in others.items() if pair[0] not in missed}
    return Unsaid(own, kept) if kept else None


def in_order(starts: Mapping[Pair, Start]) -> list[tuple[Pair, Start]]:
    """Return *starts* in the order in which they are told: the highest first."""
    return sorted(starts.items(), key=lambda one: -one[1].new)
