"""What clients say to a Redis, without I/O: bytes in, requests out (protocol.md section 15).

The other half of `resp`. A client sends a request as an array of bulk strings, or, from netcat, as
a line of words (*inline*). Both are read as Redis reads them, and refused in its words. A
homeserver's processes send PUBLISH to one channel, thousands in a row; those are cut with one
search each.
"""

from __future__ import annotations

from typing import Final, TypeAlias

#: Longest inline request, and longest head of an array or of a string (as Redis 7).
MAX_INLINE_BYTES: Final = 65_536
#: Most words of a request.
MAX_WORDS: Final = 65_536
#: Longest word; a row or a cached value is far below.
MAX_WORD_BYTES: Final = 16 * 1024 * 1024
#: Most bytes of the words of one request.
MAX_REQUEST_BYTES: Final = 32 * 1024 * 1024
#: The same for who has not said the password that is asked for (as Redis 7).
MAX_WORDS_UNTRUSTED: Final = 10
MAX_WORD_BYTES_UNTRUSTED: Final = 16_384

_CRLF: Final = b"\r\n"
_STAR: Final = ord("*")
#: What a backslash stands before between double quotes, and what is meant.
_ESCAPES: Final = dict(zip(b"nrtba", b"\n\r\t\b\a", strict=True))
#: What may stand before and behind a word, and what ends one (as Redis).
_SPACE: Final = b" \t\r\n\v\f\0"
_ENDS: Final = b" \t\r\n\0"
#: Numbers are below it, and not below its negative.
_LIMIT: Final = 2**63
_HEX: Final = b"0123456789abcdefABCDEF"

#: A payload published on the reader's channel; or the words of any other request.
Request: TypeAlias = bytes | list[bytes]


class _Incomplete(Exception):
    """More bytes are needed."""


class _Fault(Exception):
    """What came is no request."""


