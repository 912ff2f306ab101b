"""Invariant: clients of the bus are answered byte by byte as redis-server answers them.

That holds for whatever they send, in any pieces, as far as both serve it; and a connection that one
of them closes, the other closes, too. What differs by design stands in `LEFT_OUT`, `comparable` and
`ordered`. A client reads what redis-server answers as the same values, in whatever pieces it comes.

The first byte of an input says who sends what (`Way`), the second how it is cut. The rest is either
what a client sends, or a script of it, a line for a request: words, parted by one space each, are
sent as an array of strings, and ``~`` in them is the end of a line. A line after ``@`` is sent by a
second client; one after ``>`` as it is, with the end of a line; one after ``<`` without.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from unittest import mock

from tcprepl import clocks
from tcprepl.replication.bus.commands import OF_HTTP
from tcprepl.replication.bus.passwords import Passwords
from tcprepl.replication.redis.requests import MAX_WORDS, RequestReader
from tcprepl.replication.redis.resp import ErrorReply, RespReader, encode
from tests.bus_world import SERVER_NAME, BusClient, BusWorld
from tests.fuzz.beside import PASSWORD, STANDING_S, Beside, server
from tests.fuzz.fuzz_bus import _value

#: Most bytes of an input.
MAX_BYTES = 50_000
#: Most pieces in which redis-server gets what is sent at once.
MAX_PIECES = 3
#: Most pieces in which an answer comes; each reads from its beginning a value that is not whole.
MOST_READS = 60
#: How deep answers are nested that are read: COMMAND DOCS, which nobody here asks, is deeper.
MAX_DEPTH = 8


class Way(enum.IntFlag):
    """What the first byte of an input says."""

    SCRIPT = 1
    #: Nobody but the second client has said the password.
    GUARDED = 2


@dataclass(frozen=True)
class Step:
    """What a client sends at once.

    Attributes:
        who: Which client.
        data: What it sends.
        size: In pieces of how many bytes.
    """

    who: int
    data: bytes
    size: int

    def pieces(self, least: int = 1) -> list[bytes]:
        """Return what is sent, cut; a piece has at least so many bytes."""
        return cut(self.data, max(self.size, least))


def cut(data: bytes, size: int) -> list[bytes]:
    """Return *data* in pieces."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def steps_of(raw: bytes) -> list[Step]:
    """Return what is done for an input of two bytes at least."""
    size, rest = 1 + raw[1] % 61, raw[2:MAX_BYTES]
    if not raw[0] & Way.SCRIPT:
        return [Step(0, rest, size)]
    return [
        Step(who, b"".join(data for _, data in group), size)
        for who, group in groupby(map(_sent, rest.split(b"\n")), lambda one: one[0])
    ]


def _sent(line: bytes) -> tuple[int, bytes]:
    """Return who sends what for a line of a script."""
    who = int(line.startswith(b"@"))
    line = line[who:]
    if line.startswith(b">"):
        return who, line[1:] + b"\r\n"
    if line.startswith(b"<"):
        return who, line[1:].replace(b"~", b"\r\n")
    words = [word.replace(b"~", b"\r\n") for word in line.split(b" ")]
    return who, encode(*words) if line else b"\r\n"


# -- what differs by design (protocol.md section 15.7) -------------------------------------------

#: Requests that are not compared, by what they begin with, and why: an input with one is left out.
LEFT_OUT: dict[str, str] = {
    "info": "it says what it is, which is no Redis",
    "role": "a primary has a place in its log",
    "command": "it lists what there is",
    "config": "there is nothing to be set",
    "monitor": "it would show access tokens",
    "client id": "it counts other connections",
    "client info": "it tells of what the other has not",
    "client list": "it tells of what the other has not",
    "client setinfo": "Redis before 7.2 has it not",
    **dict.fromkeys(
        (
            *("client caching", "client getredir", "client help", "client kill"),
            *("client no-evict", "client pause", "client reply", "client tracking"),
            *("client trackinginfo", "client unblock", "client unpause", "pubsub help"),
            *("pubsub shardchannels", "pubsub shardnumsub"),
        ),
        "it is not served here",
    ),
    **dict.fromkeys((f"select {number}" for number in range(1, 16)), "all are the same one here"),
}
#: What the bus refuses and Redis does not: nothing behind it is compared.
BOUNDS: dict[bytes, str] = {
    b"-ERR another protocol version while there are": "confirmations would be of either",
    b"-ERR a name or pattern is longer than": "it is matched with each that is published",
    b"-ERR more than": "subscriptions are bounded",
    b"-ERR Protocol error: too big request": "requests are bounded",
}
_BOUND = re.compile(b"|".join(map(re.escape, BOUNDS)))
#: Where the options of a request begin.
_OPTIONS = {"set": 3, "expire": 3, "pexpire": 3, "hello": 2, "client": 1, "pubsub": 1}
#: What answers HELLO says what it is, and a number of its own.
_FACTS = re.compile(
    rb"(\$6\r\nserver\r\n).*?(\$5\r\nproto\r\n:\d\r\n\$2\r\nid\r\n):\d+", flags=re.DOTALL
)
#: Redis 7.2 says in other words than 7.0 who has to say the password first.
_HELLO = re.compile(rb"^(-NOAUTH HELLO ).*")
#: A number of a database that is none of 32 bits is refused in words of its own.
_DATABASE = b"-ERR value is out of range, value must between -2147483648 and 2147483647\r\n"
#: What is quoted of any length there is cut here.
_LONG_QUOTE = (b"-ERR Syntax error in HELLO option", b"-ERR Unsupported option")
#: A time to live of more than 280,000 years is kept to the nearest second or so.
_LONG_TIME = re.compile(rb"^(:\d+)\d{4}\r")
#: More words than the bus takes.
_MANY_WORDS = re.compile(rb"\*(\d{5,10})\r")


