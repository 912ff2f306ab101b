"""RESP, the wire of Redis, without I/O: bytes in, replies and pushed messages out.

A relay lives from messages, so every message of one read is cut at once, with one search for
each. What is not a message is read by the book (RESP2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tcprepl.errors import TcpreplError

#: Longest reply or message that is read.
MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
#: Longest line before a payload: a type, a number, or the text of an error.
_MAX_HEAD_BYTES: Final = 16_384
#: How deep arrays may be nested; what Redis says to us is flat.
_MAX_DEPTH: Final = 8

_CRLF: Final = b"\r\n"


class BadReply(TcpreplError):
    """What came is not RESP, or more than is read."""


class ErrorReply(Exception):
    """Redis refused a command; the text is Redis's own."""


class Message:
    """A payload that somebody published on a channel we are subscribed to."""

    __slots__ = ("channel", "payload")

    def __init__(self, channel: bytes, payload: bytes) -> None:
        self.channel = channel
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Message on {self.channel!r}, {len(self.payload)} bytes>"


class _Incomplete(Exception):
    """More bytes are needed."""


class RespReader:
    """Cuts a stream of bytes into replies.

    Args:
        channel: The channel whose messages take the fast way.
    """

    __slots__ = ("_head", "_rest", "max_reply_bytes")

    def __init__(self, channel: bytes = b"", *, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self.max_reply_bytes = max_reply_bytes
        self._rest = b""
        self._head = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$" % (len(channel), channel)

    def feed(self, data: bytes) -> tuple[list[bytes], list[object]]:
        """Take *data* and return what is complete now.

        Returns:
            The payloads of the messages on the channel, in order; and everything else, in
            order: `Message`, `ErrorReply`, bytes, int, None, lists of these.

        Raises:
            BadReply: The bytes are not RESP.
        """
        buffer = self._rest + data if self._rest else data
        payloads: list[bytes] = []
        others: list[object] = []
        position, end = 0, len(buffer)
        head, skip = self._head, len(self._head)
        while position < end:
            if buffer.startswith(head, position):
                begin = position + skip
                stop = buffer.find(_CRLF, begin, begin + 24)
                if stop < 0:
                    if end - begin >= 24:
                        raise BadReply("a message without a length")
                    break
                size = self._size(buffer[begin:stop])
                begin = stop + 2
                if end < begin + size + 2:
                    break
                payloads.append(buffer[begin : begin + size])
                position = begin + size + 2
                continue
            try:
                value, position = self._value(buffer, position, 0)
            except _Incomplete:
                break
            others.append(_as_message(value))
        self._rest = buffer[position:] if position else buffer
        if len(self._rest) > self.max_reply_bytes:
            raise BadReply(f"more than {self.max_reply_bytes} bytes without an end")
        return payloads, others

    def _size(self, digits: bytes) -> int:
        if len(digits) > 20 or not digits.isdigit() or int(digits) > self.max_reply_bytes:
            raise BadReply(f"{digits[:32]!r} is not a length up to {self.max_reply_bytes}")
        return int(digits)

    def _value(self, buffer: bytes, position: int, depth: int) -> tuple[object, int]:
        """Return the value at *position* and where it ends."""
        stop = buffer.find(_CRLF, position)
        if stop < 0:
            if len(buffer) - position > _MAX_HEAD_BYTES:
                raise BadReply(f"no end of line within {_MAX_HEAD_BYTES} bytes")
            raise _Incomplete
        kind, rest = buffer[position : position + 1], buffer[position + 1 : stop]
        position = stop + 2
        if kind == b"+":
            return rest, position
        if kind == b"-":
            return ErrorReply(rest.decode("utf-8", "replace")), position
        if kind == b":":
            return _number(rest), position
        if kind == b"$":
            if rest == b"-1":
                return None, position
            size = self._size(rest)
            if len(buffer) < position + size + 2:
                raise _Incomplete
            return buffer[position : position + size], position + size + 2
        if kind == b"*":
            return self._array(buffer, position, rest, depth)
        raise BadReply(f"{kind!r} begins no reply; is this Redis?")

    def _array(self, buffer: bytes, position: int, count: bytes, depth: int) -> tuple[object, int]:
        if count == b"-1":
            return None, position
        if depth >= _MAX_DEPTH:
            raise BadReply(f"arrays nested more than {_MAX_DEPTH} deep")
        values: list[object] = []
        for _ in range(self._size(count)):
            value, position = self._value(buffer, position, depth + 1)
            values.append(value)
        return values, position


def _number(digits: bytes) -> int:
    try:
        return int(digits)
    except ValueError:
        raise BadReply(f"{digits[:32]!r} is not a number") from None


def _as_message(value: object) -> object:
    match value:
        case [b"message", bytes(channel), bytes(payload)]:
            return Message(channel, payload)
    return value


def encode(*words: bytes) -> bytes:
    """Return one command as Redis reads it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def encode_publish(channel: bytes, payloads: Sequence[bytes]) -> bytes:
    """Return a PUBLISH for each of *payloads*, as one chunk of bytes."""
    head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(channel), channel)
    return b"".join([b"%b%d\r\n%b\r\n" % (head, len(one), one) for one in payloads])
