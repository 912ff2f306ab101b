"""Lines out of bytes: delimiters, the limit, bounded memory, linear time."""

from __future__ import annotations

import time

import pytest

from tcprepl.protocol.framing import LineBuffer


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\n"], [b"ab"]),
        ([b"a\r\n"], [b"a"]),
        ([b"a\r", b"\nb\n"], [b"a", b"b"]),
        ([b"a\r\r\n"], [b"a\r"]),
        ([b"\n\r\n"], [b"", b""]),
        ([b"a\rb\n"], [b"a\rb"]),
        ([b"a", b"b\nc\r\n"], [b"ab", b"c"]),
        ([b"abc"], []),
        ([b"ab", b"c", b"", b"\n\n"], [b"abc", b""]),
    ],
)
def test_lines_are_cut_at_lf_and_lose_one_cr(pieces: list[bytes], lines: list[bytes]) -> None:
    buffer = LineBuffer(10)
    assert [line for piece in pieces for line in buffer.feed(piece)] == lines
    assert buffer.overlong is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_exactly_the_limit_fits(end: bytes) -> None:
    buffer = LineBuffer(4)
    assert buffer.feed(b"abcd" + end) == [b"abcd"]
    assert buffer.overlong is None


@pytest.mark.parametrize(
    "pieces",
    [
        [b"ok\nabcde\nlost\n"],
        [b"ok\nabcde"],
        [b"ok\n", b"abc", b"de"],
        [b"ok\nabcd", b"\r", b"x"],
        [b"ok\nabcd\r\r\n"],
        [b"ok\nabcd", b"e\n"],
    ],
)
def test_a_longer_line_ends_it_terminated_or_not(pieces: list[bytes]) -> None:
    buffer = LineBuffer(4)
    assert [line for piece in pieces for line in buffer.feed(piece)] == [b"ok"]
    assert buffer.overlong == b"abcd"
    assert buffer.pending_bytes == 0
    assert buffer.feed(b"more\n") == []


def test_a_cr_at_the_limit_may_still_be_a_delimiter() -> None:
    buffer = LineBuffer(4)
    assert buffer.feed(b"abcd\r") == []
    assert buffer.overlong is None
    assert buffer.feed(b"\n") == [b"abcd"]


def test_an_endless_line_is_never_held() -> None:
    buffer = LineBuffer(16_384)
    for _ in range(1_000):
        assert buffer.feed(b"x" * 1_000) == []
        assert buffer.pending_bytes <= 16_385
    assert buffer.overlong == b"x" * 16_384


def test_time_is_linear_in_the_length_of_a_line() -> None:
    def cost(length: int) -> float:
        buffer = LineBuffer(length)
        piece = b"x" * 100
        started = time.process_time()
        for _ in range(length // len(piece)):
            buffer.feed(piece)
        assert buffer.feed(b"\n") == [b"x" * length]
        return time.process_time() - started

    best = min(cost(4_000_000) / max(cost(400_000), 1e-6) for _ in range(3))
    assert best < 40, "ten times the bytes may not cost forty times as much"


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_lines_that_begin_with_a_word_may_be_longer(cut: int) -> None:
    buffer = LineBuffer(4, b"LONG", 8)
    data = b"long 678\nabcd\nLONG 1\n"
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    assert [line for piece in pieces for line in buffer.feed(piece)] == data.split(b"\n")[:-1]
    assert buffer.overlong is None
    for overlong in (b"LONG 6789", b"LONX 5"):
        buffer = LineBuffer(4, b"LONG", 8)
        for at in range(0, len(overlong), cut):
            buffer.feed(overlong[at : at + cut])
        assert buffer.overlong == overlong[: 8 if b"G" in overlong else 4]