def comparable(value: bytes) -> bytes:
    """Return what has to be the same of *value*."""
    if value == _DATABASE:
        return b"-ERR DB index is out of range\r\n"
    if value.startswith(b"-"):  # what is not UTF-8 is quoted in ASCII here
        value = _HELLO.sub(rb"\1", value.decode("utf-8", "backslashreplace").encode())
        return value[:100] if value.startswith(_LONG_QUOTE) else value
    value = _FACTS.sub(rb"\1\2", value)
    return _LONG_TIME.sub(rb"\1", value) if len(value) > 18 else value


def not_compared(mine: bytes | None, its: bytes | None, sent: Sequence[bytes]) -> bool:
    """Return whether from here on the two differ by design."""
    if mine is not None and mine.startswith((*BOUNDS,)):
        return True
    if mine == b"-ERR Protocol error: invalid multibulk length\r\n":
        return any(int(one) > MAX_WORDS for one in _MANY_WORDS.findall(b" ".join(sent)))
    if its == b"-ERR Protocol error: unauthenticated multibulk length\r\n":
        return b"reset" in b"".join(sent).lower()  # what came with it is read as of who is trusted
    return False


def ordered(values: list[bytes], *, channels: bool) -> list[bytes]:
    """Return *values* with those sorted that are said at once of several names, in no order.

    Args:
        values: What a client was told.
        channels: Whether it may have asked which channels there are.
    """
    found: list[bytes] = []
    for key, group in groupby(values, lambda value: _at_once(parts_of(value))):
        run = list(group)
        if key is not None:
            parts = [parts_of(value) for value in run]
            names = sorted(one[1] for one in parts)
            run = [b"".join((name, *one[2:])) for name, one in zip(names, parts, strict=True)]
        elif channels:
            run = [_sorted(value) for value in run]
        found += run
    return found


def _sorted(value: bytes) -> bytes:
    """Return an array of strings with them in one order; of other values, the value."""
    parts = parts_of(value)
    return b"".join(sorted(parts)) if parts and all(part[:1] == b"$" for part in parts) else value


def _at_once(parts: list[bytes]) -> object:
    """Return what messages have in common that have no order."""
    match parts:
        case [b"$8\r\npmessage\r\n" as word, _, channel, payload]:
            return word, channel, payload
        case [(b"$11\r\nunsubscribe\r\n" | b"$12\r\npunsubscribe\r\n") as word, _, _]:
            return word
    return None


class _Zeros(RequestReader):
    """Notes whether a line has a zero byte, behind which Redis sees nothing of what has come."""

    zeros = False

    def _line(self, begin: int, too_long: str) -> tuple[bytes, int]:
        line, end = super()._line(begin, too_long)
        _Zeros.zeros |= b"\0" in line
        return line, end

    def _inline(self) -> list[bytes] | None:
        rest = self._buffer[self._position :]
        _Zeros.zeros |= b"\0" in rest.partition(b"\n")[0]
        return super()._inline()


def requests_in(sent: Sequence[bytes], *, guarded: bool = False) -> list[list[bytes]] | None:
    """Return what clients ask for; None if what they send is not compared."""
    _Zeros.zeros = False
    found: list[list[bytes]] = []
    for data in sent:
        reader = _Zeros(SERVER_NAME.encode())
        reader.feed(data)
        found += [request for request in reader.take(MAX_BYTES) if isinstance(request, list)]
    if _Zeros.zeros or SERVER_NAME.encode() in b"".join(sent):
        return None
    return None if any(left_out(words, guarded=guarded) for words in found) else found


def left_out(words: list[bytes], *, guarded: bool = False) -> bool:
    """Return whether a request is not compared; *guarded* if a password may be due before it."""
    name = b" ".join(words[:2]).decode("latin-1").lower()
    word = name.partition(" ")[0]
    options = words[_OPTIONS.get(word, len(words)) :]
    if any(b"\0" in option for option in options):  # which ends it in C
        return True
    if word == "hello":  # before 7.2 Redis takes the name of what it then refuses
        said = [option.upper() for option in options]
        return b"SETNAME" in (said if guarded and b"AUTH" not in said else said[:-2])
    if word in ("subscribe", "publish"):  # no pattern of Redis matches nothing, not even *
        return b"" in words[1 : 2 if word == "publish" else None]
    if word == "psubscribe" or name == "pubsub channels":  # a char of C may be signed, or not
        return any(b"-" in pattern and not pattern.isascii() for pattern in words)
    return name in LEFT_OUT or word in LEFT_OUT


