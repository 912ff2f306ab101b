"""The bodies of stored blocks: what a database keeps of one, and the block again.

A body is an array of MessagePack: the tokens, whether they follow one another, the last token of
the block before, and the lines. These are bytes, or, in SQLite where there are more than a few of
them, a frame of Zstandard (RFC 8878) as an extension: then the disk is given a third or less.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Final

import msgpack
from msgpack.exceptions import UnpackException
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, frame_content_size

from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.streams.log import Block

#: Bytes of lines from which on they are compressed; of fewer there is little to gain.
COMPRESSED_BYTES: Final = 1_024
#: More are not either: nobody who reads a frame gives it more memory than that.
MOST_COMPRESSED_BYTES: Final = 67_108_864
#: More takes longer than the disk is spared.
_LEVEL: Final = 1
#: The code of MessagePack's extension that lines are which are compressed.
_COMPRESSED: Final = 1

#: What msgpack writes before bytes and before an extension, up to 4 GiB of them, and no bytes at
#: all as it writes them.
_BYTES: Final = struct.Struct(">BI")
_BYTES_32: Final = 0xC6
_EXTENSION: Final = struct.Struct(">BIb")
_EXTENSION_32: Final = 0xC9
_NO_BYTES: Final = msgpack.packb(b"")
#: How msgpack and zstandard say, beside a `ValueError`, that they cannot read something.
_NO_BODY: Final = (UnpackException, ZstdError)


class _Zstandard(threading.local):
    """What compresses and what undoes that: one of each for a thread, as they serve one alone."""

    def __init__(self) -> None:
        self.compress = ZstdCompressor(level=_LEVEL).compress
        self.decompress = ZstdDecompressor().decompress


_zstandard: Final = _Zstandard()


def encode_block(block: Block, before: Token | None = None, *, compressed: bool = False) -> bytes:
    """Return the body that is stored of *block*.

    Args:
        block: The block.
        before: The last token of the block before it; None if that is not known.
        compressed: Whether lines that gain by it are compressed.
    """
    tokens = block.tokens
    consecutive = type(tokens) is range
    given = (tokens[0], len(tokens)) if consecutive else list(tokens)
    head: bytes = msgpack.packb((given, consecutive, before, b""))
    lines = block.lines
    mark = _BYTES.pack(_BYTES_32, len(lines))
    if compressed and COMPRESSED_BYTES <= len(lines) <= MOST_COMPRESSED_BYTES:
        frame = _zstandard.compress(lines)
        if len(frame) < len(lines):
            lines, mark = frame, _EXTENSION.pack(_EXTENSION_32, len(frame), _COMPRESSED)
    # msgpack would copy the lines twice, through a buffer of its own.
    return b"".join((head[: -len(_NO_BYTES)], mark, lines))


def decode_block(
    stream: StreamName, instance: InstanceName, body: bytes, written_ms: int
) -> tuple[Block, Token | None]:
    """Return the block that *body* was made of, and the last token of the one before it.

    Raises:
        ValueError: It was made of none; says what is wrong with it.
    """
    try:
        # Older files say nothing of the block before; those of before 0.1.0 have two other values.
        given, consecutive, *more, lines = msgpack.unpackb(body)
        before: Token | None = more[0] if len(more) == 1 else None
        tokens: Sequence[Token] = range(given[0], sum(given)) if consecutive else given
        if type(lines) is msgpack.ExtType:
            lines = _undone(*lines)
        if not isinstance(before, int | None) or lines.count(b"\n") != len(tokens) or not tokens:
            raise ValueError("it has other rows than tokens")
        return Block(stream, instance, tokens, lines, written_ms), before
    except (TypeError, LookupError, AttributeError, OverflowError, *_NO_BODY) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _undone(code: int, frame: bytes) -> bytes:
    """Return the lines that were compressed.

    Raises:
        ValueError: They were not, or not by us.
    """
    size = frame_content_size(frame)
    # We always say how many there are; what is said to be more is not given the memory.
    if code != _COMPRESSED or not 0 <= size <= MOST_COMPRESSED_BYTES:
        raise ValueError(f"lines of kind {code} are said to have {size} bytes")
    return _zstandard.decompress(frame)