class RequestReader:
    """Cuts a stream of bytes into requests, as many at a time as are asked for.

    Call `feed` with what came, then `take` until it returns fewer than its limit.

    Args:
        channel: The channel whose PUBLISH takes the fast way.
        trusted: Whether large requests are read.

    Attributes:
        trusted: The same; set it once the password was said.
        fault: What is wrong with the bytes, in Redis's words; None while they are fine. Nothing
            behind a fault is read: answer it and close.
    """

    __slots__ = (
        "_buffer",
        "_channel",
        "_chunks",
        "_count",
        "_head",
        "_held",
        "_needed",
        "_position",
        "_words",
        "_words_bytes",
        "fault",
        "trusted",
    )

    def __init__(self, channel: bytes = b"", *, trusted: bool = True) -> None:
        self.trusted = trusted
        self.fault: str | None = None
        self._channel = channel
        self._head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(channel), channel)
        self._buffer = b""
        self._position = 0
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 1
        # the array that is being read: its words so far, and how many it has
        self._words: list[bytes] = []
        self._count = 0
        self._words_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that came and are not taken yet."""
        return self._held + self._words_bytes

    def feed(self, data: bytes) -> None:
        """Take in what came."""
        self._chunks.append(data)
        self._held += len(data)

    def take(self, limit: int = 10_000) -> list[Request]:
        """Return the next requests that are complete, at most *limit*.

        Fewer are all there are: then see whether there is a `fault`.
        """
        found: list[Request] = []
        if self.fault is not None or self._held < self._needed:
            return found
        if self._chunks:
            # only once there is enough for a step, so that a long word is joined but once
            rest = self._buffer[self._position :]
            self._buffer = b"".join((rest, *self._chunks))
            self._chunks.clear()
            self._position = 0
        self._needed = 1  # unless the end of what is there is within a request
        before = self._position
        try:
            while len(found) < limit:
                if self.trusted and not self._count:
                    self._skim(found, limit)
                    if len(found) == limit:
                        break
                request = self._next()
                if type(request) is list and len(request) == 3 and self._is_published(request):
                    request = request[2]
                if request is not None:
                    found.append(request)
        except _Incomplete:
            pass
        except _Fault as fault:
            self.fault = f"Protocol error: {fault}"
        self._held -= self._position - before
        if self.fault is not None:
            self._buffer = b""
            self._words.clear()
            self._held = self._position = self._words_bytes = 0
        return found

    def _skim(self, found: list[Request], limit: int) -> None:
        """Add what is published on the channel from the position on; stop where it is not whole."""
        buffer, head, position = self._buffer, self._head, self._position
        skip, end = len(head), len(self._buffer)
        while len(found) < limit and buffer.startswith(head, position):
            begin = position + skip
            stop = buffer.find(_CRLF, begin, begin + 8)
            digits = buffer[begin:stop]
            if stop < 0 or digits < b"1" or not digits.isdigit():
                break  # an empty one, and what is no number, are for the slow way
            begin, position_after = stop + 2, stop + 4 + int(digits)
            if position_after > end:
                break
            found.append(buffer[begin : position_after - 2])
            position = position_after
        self._position = position

    def _is_published(self, words: list[bytes]) -> bool:
        return words[1] == self._channel and words[0].upper() == b"PUBLISH"

    def _next(self) -> Request | None:
        """Return the request at the position and move behind it; None for an empty one."""
        if self._count:
            return self._read_words()
        buffer, position = self._buffer, self._position
        if buffer.startswith(self._head, position):
            payload, self._position = self._string(position + len(self._head) - 1)
            return payload
        if position >= len(buffer):
            raise self._incomplete(1)
        if buffer[position] != _STAR:
            return self._inline()
        line, position = self._line(position, "too big mbulk count string")
        count = number_of(line[1:])
        if count is None or count > MAX_WORDS:
            raise _Fault("invalid multibulk length")
        if count > MAX_WORDS_UNTRUSTED and not self.trusted:
            raise _Fault("unauthenticated multibulk length")
        self._position = position
        self._count = max(count, 0)
        return self._read_words() if self._count else None

    def _read_words(self) -> list[bytes]:
        buffer, words = self._buffer, self._words
        while len(words) < self._count:
            position = self._position
            if position >= len(buffer):
                raise self._incomplete(1)
            word, self._position = self._string(position)
            self._words_bytes += len(word)
            if self._words_bytes > MAX_REQUEST_BYTES:
                raise _Fault("too big request")
            words.append(word)
        self._words = []
        self._count = self._words_bytes = 0
        return words

    def _string(self, begin: int) -> tuple[bytes, int]:
        """Return the bulk string at *begin*, and where it ends."""
        line, begin = self._line(begin, "too big bulk count string")
        if not line.startswith(b"$"):
            kind = line[:1].decode(errors="backslashreplace")
            raise _Fault(f"expected '$', got '{kind or ' '}'")
        size = number_of(line[1:])
        if size is None or not 0 <= size <= MAX_WORD_BYTES:
            raise _Fault("invalid bulk length")
        if size > MAX_WORD_BYTES_UNTRUSTED and not self.trusted:
            raise _Fault("unauthenticated bulk length")
        end = begin + size + 2
        if len(self._buffer) < end:
            raise self._incomplete(end - self._position)
        return self._buffer[begin : end - 2], end

    def _line(self, begin: int, too_long: str) -> tuple[bytes, int]:
        """Return what stands at *begin* up to CR, and where CR and a byte behind it end."""
        stop = self._buffer.find(b"\r", begin, begin + MAX_INLINE_BYTES + 1)
        if stop < 0 and len(self._buffer) - begin > MAX_INLINE_BYTES:
            raise _Fault(too_long)
        if stop < 0 or stop + 2 > len(self._buffer):
            raise self._incomplete(len(self._buffer) - self._position + 1)
        return self._buffer[begin:stop], stop + 2

    def _inline(self) -> list[bytes] | None:
        position = self._position
        stop = self._buffer.find(b"\n", position, position + MAX_INLINE_BYTES)
        if stop < 0:
            if len(self._buffer) - position >= MAX_INLINE_BYTES:
                raise _Fault("too big inline request")
            raise self._incomplete(len(self._buffer) - position + 1)
        words = split_words(self._buffer[position:stop].removesuffix(b"\r"))
        self._position = stop + 1
        return words or None

    def _incomplete(self, needed: int) -> _Incomplete:
        """Note how many bytes from the position on make another look worth it."""
        self._needed = needed
        return _Incomplete()


def number_of(digits: bytes) -> int | None:
    """Return the number of 64 bits that *digits* are; None if they are none.

    Each has one form, as in Redis: no plus, no zero before another digit or behind a minus.
    """
    if not digits.removeprefix(b"-").isdigit() or len(digits) > 20:
        return None
    number = int(digits)
    return number if b"%d" % number == digits and -_LIMIT <= number < _LIMIT else None


def split_words(line: bytes) -> list[bytes]:
    """Return the words of an inline request.

    Words are parted by space. Double quotes keep space, and know the escapes of a string in C;
    single quotes keep everything but an escaped single quote.

    Raises:
        _Fault: A quote does not end, or something but space follows it.
    """
    words: list[bytes] = []
    position, end = 0, len(line)
    while True:
        while position < end and line[position] in _SPACE:
            position += 1
        if position == end:
            return words
        word = bytearray()
        while position < end and line[position] not in _ENDS:
            if line[position] in b"\"'":
                position = _quoted(line, position, word)
                break  # space follows
            word.append(line[position])
            position += 1
        words.append(bytes(word))


def _quoted(line: bytes, position: int, word: bytearray) -> int:
    """Add what stands between quotes to *word*; return where it ends."""
    quote = line[position]
    position += 1
    end = len(line)
    while position < end and line[position] != quote:
        if line[position] == ord("\\") and position + 1 < end:
            position = _escaped(line, position + 1, quote, word)
        else:
            word.append(line[position])
            position += 1
    if position == end or (position + 1 < end and line[position + 1] not in _SPACE):
        raise _Fault("unbalanced quotes in request")
    return position + 1


def _escaped(line: bytes, position: int, quote: int, word: bytearray) -> int:
    """Add what a backslash before *position* makes of it to *word*; return where it ends."""
    code = line[position]
    if quote == ord("'"):
        if code != quote:
            word.append(ord("\\"))
            return position
        word.append(code)
        return position + 1
    digits = line[position + 1 : position + 3]
    if code == ord("x") and len(digits) == 2 and all(digit in _HEX for digit in digits):
        word.append(int(digits, 16))
        return position + 3
    word.append(_ESCAPES.get(code, code))
    return position + 1
