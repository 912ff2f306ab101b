"""What is written of a block is read back as it was."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import pytest

from tcprepl.streams.blocks import render
from tcprepl.streams.bodies import decode_block, encode_block


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
