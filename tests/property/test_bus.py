"""Arbitrary bytes, cut anywhere: only that connection pays, and order holds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.bus.commands import COMMANDS
from tcprepl.replication.redis.resp import encode
from tests.bus_world import BusWorld

WORDS = st.sampled_from(
    [name.encode() for name in COMMANDS]
    + [b"example.com", b"*", b"k", b"2", b"-1", b"PX", b"REPLICATE", b"POSITION events w1 1 1"]
)
REQUESTS = st.lists(st.one_of(WORDS, st.binary(max_size=12)), min_size=1, max_size=5).map(
    lambda words: encode(*words)
)
LINES = st.one_of(
    st.integers(0, 9).map(lambda n: b"RDATA events w1 %d [1]" % n),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda t: b"POSITION events w1 %d %d" % t),
    st.just(b"RDATA events w1 batch [0]"),
    st.integers(0, 9).map(lambda n: b"RDATA typing w1 %d [1]" % n),
    st.just(b"POSITION typing w1 0 0"),
    st.just(b"LOCK_RELEASED x"),
    st.binary(max_size=30),
).map(lambda line: encode(b"PUBLISH", b"example.com", line))
PIECES = st.lists(st.one_of(st.binary(max_size=40), REQUESTS, LINES), max_size=30)


@given(PIECES, st.integers(1, 40))
def test_whatever_comes_costs_that_connection_alone(pieces: list[bytes], cut: int) -> None:
    world = BusWorld()
    listener, other, client = world.subscriber(), world.client(), world.client()
    data = b"".join(pieces)
    for start in range(0, len(data), cut):
        client.connection.dataReceived(data[start : start + cut])
        world.settle()
    assert other.ask("PING") == b"+PONG\r\n"
    world.clock.advance(1)
    listener.transport.clear()
    assert other.publish("POSITION receipts w9 3 3", "RDATA receipts w9 4 [1]") != b""
    heard = [line for line in listener.heard() if "receipts" in line]
    assert heard == ["POSITION receipts w9 3 3", "RDATA receipts w9 4 [1]"]
    tokens = [token for token, _ in world.rows("events", "w1")] if world.log.pairs() else []
    assert tokens == sorted(tokens)


@given(st.lists(st.sampled_from([b"a", b"b", b""]), min_size=1, max_size=20), st.integers(1, 30))
def test_replies_come_in_the_order_of_the_requests(words: list[bytes], cut: int) -> None:
    client = BusWorld().client()
    data = b"".join(encode(b"ECHO", word) for word in words)
    for start in range(0, len(data), cut):
        client.connection.dataReceived(data[start : start + cut])
    client.world.settle()
    assert client.transport.value() == b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


#: For each row its pair, and by how much the token grows; 0 says one again.
ROWS = st.lists(
    st.tuples(st.sampled_from(["events w1", "events w2", "typing w1"]), st.integers(0, 3)),
    max_size=25,
)


@given(ROWS, st.integers(1, 25))
def test_lines_of_one_read_do_what_they_do_one_by_one(
    grown: list[tuple[str, int]], together: int
) -> None:
    tokens = Counter[str]()
    said: list[tuple[str, int]] = []
    for pair, by in grown:
        tokens[pair] += by
        said.append((pair, tokens[pair]))
    worlds = BusWorld(), BusWorld()
    for world, size in zip(worlds, (1, together), strict=True):
        listener, client = world.subscriber(), world.client()
        lines = [f"RDATA {pair} {token} [{n}]" for n, (pair, token) in enumerate(said)]
        for start in range(0, len(lines), size):
            client.publish(*lines[start : start + size])
        world.settle()
        heard = [line.partition("[")[2].encode() for line in listener.heard() if "[" in line]
        logged = [row for pair in world.log.pairs() for _, row in world.rows(*pair)]
        assert {row.strip(b"[") for row in logged} <= set(heard)
        world.close()
    one_by_one, in_runs = worlds
    assert one_by_one.log.pairs() == in_runs.log.pairs()
    for pair in one_by_one.log.pairs():
        assert one_by_one.rows(*pair) == in_runs.rows(*pair)
