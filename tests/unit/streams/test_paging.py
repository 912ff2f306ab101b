"""A page that is put together of stored blocks."""

from __future__ import annotations

from zlib import crc32

import pytest

from tcprepl import limits
from tcprepl.limits import PAGE_ROWS
from tcprepl.streams.blocks import render
from tcprepl.streams.bodies import encode_block
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.paging import PageBuilder, StoredBlock


def stored(first: int, last: int, before: int | None = None) -> StoredBlock:
    """Return a block of rows as it is stored."""
    tokens = range(first, last + 1)
    body = encode_block(render("typing", "m", tokens, [b"[]"] * len(tokens), 5), before)
    return last, 5, crc32(body), body


def begun(floor: int = 0, after: int = 0, before: int = 0) -> PageBuilder:
    pair = StoredPair(1, "typing", "m", 99, floor)
    return PageBuilder(pair, after, lambda: before, lambda what: f"bad: {what}")


def test_what_fits_is_one_page() -> None:
    page = begun()
    assert page.put(*stored(1, 3)) is None
    assert page.put(*stored(4, 5, 3)) is None
    made = page.ended(9, 5, list)
    assert (made.after, made.upto, made.damage) == (0, 9, None)
    assert made.block is not None
    assert list(made.block.tokens) == [1, 2, 3, 4, 5]


def test_what_does_not_fit_is_left_for_the_next_page() -> None:
    """One block is a page, however large it is."""
    page = begun()
    assert page.put(*stored(1, PAGE_ROWS + 1)) is None
    made = page.put(*stored(PAGE_ROWS + 2, PAGE_ROWS + 2))
    assert made is not None
    assert (made.upto, made.damage) == (PAGE_ROWS + 1, None)


def test_a_page_ends_before_a_block_that_is_not_what_was_written() -> None:
    last, written_ms, crc, body = stored(4, 6, 3)
    page = begun()
    page.put(*stored(1, 3))
    made = page.put(last, written_ms, crc ^ 1, body)
    assert made is not None
    text = "bad: the checksum of its block, at token 6, does not match"
    assert (made.upto, made.damage) == (3, Gap(3, 6, Cause.DAMAGE, text))
    made = begun(after=5, before=3).put(last, written_ms, crc ^ 1, body)
    assert made is not None
    assert (made.after, made.upto, made.damage) == (5, 5, Gap(3, 6, Cause.DAMAGE, text))


def test_a_body_that_is_none_is_damage_whatever_its_checksum() -> None:
    """It keeps nobody from what is before it, or behind."""
    last, written_ms, crc, body = stored(4, 6, 3)
    none = b"\x93" + body
    for put, words in (
        ((last, written_ms, crc32(none), none), "its block, at token 6, is none: "),
        ((7, written_ms, crc, body), "its block, at token 7, ends at 6"),
        ((last, "x", crc, body), "its block, at token 6, has no time"),
    ):
        page = begun()
        page.put(*stored(1, 3))
        made = page.put(*put)
        assert made is not None
        assert made.upto == 3
        assert made.damage is not None
        assert (made.damage.after, made.damage.upto) == (3, put[0])
        assert made.damage.detail.startswith(f"bad: {words}")
    made = begun().ended(0, 9, lambda: [(last, written_ms, crc32(none), none)])
    assert made.damage is None


def test_a_block_that_is_gone_is_missed_by_the_next_one() -> None:
    """Unless it is below the floor: then it went by right."""
    text = "bad: no block has the rows up to token 3"
    made = begun().put(*stored(4, 6, 3))
    assert made is not None
    assert made.damage == Gap(0, 3, Cause.DAMAGE, text)
    assert begun(floor=3).put(*stored(4, 6, 3)) is None


def test_the_newest_block_is_missed_by_what_comes_behind() -> None:
    text = "bad: no block has the rows up to token 3"
    lost = begun().ended(3, 3, list)
    assert lost.damage == Gap(0, 3, Cause.DAMAGE, text)
    before = begun().ended(5, 9, lambda: [stored(8, 9, 3)])
    assert before.damage == Gap(0, 3, Cause.DAMAGE, text)
    assert begun().ended(5, 9, lambda: [stored(8, 9)]).damage is None
    last, written_ms, crc, body = stored(8, 9, 3)
    assert begun().ended(5, 9, lambda: [(last, written_ms, crc ^ 1, body)]).damage is None
    assert begun().ended(5, 9, list).damage is None


@pytest.mark.parametrize("limit", ["PAGE_ROWS", "PAGE_BYTES"])
def test_a_page_is_filled_to_its_limit_and_no_further(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows and by bytes, the last one included."""
    row = len(b"RDATA typing m 1 []\n")
    monkeypatch.setattr(limits, limit, 6 if limit == "PAGE_ROWS" else 6 * row)
    page = begun()
    for first in (1, 3, 5):
        assert page.put(*stored(first, first + 1, first - 1)) is None
    made = page.put(*stored(7, 7, 6))
    assert made is not None
    assert (made.upto, made.damage) == (6, None)
