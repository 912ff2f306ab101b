"""The bodies of stored blocks: what a database keeps of one, and the block again."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgpack

from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.streams.log import Block

#: What msgpack writes before bytes, up to 4 GiB of them, and no bytes at all as it writes them.
_BYTES: Final = struct.Struct(">BI")
_BYTES_32: Final = 0xC6
_NO_BYTES: Final = msgpack.packb(b"")


def encode_block(block: Block, before: Token | None = None) -> bytes:
    """Return the body that is stored of *block*.

    Args:
        block: The block.
        before: The last token of the block before it; None if that is not known.
    """
    tokens = block.tokens
    consecutive = type(tokens) is range
    given = (tokens[0], len(tokens)) if consecutive else list(tokens)
    head: bytes = msgpack.packb((given, consecutive, before, b""))
    # msgpack would copy the lines twice, through a buffer of its own.
    return b"".join(
        (head[: -len(_NO_BYTES)], _BYTES.pack(_BYTES_32, len(block.lines)), block.lines)
    )


def decode_block(
    stream: StreamName, instance: InstanceName, body: bytes, written_ms: int
) -> tuple[Block, Token | None]:
    """Return the block that *body* was made of, and the last token of the one before it."""
    # Older files say nothing of the block before; those of before 0.1.0 have two other values.
    tokens, consecutive, *more, lines = msgpack.unpackb(body)
    before: Token | None = more[0] if len(more) == 1 else None
    given: Sequence[Token] = range(tokens[0], tokens[0] + tokens[1]) if consecutive else tokens
    return Block(stream, instance, given, lines, written_ms), before
