"""Invariant: whatever a client sends to the bus, in any pieces, costs that client alone.

What it sends is cut into the same requests wherever the pieces end; it is answered in RESP, or
with one error and the end of its connection; nobody else notices, and nothing of it stays behind.
The first byte of an input says
whether a password is asked for, the second how the rest is cut.
"""

from __future__ import annotations

from tcprepl.errors import CloseReason
from tcprepl.limits import MAX_REPLY_BYTES
from tcprepl.replication.bus.passwords import Passwords
from tcprepl.replication.redis.requests import Request, RequestReader
from tests.bus_world import SERVER_NAME, BusWorld

#: The line by which is seen that others are served.
WITNESS = "LOCK_RELEASED seen"


def read(pieces: list[bytes], *, trusted: bool) -> tuple[list[Request], str | None]:
    """Return the requests in *pieces*, and what is wrong behind them."""
    reader = RequestReader(SERVER_NAME.encode(), trusted=trusted)
    requests: list[Request] = []
    for piece in pieces:
        reader.feed(piece)
        while some := reader.take(3):
            requests += some
    return requests, reader.fault


def replies(data: bytes) -> list[bytes]:
    """Return the first line of each value in *data*, of RESP2 or RESP3; all of them are whole."""
    found: list[bytes] = []
    while data:
        head, data = _value(data)
        found.append(head)
    return found


def _value(data: bytes) -> tuple[bytes, bytes]:
    """Return the first line of the value that *data* begins with, and what is behind it."""
    head, end, rest = data.partition(b"\r\n")
    assert end
    kind, count = head[:1], head[1:]
    assert kind in b"+-:_$=*>~%", head
    if kind in b"$=" and count != b"-1":
        size = int(count)
        assert rest[size : size + 2] == b"\r\n", head
        rest = rest[size + 2 :]
    elif kind in b"*>~%" and count != b"-1":
        for _ in range(int(count) * (2 if kind == b"%" else 1)):
            _, rest = _value(rest)
    return head, rest


def check(raw: bytes) -> None:
    """Check the invariant for one input."""
    if len(raw) < 2:
        return
    guarded, size, data = raw[0] % 4 == 1, 1 + raw[1] % 61, raw[2:]
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert read([data], trusted=not guarded) == read(pieces, trusted=not guarded)
    passwords = Passwords("secret", {"w1": "own"}) if guarded else Passwords()
    world = BusWorld(passwords=passwords)
    try:
        _serve(world, pieces)
    finally:
        world.close()


def _serve(world: BusWorld, pieces: list[bytes]) -> None:
    clients = listener, other, client = world.client(), world.client(), world.client()
    for one in clients[:2]:
        one.ask("AUTH", "secret")
    listener.ask("SUBSCRIBE", SERVER_NAME)
    closed = False
    for piece in pieces:
        client.connection.dataReceived(piece)
        world.settle()
        said = replies(client.transport.value())
        client.transport.clear()
        assert not closed or not said, said
        faults = [head for head in said if head.startswith(b"-ERR Protocol error: ")]
        refused = client.connection.closing is CloseReason.WRONG_PROTOCOL
        assert bool(faults) == (refused and not closed), said
        assert not faults or said[-1] is faults[0]
        closed = client.connection.closing is not None
    world.clock.advance(1.0)
    listener.heard()
    assert other.ask("PING") == b"+PONG\r\n"
    assert other.publish(WITNESS).startswith(b":")
    assert WITNESS in listener.heard()
    assert world.bus.cache.size_bytes <= world.bus.cache.max_bytes
    assert client.connection._reply_bytes <= MAX_REPLY_BYTES
    if not closed:
        client.leave()
    other.leave()
    assert world.bus.peers() == [listener.connection.status(world.clock.seconds())]
    assert len(world.bus.channels.by_name) == 1
    assert not world.bus.channels.by_pattern
