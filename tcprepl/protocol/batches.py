"""RDATA lines to batches: the hot loop of every reader (protocol.md section 7).

Rows that share a token belong together: all but the last carry ``batch`` for it. They are
collected for each (stream, instance), whatever comes between, and handed on as a whole.
Per row nothing is made but the row; neighbours of one pair are read as a run.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import Final, cast

from tcprepl.errors import LostRow
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.limits import MAX_BATCH_BYTES, MAX_BATCH_ROWS, MAX_PAIRS, MAX_TOKEN
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.dialects import DEFAULT_INSTANCE, Dialect
from tcprepl.protocol.display import snippet
from tcprepl.protocol.events import Event, MixedReceived, RowsReceived, RunReceived
from tcprepl.protocol.grammar import NAME_SHAPE, PATTERNS, TOKEN_RANGE

_WORD: Final = b"RDATA "
_RDATA: Final = b"RDATA"
_BATCH: Final = b"batch"
_EVERY: Final = "*"
#: A run of fewer lines costs more to be read in one go than line by line.
_LEAST_LINES = 32
#: Longer digit strings are refused before they are converted.
_TOKEN_DIGITS: Final = len(str(MAX_TOKEN))
_is_name = PATTERNS["name"].fullmatch


class _Pair:
    """What is held of one (stream, instance)."""

    __slots__ = ("held", "held_token", "instance", "pending", "prefix", "stream")

    def __init__(self, stream: StreamName, instance: InstanceName, prefix: bytes) -> None:
        self.stream = stream
        self.instance = instance
        self.prefix = prefix
        #: Rows whose token has not come yet.
        self.pending: list[bytes] = []
        #: 2017, catching up: rows of `held_token`, of which more may come.
        self.held: list[bytes] = []
        self.held_token: Token = 0


class BatchAssembler:
    """Collects the rows of one connection into batches.

    What it holds back is bounded over all pairs together.

    Attributes:
        dialect: How RDATA is read.
        dropped_rows: Rows of streams that no POSITION announced, and of batches that a
            POSITION cut off.
        mixes: Whether rows of several pairs may come as `MixedReceived`.
    """

    __slots__ = (
        "_held_bytes",
        "_held_rows",
        "_live",
        "_names",
        "_pairs",
        "dialect",
        "dropped_rows",
        "max_bytes",
        "max_pairs",
        "max_rows",
        "mixes",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        max_rows: int = MAX_BATCH_ROWS,
        max_bytes: int = MAX_BATCH_BYTES,
        max_pairs: int = MAX_PAIRS,
        mixes: bool = False,
    ) -> None:
        self.dialect = dialect
        self.mixes = mixes
        self.dropped_rows = 0
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.max_pairs = max_pairs
        self._pairs: dict[bytes, _Pair] = {}
        #: What `read_mixed` finds them by: both names as they stand in a line.
        self._names: dict[tuple[bytes, bytes], Pair] = {}
        #: Streams that had a POSITION since they were last asked for.
        self._live: set[StreamName] = set()
        self._held_rows = 0
        self._held_bytes = 0

    @property
    def held_rows(self) -> int:
        """Rows held back until their batch is whole."""
        return self._held_rows

    def replicate(self, stream: StreamName | None) -> None:
        """Note that *stream* (None or ``*``: every stream) was asked for.

        In 2017 the rows that were missed come next, each with a token of its own, until
        POSITION; in every other dialect nothing changes before the server's POSITION.
        """
        if self.dialect.announced:
            return
        if stream is None or stream == _EVERY:
            self._live.clear()
        else:
            self._live.discard(stream)

    def position(self, command: PositionCommand, events: list[Event], line_number: int) -> None:
        """Take note of a POSITION: its stream is live, what was pending of its pair is void."""
        self._live.add(command.stream)
        if len(self._live) > self.max_pairs:
            raise LostRow(f"more than {self.max_pairs} streams", line_number=line_number)
        pair = self._pairs.get(self._prefix(command.stream, command.instance))
        if pair is None:
            return
        self._emit_held(pair, events)
        self.dropped_rows += len(pair.pending)
        self._release(pair.pending)
        pair.pending = []

    def read(self, lines: list[bytes], start: int, line_number: int, events: list[Event]) -> int:
        """Read RDATA lines from *lines* on from *start*; the lines are valid UTF-8.

        Args:
            lines: Lines without delimiters.
            start: Where to begin.
            line_number: Number of the first of *lines* in the connection.
            events: Where the batches that became whole go.

        Returns:
            The index of the first line that does not start with ``RDATA ``.

        Raises:
            LostRow: A line cannot be read, or too much is held back. Events of the lines
                before it are in *events*.
        """
        index = start
        end = len(lines)
        if self.mixes and end - start > 1 and self.read_mixed(lines, start, events):
            return end
        if self.mixes and end - start > 1:
            index = self.read_runs(lines, start, events)
        while index < end and lines[index].startswith(_WORD):
            pair = self._pair_of(lines[index], line_number + index)
            if pair is None:
                self.dropped_rows += 1
                index += 1
            elif pair.stream in self._live:
                index = self._read_run(pair, lines, index, line_number, events)
            else:
                self._read_one(pair, lines[index], line_number + index, events)
                index += 1
        return index

    def read_mixed(self, lines: list[bytes], start: int, events: list[Event]) -> bool:
        """Read *lines* from *start* on in one go, if each is a batch of one row of a known pair.

        They are two or more, and valid UTF-8. Nothing is done for a single line but in C. Whatever
        is not as it nearly always is, is left to be read line by line.

        Returns:
            Whether they have been read.
        """
        if self._held_rows or not (self.dialect.announced and self.dialect.rdata_instance):
            return False
        if (
            sum(_prefix(lines[at]) == _prefix(lines[at + 1]) for at in _samples(start, len(lines)))
            > 1
        ):
            return False  # most neighbours are of one pair: they are read faster as runs
        parts = [line.split(b" ", 4) for line in (lines[start:] if start else lines)]
        try:
            words, streams, instances, digits, rows = zip(*parts, strict=True)
            tokens = list(map(int, digits))
        except ValueError:
            return False
        pairs = list(map(self._names.get, zip(streams, instances, strict=True)))
        if (
            words.count(_RDATA) != len(words)
            or not b"".join(digits).isdigit()
            or max(map(len, digits)) > _TOKEN_DIGITS
            or max(tokens) > MAX_TOKEN
            or not all(rows)
        ):
            return False
        if None in pairs:
            return False
        events.append(MixedReceived(cast("list[Pair]", pairs), tokens, rows))
        return True

    def read_runs(self, lines: list[bytes], start: int, events: list[Event]) -> int:
        """Read *lines* from *start* on, run by run of a known pair, each line a batch of one row.

        They are valid UTF-8. As `read_mixed` it does little for a single line but in C, and leaves
        what is not as it nearly always is, and all behind it, to be read line by line: so short
        runs, and those in which rows share a token.

        Returns:
            The index of the first line that has not been read.
        """
        end = len(lines)
        while start < end:
            line = lines[start]
            cut = line.find(b" ", line.find(b" ", len(_WORD)) + 1) + 1
            prefix = line[:cut]
            pair = self._pairs.get(prefix)
            if pair is None or pair.pending or pair.stream not in self._live:
                break
            if not lines[min(start + _LEAST_LINES, end) - 1].startswith(prefix):
                break
            other = partial(_is_of_other, prefix)
            stop = bisect_left(lines, True, start, end, key=other)
            together = b"\n".join(lines[start:stop])
            if stop - start < _LEAST_LINES or prefix + _BATCH in together:
                break
            parts = together[cut:].split(b"\n" + prefix)
            digits, _, rows = zip(*[part.partition(b" ") for part in parts], strict=True)
            if (
                len(parts) != stop - start  # there are others between them
                or not (all(digits) and all(rows) and b"".join(digits).isdigit())
                or max(map(len, digits)) > _TOKEN_DIGITS
                or max(tokens := list(map(int, digits))) > MAX_TOKEN
            ):
                break
            events.append(_run(pair, tokens, list(rows)))
            start = stop
        return start

    def _read_run(
        self, pair: _Pair, lines: list[bytes], index: int, line_number: int, events: list[Event]
    ) -> int:
        """Read neighbouring lines of known live pairs; return the index after them."""
        prefix = pair.prefix
        skip = len(prefix)
        end = len(lines)
        pending = pair.pending
        pairs, live = self._pairs, self._live
        with_instance = self.dialect.rdata_instance
        word = len(_WORD)
        tokens: list[Token] = []
        rows: list[bytes] = []
        try:
            while index < end:
                line = lines[index]
                if not line.startswith(prefix):
                    cut = line.find(b" ", word)
                    if with_instance:
                        cut = line.find(b" ", cut + 1)
                    other = pairs.get(line[: cut + 1])
                    if other is None or other.stream not in live:
                        break
                    if tokens:
                        events.append(_run(pair, tokens, rows))
                        tokens, rows = [], []
                    pair = other
                    prefix = pair.prefix
                    skip = len(prefix)
                    pending = pair.pending
                token, _, row = line[skip:].partition(b" ")
                if token.isdigit() and row and len(token) <= _TOKEN_DIGITS:
                    value = int(token)
                    if value > MAX_TOKEN:
                        raise self._unreadable(line, skip, line_number + index)
                    if pending:
                        if tokens:
                            events.append(_run(pair, tokens, rows))
                            tokens, rows = [], []
                        self._release(pending)
                        pending.append(row)
                        events.append(RowsReceived(pair.stream, pair.instance, value, pending))
                        pair.pending = pending = []
                    else:
                        tokens.append(value)
                        rows.append(row)
                elif token == _BATCH and row:
                    self._hold(row, line_number + index)
                    pending.append(row)
                else:
                    raise self._unreadable(line, skip, line_number + index)
                index += 1
        finally:
            if tokens:
                events.append(_run(pair, tokens, rows))
        return index

    def _read_one(self, pair: _Pair, line: bytes, line_number: int, events: list[Event]) -> None:
        """Read a line of the 2017 catch-up, where neighbours repeat the token they share."""
        skip = len(pair.prefix)
        token, _, row = line[skip:].partition(b" ")
        if token == _BATCH and row:
            self._hold(row, line_number)
            pair.pending.append(row)
            return
        if not (token.isdigit() and row and len(token) <= _TOKEN_DIGITS):
            raise self._unreadable(line, skip, line_number)
        value = int(token)
        if value > MAX_TOKEN:
            raise self._unreadable(line, skip, line_number)
        if value != pair.held_token:
            self._emit_held(pair, events)
        self._hold(row, line_number)
        pair.held_token = value
        pair.held += pair.pending
        pair.held.append(row)
        pair.pending = []

    def _emit_held(self, pair: _Pair, events: list[Event]) -> None:
        if pair.held:
            self._release(pair.held)
            events.append(RowsReceived(pair.stream, pair.instance, pair.held_token, pair.held))
            pair.held = []

    def _hold(self, row: bytes, line_number: int) -> None:
        self._held_rows += 1
        self._held_bytes += len(row)
        if self._held_rows > self.max_rows or self._held_bytes > self.max_bytes:
            raise LostRow(
                f"RDATA: more than {self.max_rows} rows or {self.max_bytes} bytes wait for "
                "the token of their batch",
                line_number=line_number,
            )

    def _release(self, rows: list[bytes]) -> None:
        self._held_rows -= len(rows)
        self._held_bytes -= sum(map(len, rows))

    def _prefix(self, stream: StreamName, instance: InstanceName) -> bytes:
        """Return what every RDATA line of a pair starts with."""
        if self.dialect.rdata_instance:
            return f"RDATA {stream} {instance} ".encode()
        return f"RDATA {stream} ".encode()

    def _pair_of(self, line: bytes, line_number: int) -> _Pair | None:
        """Return the pair of *line*; None when its rows do not count yet."""
        cut = line.find(b" ", len(_WORD))
        if self.dialect.rdata_instance and cut >= 0:
            cut = line.find(b" ", cut + 1)
        if cut < 0:
            raise self._unreadable(line, len(line), line_number)
        prefix = line[: cut + 1]
        pair = self._pairs.get(prefix)
        if pair is not None:
            return pair
        names = prefix[len(_WORD) : -1].decode().split(" ")
        if not all(map(_is_name, names)):
            raise LostRow(
                f'RDATA: a name in "{snippet(prefix)}" is not {NAME_SHAPE}',
                snippet=snippet(prefix),
                line_number=line_number,
            )
        stream = names[0]
        if self.dialect.announced and stream not in self._live:
            return None
        if len(self._pairs) >= self.max_pairs:
            raise LostRow(
                f"RDATA: more than {self.max_pairs} pairs of stream and instance",
                line_number=line_number,
            )
        pair = _Pair(stream, names[1] if len(names) > 1 else DEFAULT_INSTANCE, prefix)
        self._pairs[prefix] = pair
        if len(names) > 1:
            self._names[names[0].encode(), names[1].encode()] = (pair.stream, pair.instance)
        return pair

    def _unreadable(self, line: bytes, skip: int, line_number: int) -> LostRow:
        """Return the error for a line whose token or row does not fit."""
        shape = "<stream> <instance> <token|batch> <row>"
        if not self.dialect.rdata_instance:
            shape = "<stream> <token|batch> <row>"
        token, _, row = line[skip:].partition(b" ")
        shown = snippet(token)
        if row or not token:
            what = f'token "{shown}" is neither batch nor {TOKEN_RANGE}' if token else "cut short"
        else:
            what = "the row is empty"
        return LostRow(
            f"RDATA: {what}; expected RDATA {shape}", snippet=shown, line_number=line_number
        )


def _run(pair: _Pair, tokens: list[Token], rows: list[bytes]) -> RowsReceived | RunReceived:
    """Return the event for batches of one row each; it keeps *tokens* and *rows*."""
    if len(tokens) == 1:
        return RowsReceived(pair.stream, pair.instance, tokens[0], rows)
    return RunReceived(pair.stream, pair.instance, tokens, rows)


def _is_of_other(prefix: bytes, line: bytes) -> bool:
    """Return whether *line* begins otherwise than with *prefix*."""
    return not line.startswith(prefix)


def _samples(start: int, end: int) -> tuple[int, int, int]:
    """Return some of the places of lines that have one after them."""
    return start, (start + end - 1) // 2, end - 2


def _prefix(line: bytes) -> list[bytes]:
    """Return the words before the token."""
    return line.split(b" ", 3)[:3]
