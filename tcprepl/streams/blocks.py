"""Rows to blocks, and blocks to pages: rendering once, slicing ever after."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from operator import eq

from tcprepl.errors import TokenOrder
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Block, Page, row_of

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
    first, last = tokens[0], tokens[-1]
    if position < first and last <= MAX_TOKEN and last - first == count - 1:
        consecutive = range(first, last + 1)
        if all(map(eq, tokens, consecutive)):  # as nearly always
            return consecutive
    before = position
    for index, token in enumerate(tokens):
        if token > MAX_TOKEN or (token <= before if not index else token < before):
            raise TokenOrder(stream, instance, token, before)
        before = token
    return list(tokens)


def render(
    stream: StreamName,
    instance: InstanceName,
    tokens: Sequence[Token],
    rows: Sequence[bytes],
    now_ms: int,
) -> Block:
    """Return the block of *rows*: the lines that go out, in the newest dialect."""
    # All rows become one template, which takes all tokens at once: a third of the time of a
    # line at a time.
    whole = JsonRows.of(rows)
    joined = whole.joined
    if len(tokens) == 1:
        lines = _numbered(stream, instance) % tokens[0] + joined
        return Block(stream, instance, tokens, lines, now_ms, whole.keys)
    words: Sequence[object] = tokens
    prefix = _numbered(stream, instance)
    if type(tokens) is not range:
        prefix = prefix[: -len(b"%d ")] + b"%b "
        words = [
            b"batch" if token == following else b"%d" % token
            for token, following in zip_longest(tokens, tokens[1:])
        ]
    if b"%" in joined:
        joined = joined.replace(b"%", b"%%")
    template = prefix + joined.replace(b"\n", b"\n" + prefix, len(tokens) - 1)
    lines = template % tuple(words)
    return Block(stream, instance, tokens, lines, now_ms, whole.keys)


@lru_cache(maxsize=1024)
def _numbered(stream: StreamName, instance: InstanceName) -> bytes:
    """Return what a line begins with, up to the row; its token is to be filled in."""
    return f"RDATA {stream} {instance} ".replace("%", "%%").encode() + b"%d "


def empty_page(upto: Token) -> Page:
    """Return the page of a range without rows."""
    return Page((), b"", upto, False)


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
        offset = _offset(block, start)
        room_rows = limit_rows - rows
        room_bytes = limit_bytes - size
        end = stop
        if stop - start > room_rows or _offset(block, stop) - offset > room_bytes:
            limited = True
            if rows * _ENOUGH >= limit_rows or size * _ENOUGH >= limit_bytes:
                break
            end = _token_boundary(block, start, stop, room_rows, offset + room_bytes, not rows)
            if end == start:
                break
            limited = end < stop
        pieces.append((block, start, end))
        rows += end - start
        size += _offset(block, end) - offset
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


def merge(blocks: Sequence[Block]) -> Block | None:
    """Return *blocks* of one pair, in ascending order, as one; None if there are none."""
    if len(blocks) < 2:
        return blocks[0] if blocks else None
    first, last = blocks[0].first, blocks[-1].last
    tokens: Sequence[Token]
    if last - first + 1 == sum(len(block.tokens) for block in blocks) and all(
        type(block.tokens) is range for block in blocks
    ):
        tokens = range(first, last + 1)
    else:
        tokens = list(chain.from_iterable(block.tokens for block in blocks))
    return Block(
        blocks[0].stream,
        blocks[0].instance,
        tokens,
        b"".join([block.lines for block in blocks]),
        blocks[-1].written_ms,
    )


def _join(pieces: Sequence[tuple[Block, int, int]], upto: Token, limited: bool) -> Page:
    if len(pieces) == 1:
        return Page(*_piece(*pieces[0]), upto, limited)
    tokens, lines = zip(*(_piece(*piece) for piece in pieces), strict=True)
    return Page(list(chain.from_iterable(tokens)), b"".join(lines), upto, limited)


def _piece(block: Block, start: int, end: int) -> tuple[Sequence[Token], bytes]:
    if not start and end == len(block.tokens):
        return block.tokens, block.lines
    return block.tokens[start:end], block.lines[_offset(block, start) : _offset(block, end)]


def rows_of(block: Block) -> list[bytes]:
    """Return the rows of a block as JSON."""
    return [row_of(line) for line in block.lines.split(b"\n")[:-1]]


def _offset(block: Block, index: int) -> int:
    """Return where row *index* begins, or where the rows end."""
    if not index:
        return 0
    return len(block.lines) if index == len(block.tokens) else block.ends[index - 1]