# -- what is said --------------------------------------------------------------------------------


def values_of(data: bytes) -> list[bytes]:
    """Return each value in *data*, as it was said."""
    found: list[bytes] = []
    while data:
        _, rest = _value(data)
        found.append(data[: len(data) - len(rest)])
        data = rest
    return found


def parts_of(value: bytes) -> list[bytes]:
    """Return the values in an array."""
    return values_of(value.partition(b"\r\n")[2]) if value[:1] in b"*>" else []


def theirs(steps: list[Step], *, guarded: bool) -> list[Beside]:
    """Return clients of redis-server that have done *steps*."""
    redis = server()
    redis.clear()
    clients = [redis.client() for _ in range(1 + max(step.who for step in steps))]
    for client in clients[guarded:]:
        client.ask(encode(b"AUTH", PASSWORD.encode()))
    for step in steps:
        for number, piece in enumerate(step.pieces(1 + len(step.data) // MAX_PIECES)):
            if number:
                redis.read()
            clients[step.who].send(piece)
        redis.settle(*clients)
    for client in clients:
        client.leave()
    return clients


def ours(steps: list[Step], *, guarded: bool) -> list[tuple[bytes, bool]]:
    """Return what clients of a bus that do *steps* are told, and whether they are closed."""
    world = BusWorld(passwords=Passwords(PASSWORD))
    try:
        clients = [world.client() for _ in range(1 + max(step.who for step in steps))]
        for client in clients[guarded:]:
            assert client.ask("AUTH", PASSWORD) == b"+OK\r\n"
            client.transport.clear()
        for step in steps:
            for piece in step.pieces():
                _send(world, clients[step.who], piece)
            world.settle()
        return [(one.transport.value(), one.connection.closing is not None) for one in clients]
    finally:
        world.close()


def _send(world: BusWorld, client: BusClient, piece: bytes) -> None:
    client.connection.dataReceived(piece)
    while world.bus.turns.awaits(client.connection):
        world.clock.advance(0)


# -- the targets ---------------------------------------------------------------------------------


def check_requests(raw: bytes) -> None:
    """Check the invariant of requests for one input."""
    if len(raw) < 3:
        return
    steps, guarded = steps_of(raw), bool(raw[0] & Way.GUARDED)
    sent = [b"".join(one.data for one in steps if one.who == who) for who in (0, 1)]
    requests = requests_in(sent, guarded=guarded)
    if requests is None:
        return
    with mock.patch.object(clocks, "wall_ms", return_value=STANDING_S * 1000):
        here = ours(steps, guarded=guarded)
    channels = any(words[1:2] and words[1].upper() == b"CHANNELS" for words in requests)
    of_http = any(words[0].decode("latin-1").lower() in OF_HTTP for words in requests)
    pairs = list(zip(here, theirs(steps, guarded=guarded), strict=True))
    # who has met a bound comes first: nobody else is compared then
    for (told, closed), other in sorted(pairs, key=lambda pair: not _BOUND.search(pair[0][0])):
        said = [
            list(map(comparable, ordered(values_of(data), channels=channels)))
            for data in (told, other.said)
        ]
        for mine, its in zip_longest(*said):
            if not_compared(mine, its, sent) or (its is None and of_http and other.closed):
                return  # Redis does not wait until what it answered before a request of HTTP is out
            assert mine == its, f"ours {mine!r}, theirs {its!r} for {sent}"
        assert closed == other.closed, f"closed: ours {closed}, theirs {other.closed} for {sent}"


def depth(value: bytes) -> int:
    """Return how deep the arrays in a value are nested."""
    return 1 + max(map(depth, parts_of(value)), default=0)


def read(pieces: list[bytes]) -> tuple[list[bytes], list[str]]:
    """Return the payloads on the channel ``c`` and what else is read."""
    reader = RespReader(b"c")
    payloads: list[bytes] = []
    rest: list[str] = []
    for piece in pieces:
        some, others = reader.feed(piece)
        payloads += some
        rest += [f"{one}" if isinstance(one, ErrorReply) else repr(one) for one in others]
    return payloads, rest


def check_replies(raw: bytes) -> None:
    """Check that what redis-server answers is read as the same values however it comes."""
    if len(raw) < 3:
        return
    for client in theirs(steps_of(raw), guarded=bool(raw[0] & Way.GUARDED)):
        values = values_of(client.said)
        if any(value[:1] not in b"+-:$*" for value in values):
            continue  # RESP3, which no client here asks for
        if max(map(depth, values), default=0) > MAX_DEPTH:
            continue
        whole = payloads, rest = read([client.said])
        assert len(payloads) + len(rest) == len(values)
        least = 1 + len(client.said) // MOST_READS
        for size in {least, least + raw[1] % 61}:
            assert read(cut(client.said, size)) == whole
        assert read(values) == whole
