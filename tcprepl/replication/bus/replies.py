"""What is said to clients of a Redis: replies, errors, pushed messages (protocol.md section 15).

Texts of errors are Redis's own where it has one, since clients look at them. What RESP3 says in
another way than RESP2 is a function of the version that the client asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from tcprepl.replication.redis.requests import number_of

OK: Final = b"+OK\r\n"
PONG: Final = b"+PONG\r\n"
NIL: Final = b"$-1\r\n"
NULL: Final = b"_\r\n"
EMPTY: Final = b"*0\r\n"
SYNTAX: Final = b"-ERR syntax error\r\n"
NOT_A_NUMBER: Final = b"-ERR value is not an integer or out of range\r\n"
NOT_LET_IN: Final = b"-NOAUTH Authentication required.\r\n"
WRONG_PASSWORD: Final = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NO_PROTOCOL: Final = b"-NOPROTO unsupported protocol version\r\n"

#: Bytes of a word, and of the words behind it, that an error quotes (as Redis).
_QUOTED_BYTES: Final = 128


class CommandError(Exception):
    """A request that is answered with an error.

    Attributes:
        reply: The answer.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply)
        self.reply = reply


def bulk(value: bytes) -> bytes:
    """Return a string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def optional(value: bytes | None, proto: int) -> bytes:
    """Return a string, or nil."""
    return bulk(value) if value is not None else NIL if proto == 2 else NULL


def text(value: str, proto: int) -> bytes:
    """Return a text for people."""
    said = value.encode()
    return bulk(said) if proto == 2 else b"=%d\r\ntxt:%b\r\n" % (len(said) + 4, said)


def table(pairs: Sequence[tuple[bytes, bytes]], proto: int) -> bytes:
    """Return what belongs to each name; both are encoded already."""
    parts = [part for pair in pairs for part in pair]
    return array(parts) if proto == 2 else b"%%%d\r\n%b" % (len(pairs), b"".join(parts))


def push(parts: Sequence[bytes], proto: int) -> bytes:
    """Return what is said without having been asked for, or confirms that it will be."""
    return array(parts) if proto == 2 else b">%d\r\n%b" % (len(parts), b"".join(parts))


def integer(number: int) -> bytes:
    """Return a number."""
    return b":%d\r\n" % number


def array(parts: Sequence[bytes]) -> bytes:
    """Return an array of what is encoded already."""
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


def joined(pieces: Sequence[bytes], limit: int) -> bytes | list[bytes]:
    """Return *pieces* in one; in several where some are of *limit* bytes and more, as they are."""
    found: list[bytes] = []
    for large, some in groupby(pieces, lambda piece: len(piece) >= limit):
        group = list(some)
        found += group if large else [b"".join(group)]
    return found[0] if len(found) == 1 else found


def strings(values: Iterable[bytes]) -> bytes:
    """Return an array of strings."""
    return array([bulk(value) for value in values])


def error(text: str) -> bytes:
    """Return an error; what would end its line is a space, and at its end left out (as Redis)."""
    said = text.rstrip("\r\n").encode("utf-8", "replace")
    safe = said.translate(None, b"\0").replace(b"\r", b" ")
    return b"-%b\r\n" % safe.replace(b"\n", b" ")


def quoted(word: bytes) -> str:
    """Return *word* as an error may show it: so much of it, up to a zero byte (as Redis)."""
    return _shown(word, _QUOTED_BYTES).decode("utf-8", "backslashreplace")


def _shown(word: bytes, size: int) -> bytes:
    return word[:size].partition(b"\0")[0]


def unknown_command(words: Sequence[bytes]) -> bytes:
    """Return what is said to a word that is none."""
    shown: list[str] = []
    size = 0
    for word in words[1:]:
        if size >= _QUOTED_BYTES:
            break
        part = _shown(word, _QUOTED_BYTES - size)
        shown.append(f"'{quoted(part)}' ")
        size += len(part) + 3
    name = quoted(words[0])
    return error(f"ERR unknown command '{name}', with args beginning with: {''.join(shown)}")


def wrong_count(name: str) -> bytes:
    """Return what is said where words are too many or too few."""
    return error(f"ERR wrong number of arguments for '{name}' command")


def number(word: bytes) -> int:
    """Return the number that *word* is.

    Raises:
        CommandError: It is none of 64 bits.
    """
    found = number_of(word)
    if found is None:
        raise CommandError(NOT_A_NUMBER)
    return found


def message_head(channel: bytes, pattern: bytes | None = None, proto: int = 2) -> bytes:
    """Return what comes before the payload of a message that is pushed.

    Args:
        channel: Where it was published.
        pattern: What it was subscribed by; None: by the name of the channel.
        proto: The version of RESP.
    """
    kind = b"*" if proto == 2 else b">"
    if pattern is None:
        return b"%b3\r\n$7\r\nmessage\r\n%b$" % (kind, bulk(channel))
    return b"%b4\r\n$8\r\npmessage\r\n%b%b$" % (kind, bulk(pattern), bulk(channel))


def messages(head: bytes, payloads: Iterable[bytes]) -> bytes:
    """Return the pushes of *payloads*, each with *head* (`message_head`) before it."""
    return b"".join([b"%b%d\r\n%b\r\n" % (head, len(one), one) for one in payloads])
