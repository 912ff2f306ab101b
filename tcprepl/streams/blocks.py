"""Rows to blocks, and blocks to pages: rendering once, slicing ever after."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from tcprepl.errors import TokenOrder
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.log import Block, Page

#: A page that holds this part of its limit (1/8) ends before a block that does not fit whole.
_ENOUGH = 8


def assign_tokens(
    stream: StreamName,
    instance: InstanceName,
    position: Token,
    count: int,
    *,
    batch: bool,
    tokens: Sequence[Token] | None,
) -> Sequence[Token]:
    """Return the tokens of *count* new rows; consecutive ones as a range.

    Raises:
        TokenOrder: *tokens* do not ascend from *position*, or there are no more tokens.
        ValueError: there are no rows, or not as many tokens, or tokens and *batch*.
    """
    if not count:
        raise ValueError("an append needs at least one row")
    if tokens is None:
        first = position + 1
        last = first if batch else position + count
        if last > MAX_TOKEN:
            raise TokenOrder(stream, instance, last, position)
        return [first] * count if batch and count > 1 else range(first, last + 1)
    if batch:
        raise ValueError("give either batch or tokens: equal neighbours are a batch already")
    if len(tokens) != count:
        raise ValueError(f"{count} rows and {len(tokens)} tokens")
    before = position
    for index, token in enumerate(tokens):
        if token > MAX_TOKEN or (token <= before if not index else token < before):
            raise TokenOrder(stream, instance, token, before)
        before = token
    if tokens[-1] - tokens[0] == count - 1 and len(set(tokens)) == count:
        return range(tokens[0], tokens[-1] + 1)
    return list(tokens)


def render(
    stream: StreamName,
    instance: InstanceName,
    tokens: Sequence[Token],
    rows: Sequence[bytes],
    now_ms: int,
) -> Block:
    """Return the block of *rows*: the lines that go out, in the newest dialect."""
    prefix = f"RDATA {stream} {instance} ".encode()
    if type(tokens) is range:
        lines = [
            b"%b%d %b\n" % (prefix, token, row) for token, row in zip(tokens, rows, strict=True)
        ]
    else:
        lines = []
        following = iter(tokens)
        next(following)
        for token, row in zip(tokens, rows, strict=True):
            if next(following, None) == token:
                lines.append(b"%bbatch %b\n" % (prefix, row))
            else:
                lines.append(b"%b%d %b\n" % (prefix, token, row))
    sizes = list(map(len, lines))
    return Block(
        stream, instance, tokens, b"".join(lines), list(accumulate(sizes)), max(sizes) - 1, now_ms
    )


def empty_page(upto: Token) -> Page:
    """Return the page of a range without rows."""
    return Page((), b"", (), upto, False, 0)


def cut_page(
    blocks: Iterable[Block], after: Token, upto: Token, limit_rows: int, limit_bytes: int
) -> Page:
    """Return the page of the rows in ``(after, upto]``.

    A page that is a block costs no copying, so it rather ends with a block than at the limit
    once it holds a fair part of that.

    Args:
        blocks: Blocks in ascending order; the first may begin before *after*. They are taken
            one by one, only as many as needed, and one more to see whether there is more.
        after: Exclusive lower bound.
        upto: Inclusive upper bound.
        limit_rows: Most rows, exceeded only to finish a token.
        limit_bytes: Most bytes, exceeded only to finish a token.
    """
    pieces: list[tuple[Block, int, int]] = []
    rows = size = 0
    limited = False
    for block in blocks:
        start = bisect_right(block.tokens, after) if block.first <= after else 0
        stop = bisect_right(block.tokens, upto) if block.last > upto else len(block.tokens)
        if start >= stop:
            if start == len(block.tokens):
                continue
            break
        offset = block.ends[start - 1] if start else 0
        room_rows = limit_rows - rows
        room_bytes = limit_bytes - size
        end = stop
        if stop - start > room_rows or block.ends[stop - 1] - offset > room_bytes:
            limited = True
            if rows * _ENOUGH >= limit_rows or size * _ENOUGH >= limit_bytes:
                break
            end = _token_boundary(block, start, stop, room_rows, offset + room_bytes, not rows)
            if end == start:
                break
            limited = end < stop
        pieces.append((block, start, end))
        rows += end - start
        size += block.ends[end - 1] - offset
        if limited:
            break
        if block.last > upto:
            break
    if not pieces:
        return empty_page(upto)
    last_block, _, last_end = pieces[-1]
    reached = last_block.tokens[last_end - 1] if limited else upto
    return _join(pieces, reached, limited)


def _token_boundary(
    block: Block, start: int, stop: int, room_rows: int, last_offset: int, must: bool
) -> int:
    """Return where to end within a block that does not fit, so that no token is parted.

    *must* says that at least one token has to fit, even if it exceeds the limits.
    """
    end = min(start + max(room_rows, 0), bisect_right(block.ends, last_offset, start, stop))
    end = bisect_left(block.tokens, block.tokens[end], start, stop)
    if end == start and must:
        end = bisect_right(block.tokens, block.tokens[start], start, stop)
    return end


def _join(pieces: Sequence[tuple[Block, int, int]], upto: Token, limited: bool) -> Page:
    if len(pieces) == 1:
        tokens, lines, ends = _piece(*pieces[0])
        return Page(tokens, lines, ends, upto, limited, pieces[0][0].longest_line_bytes)
    all_tokens: list[Token] = []
    all_lines: list[bytes] = []
    all_ends: list[int] = []
    size = 0
    for block, start, end in pieces:
        tokens, lines, ends = _piece(block, start, end)
        all_tokens += tokens
        all_lines.append(lines)
        all_ends += [offset + size for offset in ends] if size else ends
        size += len(lines)
    longest = max(block.longest_line_bytes for block, _, _ in pieces)
    return Page(all_tokens, b"".join(all_lines), all_ends, upto, limited, longest)


def _piece(block: Block, start: int, end: int) -> tuple[Sequence[Token], bytes, Sequence[int]]:
    if not start and end == len(block.tokens):
        return block.tokens, block.lines, block.ends
    offset = block.ends[start - 1] if start else 0
    ends = block.ends[start:end]
    return (
        block.tokens[start:end],
        block.lines[offset : ends[-1]],
        [end - offset for end in ends] if offset else ends,
    )


def rows_of(block: Block) -> list[bytes]:
    """Return the rows of a block as JSON."""
    return [line.split(b" ", 4)[4] for line in block.lines.split(b"\n")[:-1]]
