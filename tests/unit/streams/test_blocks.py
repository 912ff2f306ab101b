"""Rendering once, slicing ever after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.errors import TokenOrder
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.blocks import assign_tokens, cut_page, merge, render, rows_of
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Block, Page
from tests.log_kit import rows_in


def block(tokens: Sequence[int], start: int = 0) -> Block:
    """Return a block of one small row for each token."""
    rows = [b"[%d]" % index for index in range(start, start + len(tokens))]
    return render("s", "i", tokens, rows, 0)


def test_consecutive_tokens_are_a_range() -> None:
    def assign(count: int, batch: bool = False, tokens: list[int] | None = None) -> Sequence[int]:
        return assign_tokens("s", "i", 4, count, batch=batch, tokens=tokens)

    assert assign(3) == range(5, 8)
    assert assign(1, batch=True) == range(5, 6)
    assert assign(2, batch=True) == [5, 5]
    assert assign(3, tokens=[7, 8, 9]) == range(7, 10)
    assert assign(3, tokens=[7, 7, 9]) == [7, 7, 9]
    assert assign(2, tokens=[7, 9]) == [7, 9]


def test_the_last_tokens() -> None:
    last = assign_tokens("s", "i", MAX_TOKEN - 1, 1, batch=False, tokens=None)
    assert last == range(MAX_TOKEN, MAX_TOKEN + 1)
    with pytest.raises(TokenOrder):
        assign_tokens("s", "i", MAX_TOKEN - 1, 2, batch=False, tokens=None)
    assert assign_tokens("s", "i", MAX_TOKEN - 1, 2, batch=True, tokens=None) == [MAX_TOKEN] * 2


def test_rows_come_out_as_they_went_in() -> None:
    rows = [b'["a b  c"]', b"[ ]", "[é]".encode()]
    found = render("s", "i", [1, 1, 2], rows, 0)
    assert list(rows_of(found)) == rows
    assert found.lines.startswith(b'RDATA s i batch ["a b  c"]\nRDATA s i 1 ')


names = st.text("ab%d$.~", min_size=1, max_size=6)


@given(
    names,
    names,
    st.lists(st.tuples(st.integers(0, 2), st.text("[]%bd 1é")), min_size=1, max_size=20),
    st.booleans(),
)
def test_each_row_is_a_line_whatever_is_in_it(
    stream: str, instance: str, given_rows: list[tuple[int, str]], consecutive: bool
) -> None:
    rows = [text.encode() for _, text in given_rows]
    tokens: Sequence[int] = list(accumulate((step for step, _ in given_rows), initial=8))[1:]
    if consecutive:
        tokens = range(9, 9 + len(rows))
    lines = [
        f"RDATA {stream} {instance} {'batch' if token == following else token} ".encode() + row
        for token, following, row in zip(tokens, [*tokens[1:], None], rows, strict=True)
    ]
    expected = b"".join(line + b"\n" for line in lines)
    for given_whole in (rows, JsonRows.of(rows)):
        assert render(stream, instance, tokens, given_whole, 0).lines == expected


def test_a_page_of_a_whole_block_is_not_copied() -> None:
    whole = block(range(1, 101))
    page = cut_page([whole], 0, 100, 1_000, 100_000)
    assert page.lines is whole.lines
    assert page.tokens is whole.tokens


def test_a_page_with_a_fair_part_of_its_limit_rather_ends_with_a_block() -> None:
    blocks = [block(range(1, 61)), block(range(61, 121), 60)]
    page = cut_page(blocks, 0, 120, 100, 100_000)
    assert page.lines is blocks[0].lines
    assert (page.upto, page.limited) == (60, True)
    page = cut_page(blocks, 0, 120, 150, 100_000)
    assert (page.upto, page.limited) == (120, False)
    # not when it is emptier than that
    page = cut_page([blocks[0], block(range(61, 1_000), 60)], 0, 999, 600, 100_000)
    assert (page.upto, page.limited) == (600, True)
    assert len(rows_in(page)) == 600


def test_a_token_that_does_not_fit_behind_others_waits() -> None:
    blocks = [block([1]), block([2] * 10, 1)]
    page = cut_page(blocks, 0, 2, 9, 100_000)
    assert (page.upto, page.limited) == (1, True)
    page = cut_page(blocks, 1, 2, 9, 100_000)
    assert (page.upto, page.limited, len(page.tokens)) == (2, False, 10)


def test_only_as_many_blocks_are_taken_as_needed() -> None:
    taken = []

    def source() -> Iterator[Block]:
        for index in range(100):
            taken.append(index)
            yield block(range(index * 10 + 1, index * 10 + 11), index * 10)

    assert len(cut_page(source(), 0, 1_000, 30, 100_000).tokens) == 30
    assert len(taken) == 4
    taken.clear()
    page = cut_page(source(), 5, 15, 30, 100_000)
    assert (list(page.tokens), page.upto, page.limited) == (list(range(6, 16)), 15, False)
    assert len(taken) == 2


def test_blocks_out_of_range_give_nothing() -> None:
    blocks = [block(range(1, 4)), block([8, 9])]
    assert cut_page(blocks, 3, 7, 9, 9_999) == Page((), b"", 7, False)
    assert cut_page(blocks, 9, 12, 9, 9_999) == Page((), b"", 12, False)
    assert cut_page([], 0, 7, 9, 9_999) == Page((), b"", 7, False)


def test_blocks_become_one() -> None:
    assert merge([]) is None
    whole = block(range(1, 4))
    assert merge([whole]) is whole
    following = merge([whole, block(range(4, 6), 3)])
    assert following is not None
    assert following.tokens == range(1, 6)
    assert list(rows_of(following)) == [b"[0]", b"[1]", b"[2]", b"[3]", b"[4]"]
    for other in (block(range(9, 11)), block([4, 4]), block([4, 6])):
        parted = merge([whole, other])
        assert parted is not None
        assert parted.tokens == [1, 2, 3, *other.tokens]
        assert parted.lines == whole.lines + other.lines


def test_a_page_from_within_a_block_has_as_much_as_one_from_its_beginning() -> None:
    whole = block(range(11, 19))
    bytes_of_two = len(whole.lines) // 4
    for after in range(10, 17):
        page = cut_page([whole], after, 18, 100, bytes_of_two)
        assert list(page.tokens) == [after + 1, after + 2]
        assert page.limited is (after < 16)
