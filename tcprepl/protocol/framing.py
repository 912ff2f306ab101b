"""Bytes to lines: linear in the input whatever its fragmentation, bounded in memory.

protocol.md section 3. Twisted's own line receiver is quadratic on long lines and goes on
delivering after a pause; so framing is done here.
"""

from __future__ import annotations

_LF = b"\n"
_CR = b"\r"


class LineBuffer:
    """Cuts a stream of bytes at LF, and drops one CR before it.

    It never holds more than the longest line and a delimiter. Once a line exceeded the
    limit, `overlong` has its beginning and everything after it is thrown away.

    Args:
        max_line_bytes: Longest line, delimiter excluded.
        long_word: How lines begin, in any case, that may be longer; nothing for none.
            May be changed between two calls of `feed`.
        max_long_bytes: Longest of these.

    Attributes:
        max_line_bytes: As given.
        overlong: The first *max_line_bytes* bytes of the line that was too long, or None.
    """

    __slots__ = ("_max_long_bytes", "_tail", "long_word", "max_line_bytes", "overlong")

    def __init__(
        self, max_line_bytes: int, long_word: bytes = b"", max_long_bytes: int = 0
    ) -> None:
        self.max_line_bytes = max_line_bytes
        self.long_word = long_word
        self._max_long_bytes = max_long_bytes
        self.overlong: bytes | None = None
        self._tail = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a line that has not ended."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that *data* completes, without delimiters.

        The lines before one that is too long are still returned; look at `overlong` after
        each call.
        """
        if self.overlong is not None:
            return []
        tail = self._tail
        # The shortest input that can hold a line over the limit is longer than the limit.
        may_exceed = len(tail) + len(data) > self.max_line_bytes
        if not tail:
            lines = data.split(_LF)
            has_cr = _CR in data
        else:
            end = data.find(_LF)
            if end < 0:
                tail += data
                if may_exceed:
                    self._check_tail()
                return []
            tail += data[:end]
            has_cr = _CR in data or tail.endswith(_CR)
            lines = data[end + 1 :].split(_LF)
            lines.insert(0, bytes(tail))
            tail.clear()
        tail += lines.pop()
        if has_cr:
            lines = [line[:-1] if line.endswith(_CR) else line for line in lines]
        if may_exceed:
            longest = self.max_line_bytes
            if lines and max(map(len, lines)) > longest:
                for index, line in enumerate(lines):
                    if len(line) > longest and len(line) > self._most(line):
                        self._overflow(line)
                        return lines[:index]
            self._check_tail()
        return lines

    def _most(self, line: bytes | bytearray) -> int:
        """Return how long *line*, of which the beginning is there, may be."""
        word = self.long_word
        if word and line[: len(word)].upper() == word:
            return self._max_long_bytes
        return self.max_line_bytes

    def _check_tail(self) -> None:
        """Give up on an unended line as soon as no delimiter can make it fit."""
        excess = len(self._tail) - self._most(self._tail)
        if excess > 1 or (excess == 1 and not self._tail.endswith(_CR)):
            self._overflow(bytes(self._tail))

    def _overflow(self, line: bytes) -> None:
        self.overlong = line[: self._most(line)]
        self._tail.clear()
