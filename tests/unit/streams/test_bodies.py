"""What is written of a block is read back as it was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor, frame_content_size

from tcprepl.streams.blocks import render
from tcprepl.streams.bodies import (
    COMPRESSED_BYTES,
    MOST_COMPRESSED_BYTES,
    decode_block,
    encode_block,
)
from tcprepl.streams.log import Block


def many(first: int, count: int = 100) -> Block:
    """Return a block that is worth compressing."""
    rows = [b'["!room:example.com","@user%d:example.com"]' % n for n in range(count)]
    return render("s", "i", range(first, first + count), rows, 0)


@pytest.mark.parametrize("tokens", [[1, 2, 2, 9], range(5, 8)])
def test_a_block_is_stored_whole(tokens: Sequence[int]) -> None:
    made = render("s", "i", tokens, [b"[1]"] * len(tokens), 0)
    back, before = decode_block("s", "i", encode_block(made), 77)
    assert list(back.tokens) == list(tokens)
    assert type(back.tokens) is type(tokens)
    assert back.lines == made.lines
    assert back.ends == made.ends
    assert back.written_ms == 77
    assert before is None
    assert decode_block("s", "i", encode_block(made, 4), 77)[1] == 4


def test_a_block_of_before_the_first_release_is_read() -> None:
    """They said where lines end, too."""
    lines = b"RDATA s i 5 1\nRDATA s i 6 2\n"
    body = msgpack.packb(((5, 2), True, 13, b"\x0e\0\0\0\x1c\0\0\0", lines))
    back, before = decode_block("s", "i", body, 77)
    assert (back.tokens, back.lines, before) == (range(5, 7), lines, None)


@pytest.mark.parametrize("tokens", [[*range(1, 100), 200], range(5, 105)])
def test_many_rows_are_stored_compressed(tokens: Sequence[int]) -> None:
    made = render("s", "i", tokens, [b'["!room:example.com"]'] * len(tokens), 0)
    body = encode_block(made, 3, compressed=True)
    assert len(body) * 3 < len(made.lines) < len(encode_block(made, 3))
    back, before = decode_block("s", "i", body, 77)
    assert (back.tokens, back.lines, before) == (made.tokens, made.lines, 3)


def test_few_rows_and_what_does_not_get_smaller_are_stored_as_they_are() -> None:
    few = Block("s", "i", (1,), b"x" * (COMPRESSED_BYTES - 1), 0)
    noise = Block("s", "i", (1,), os.urandom(COMPRESSED_BYTES * 2), 0)
    enough = Block("s", "i", (1,), b"x" * COMPRESSED_BYTES, 0)
    for block in (few, noise):
        assert encode_block(block, compressed=True) == encode_block(block)
    assert len(encode_block(enough, compressed=True)) < COMPRESSED_BYTES


def test_a_body_is_what_it_is_said_to_be() -> None:
    """What one release writes, the next one reads, however hard it tries to make it small."""
    made = many(5)
    frame = msgpack.ExtType(1, ZstdCompressor(level=19, write_checksum=True).compress(made.lines))
    body = msgpack.packb(((5, 100), True, 4, frame))
    back, before = decode_block("s", "i", body, 77)
    assert (back.tokens, back.lines, before) == (made.tokens, made.lines, 4)


LINE = b"RDATA s i 5 1\n"


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        (),
        ((5, 1), True),
        (None, True, 4, LINE),
        ((5,), True, 4, LINE),
        (("5", 1), True, 4, LINE),
        ((5, 1 << 63), True, 4, LINE),
        ((5, 1), True, "4", LINE),
        ((5, 1), True, 4, None),
        ((5, 1), True, 4, LINE.decode()),
        ((5, 1), True, 4, b""),
        ((5, 1), True, 4, LINE * 2),
        ((5, 0), True, 4, b""),
        ([], False, 4, b""),
        ((5, 1), True, 4, msgpack.ExtType(2, ZstdCompressor().compress(LINE))),
        ((5, 1), True, 4, msgpack.ExtType(1, LINE)),
        ((5, 1), True, 4, msgpack.ExtType(1, ZstdCompressor().compress(LINE)[:-1])),
        (
            *((5, 1), True, 4),
            msgpack.ExtType(1, ZstdCompressor(write_content_size=False).compress(LINE)),
        ),
    ],
)
def test_what_is_no_body_is_refused(value: object) -> None:
    """Also if its checksum is right: a release may have a fault, or the memory that it was in."""
    body = msgpack.packb(value)
    for none in (body, body + b"\0", body[:-1]):
        with pytest.raises(ValueError, match=r"."):
            decode_block("s", "i", none, 77)


@given(st.binary(max_size=64))
def test_bytes_are_a_body_or_refused(body: bytes) -> None:
    with suppress(ValueError):
        decode_block("s", "i", body, 77)


@pytest.mark.parametrize("size", [(1 << 50), MOST_COMPRESSED_BYTES + 1])
def test_a_frame_is_given_no_more_memory_than_we_would_fill(size: int) -> None:
    """Whatever it says, and whether or not that is true."""
    frame = ZstdCompressor().compress(LINE)
    # The size is in the header: a descriptor that says "in eight bytes", and these (RFC 8878, 3.1).
    claimed = frame[:4] + bytes([0xE0]) + size.to_bytes(8, "little") + frame[6:]
    assert frame_content_size(claimed) == size
    with pytest.raises(ValueError, match=f"have {size} bytes"):
        decode_block("s", "i", msgpack.packb(((5, 1), True, 4, msgpack.ExtType(1, claimed))), 77)


def test_what_nobody_would_read_as_a_frame_is_not_written_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tcprepl.streams.bodies.MOST_COMPRESSED_BYTES", 3_000)
    for size, smaller in ((3_000, True), (3_001, False)):
        block = Block("s", "i", (1,), b"x" * (size - 1) + b"\n", 0)
        body = encode_block(block, compressed=True)
        assert (len(body) < 1_000) is smaller
        assert decode_block("s", "i", body, 0)[0].lines == block.lines


def test_threads_compress_beside_one_another() -> None:
    """Several logs of a process write, and others read, at the same time."""
    blocks = [many(first, 500 + first) for first in range(1, 200)]

    def there_and_back(block: Block) -> bytes:
        return decode_block("s", "i", encode_block(block, compressed=True), 0)[0].lines

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, blocks)) == [block.lines for block in blocks]
