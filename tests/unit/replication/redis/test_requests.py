"""Requests of Redis clients: whole, in pieces, by hand, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.redis import requests as module
from tcprepl.replication.redis.requests import Request, RequestReader
from tcprepl.replication.redis.resp import encode, encode_publish


def read(data: bytes, **options: bool) -> tuple[list[Request], str | None]:
    reader = RequestReader(b"hs", **options)
    reader.feed(data)
    return reader.take(), reader.fault


def test_arrays_and_published_payloads_keep_their_order() -> None:
    data = (
        encode(b"PING")
        + encode_publish(b"hs", [b"one", b""])
        + encode(b"PUBLISH", b"hs/USER_IP", b"x")
        + encode_publish(b"hs", [b"two"])
    )
    wanted = [[b"PING"], b"one", b"", [b"PUBLISH", b"hs/USER_IP", b"x"], b"two"]
    assert read(data) == (wanted, None)


@given(
    st.lists(
        st.one_of(
            st.lists(st.binary(max_size=40), min_size=1, max_size=5),
            st.binary(max_size=60),
        ),
        max_size=12,
    ),
    st.lists(st.integers(min_value=1, max_value=50), max_size=60),
    st.integers(min_value=1, max_value=5),
)
def test_any_fragmentation_gives_the_same_requests(
    wanted: list[Request], cuts: list[int], limit: int
) -> None:
    data = b"".join(
        encode_publish(b"hs", [one]) if isinstance(one, bytes) else encode(*one) for one in wanted
    )
    reader = RequestReader(b"hs")
    found: list[Request] = []

    def take_all() -> None:
        while len(some := reader.take(limit)) == limit:
            found.extend(some)
        found.extend(some)

    position = 0
    for cut in cuts:
        reader.feed(data[position : position + cut])
        position += cut
        take_all()
    reader.feed(data[position:])
    take_all()
    as_published = [
        one[2]
        if isinstance(one, list) and len(one) == 3 and one[:2] == [b"PUBLISH", b"hs"]
        else one
        for one in wanted
    ]
    assert found == as_published
    assert reader.fault is None
    assert reader.held_bytes == 0


def test_a_request_behind_one_that_came_in_pieces_is_taken_as_well() -> None:
    reader = RequestReader(b"hs")
    data = encode_publish(b"hs", [b""]) + encode(b"")
    reader.feed(data[:8])
    assert reader.take(1) == []
    reader.feed(data[8:])
    assert [reader.take(1), reader.take(1), reader.take(1)] == [[b""], [[b""]], []]


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_arbitrary_bytes_are_requests_or_a_fault(pieces: list[bytes]) -> None:
    """Never an exception, and never more held than came."""
    reader = RequestReader(b"hs")
    for piece in pieces:
        reader.feed(piece)
        for request in reader.take():
            assert isinstance(request, bytes) or (request and all(map(_is_bytes, request)))
    assert reader.held_bytes <= sum(map(len, pieces))


def _is_bytes(word: object) -> bool:
    return isinstance(word, bytes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"PING\r\n", [b"PING"]),
        (b"publish hs 'a b'\n", b"a b"),
        (b"publish other x\n", [b"publish", b"other", b"x"]),
        (b"  get \t key\n", [b"get", b"key"]),
        (b"\r\n", None),
        (b'SET k "a b\\n\\x41\\"\\q"\n', [b"SET", b"k", b'a b\nA"q']),
        (b"SET k 'a \\' \\n'\n", [b"SET", b"k", b"a ' \\n"]),
        (b'SET k ""\n', [b"SET", b"k", b""]),
        (b'x"\\x4g"\n', [b"xx4g"]),
        (b'"a\\\\"\n', [b"a\\"]),
        # as redis-server has it
        (b"a\vb\fc \vd\n", [b"a\vb\fc", b"d"]),
        (b"a''\v b\n", [b"a", b"b"]),
        (b"a '\\\\'b'\n", [b"a", b"\\'b"]),
    ],
)
def test_a_person_types_words(line: bytes, words: Request | None) -> None:
    assert read(line) == ([words] if words else [], None)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*99999999\r\n", "invalid multibulk length"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n'5\r\n", "expected '$', got '''"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"*1\r\n\xff5\r\n", "expected '$', got '\\xff'"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999999999999999\r\n", "invalid bulk length"),
        (b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nhs\r\n$x\r\n", "invalid bulk length"),
        (b"*01\r\n$4\r\nPING\r\n", "invalid multibulk length"),
        (b"*-0\r\n", "invalid multibulk length"),
        (b"*1\r\n$04\r\nPING\r\n", "invalid bulk length"),
        (b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nhs\r\n$01\r\nx\r\n", "invalid bulk length"),
        (b'"abc\n', "unbalanced quotes in request"),
        (b'"abc"d\n', "unbalanced quotes in request"),
        (b'"abc\\\n', "unbalanced quotes in request"),
        (b"x" * 70_000, "too big inline request"),
        (b"*" + b"1" * 70_000, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 70_000, "too big bulk count string"),
    ],
)
def test_what_is_no_request_is_told_as_redis_tells_it(data: bytes, fault: str) -> None:
    found, said = read(encode(b"PING") + data + encode(b"PING"))
    assert found == [[b"PING"]]
    assert said == f"Protocol error: {fault}"


def test_what_follows_the_carriage_return_of_a_head_is_not_looked_at() -> None:
    """As little as what follows a string: Redis passes over two bytes."""
    assert read(b"*2\rx$4\r\rECHO..$1\r\nxx\r" + encode(b"PING")) == (
        [[b"ECHO", b"x"], [b"PING"]],
        None,
    )


def test_a_head_is_looked_at_once_it_is_whole() -> None:
    for data in (b"*1\r\n:", b"*1\r\n:5\r", b"*x\r"):
        assert read(data) == ([], None)


def test_nothing_is_read_behind_a_fault() -> None:
    reader = RequestReader()
    reader.feed(b"*x\r\n")
    assert reader.take() == []
    reader.feed(encode(b"PING"))
    assert reader.take() == []


def test_empty_arrays_are_passed_over() -> None:
    assert read(b"*0\r\n*-1\r\n" + encode(b"PING")) == ([[b"PING"]], None)


def test_who_is_not_trusted_can_send_little() -> None:
    assert read(encode(*[b"x"] * 11), trusted=False)[1] == (
        "Protocol error: unauthenticated multibulk length"
    )
    assert read(encode(b"x" * 16_385), trusted=False)[1] == (
        "Protocol error: unauthenticated bulk length"
    )
    assert read(encode(b"AUTH", b"x" * 16_384), trusted=False)[1] is None


def test_a_request_is_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 100)
    found, fault = read(encode(*[b"x" * 40] * 3))
    assert (found, fault) == ([], "Protocol error: too big request")


def test_a_long_word_is_looked_at_once_it_is_there() -> None:
    """Bytes that come one by one are not joined to what is there each time."""
    reader = RequestReader()
    reader.feed(b"*1\r\n$100000\r\n")
    assert reader.take() == []
    for _ in range(1_000):
        reader.feed(b"x" * 100)
        assert reader.take() == []
    assert len(reader._chunks) == 1_000
    assert reader.held_bytes > 100_000
    reader.feed(b"\r\n")
    assert reader.take() == [[b"x" * 100_000]]
    assert reader.held_bytes == 0
