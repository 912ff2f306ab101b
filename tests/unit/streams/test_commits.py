"""What waits for the disk becomes few, full blocks."""

from __future__ import annotations

from typing import Any

from tcprepl.streams import commits
from tcprepl.streams.commits import (
    Advance,
    Append,
    Barrier,
    Claim,
    Item,
    gather,
    names_tokens,
    take,
)
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.producers import Answer, Produced, ProducerState
from tcprepl.streams.retention import Bounds

DATABASE: Any = None


def pair(number: int = 1) -> DurableStream:
    """Return a stream that never touches its database."""
    stored = StoredPair(number, f"s{number}", "i", 0, 0)
    return DurableStream(stored, Bounds(), DATABASE, DATABASE, DATABASE)


def append(of: DurableStream, tokens: range | list[int], size: int = 10) -> Append:
    """Return an append of rows of *size* bytes."""
    rows = [b"[%b]" % (b"1" * (size - 2))] * len(tokens)
    return Append(of, tokens, JsonRows.of(rows), None, [])


def blocks(items: list[Item]) -> list[Block]:
    """Return the blocks that become of *items*."""
    batch = gather(items, 5)
    found = [step for _, step in batch.steps if isinstance(step, Block)]
    assert [block for _, block in batch.commit.blocks] == found
    for row in batch.commit.pairs:
        own = [block for number, block in batch.commit.blocks if number == row.id]
        assert row.rows == sum(len(block.tokens) for block in own)
        assert row.size_bytes == sum(len(block.lines) for block in own)
    return found


def test_appends_of_one_pair_share_a_block() -> None:
    of, other = pair(), pair(2)
    found = blocks(
        [append(of, range(1, 3)), append(other, [1, 1]), append(of, range(3, 4)), Barrier([])]
    )
    assert [block.tokens for block in found] == [range(1, 4), [1, 1]]
    found = blocks([append(of, range(1, 3)), append(of, [3, 3]), append(of, range(7, 8))])
    assert [block.tokens for block in found] == [[1, 2, 3, 3, 7]]
    assert found[0].written_ms == 5


def test_a_block_is_as_large_as_a_page() -> None:
    of = pair()
    hundreds: list[Item] = [append(of, range(i * 300, i * 300 + 300)) for i in range(5)]
    assert [len(block.tokens) for block in blocks(hundreds)] == [900, 600]
    large: list[Item] = [append(of, range(i * 10, i * 10 + 10), 15_000) for i in range(3)]
    assert [len(block.tokens) for block in blocks(large)] == [10, 10, 10]


def test_a_large_append_is_divided_and_no_token_is_parted() -> None:
    of = pair()
    found = blocks([append(of, range(1, 4)), append(of, range(4, 2_604))])
    assert [len(block.tokens) for block in found] == [3, 1_000, 1_000, 600]
    assert blocks([append(of, [1] * 5_000)])[0].tokens == [1] * 5_000
    found = blocks([append(of, [*range(1, 1_000), *[1_000] * 50, 1_001])])
    assert [len(block.tokens) for block in found] == [1_049, 1]
    found = blocks([append(of, range(1, 8), 100_000)])
    assert [len(block.tokens) for block in found] == [3, 3, 1]


def test_an_advance_parts_blocks_and_moves_the_position() -> None:
    of = pair()
    items: list[Item] = [
        append(of, range(1, 3)),
        Advance(of, 9, []),
        append(of, range(10, 11)),
        Advance(of, 12, []),
    ]
    batch = gather(items, 0)
    assert [type(step) for _, step in batch.steps] == [Block, Advance, Block, Advance]
    assert [row.position for row in batch.commit.pairs] == [12]


def test_a_commit_takes_no_more_than_it_should() -> None:
    of = pair()
    half = JsonRows.of([b"1" * (commits.COMMIT_BYTES // 2)])
    waiting: list[Item] = [
        Append(of, range(1, 2), half, None, []),
        Barrier([]),
        Append(of, range(2, 3), half, None, []),
        Append(of, range(3, 4), JsonRows.of([b"1"]), None, []),
    ]
    assert len(take(waiting, None)) == 3
    assert len(take(waiting, None)) == 1
    assert take(waiting, None) == []


def test_an_append_is_answered_with_its_first_and_last_token() -> None:
    appended = append(pair(), [3, 4, 9])
    assert appended.last == 9
    assert appended.answer == Appended("s1", "i", 3, 9)


def test_a_position_moves_to_where_it_is_to_be() -> None:
    of = pair()
    moved = Advance(of, 7, [])
    assert moved.last == 7
    batch = gather([moved], 5)
    assert batch.steps == [(of, moved)]
    assert [row.position for row in batch.commit.pairs] == [7]


def test_a_block_may_be_filled_to_the_last_row_and_byte() -> None:
    of = pair()
    size = commits.BLOCK_BYTES // 2
    rows: list[Item] = [append(of, range(n, n + 1), size - 1) for n in (1, 2)]
    assert sum(item.rows.size_bytes for item in rows if isinstance(item, Append)) in (
        commits.BLOCK_BYTES - 2,
        commits.BLOCK_BYTES,
    )
    assert [len(block.tokens) for block in blocks(rows)] == [2]
    halves: list[Item] = [append(of, range(n, n + 500)) for n in (1, 501)]
    assert [len(block.tokens) for block in blocks(halves)] == [1_000]


def test_a_commit_says_how_far_producers_are() -> None:
    of = pair()
    items: list[Item] = []
    for first, count in ((4, 2), (6, 1)):
        made = append(of, range(first, first + count))
        made.produced = Produced("p", 2, first, count)
        items.append(made)
    commit = gather(items, 5).commit
    assert commit.producers == {"p": ProducerState(2, 6, 5)}
    assert commit.answers == {
        "p": [Answer(4, Appended("s1", "i", 4, 5), 2), Answer(6, Appended("s1", "i", 6, 6))]
    }


def test_tokens_that_a_caller_has_named_may_be_named_again() -> None:
    """But those of a producer: its number is what comes again."""
    of = pair()
    plain, named, produced = (append(of, [3]) for _ in range(3))
    named.named = produced.named = True
    produced.produced = Produced("p", 1, 1)
    others: list[Item] = [plain, produced, Barrier([]), Claim("p", 1, 0, [])]
    assert [names_tokens(item) for item in (named, Advance(of, 4, []), *others)] == (
        [True, True] + [False] * 4
    )
