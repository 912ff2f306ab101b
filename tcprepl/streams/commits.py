"""Group commit: what waits for the disk becomes blocks, as few and as full as they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeAlias, TypeGuard

from twisted.internet.defer import Deferred

from tcprepl.ids import ProducerName, Token
from tcprepl.streams.blocks import render
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Commit, StoredPair
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.producers import Answer, Produced, ProducerState

#: A block is filled up to this many rows or bytes with what meets in one commit: as much as
#: `Log.read` returns by default, so that a page is a whole block and needs no copying.
BLOCK_ROWS = 1_000
BLOCK_BYTES = 262_144
#: Bytes of rows after which a commit takes no further appends.
COMMIT_BYTES = 16_777_216


@dataclass(slots=True)
class Append:
    """An append that waits for its commit.

    *named* says that the caller has named its tokens.
    """

    pair: DurableStream
    tokens: Sequence[Token]
    rows: JsonRows
    transaction_id: str | None
    waiting: list[Deferred[Appended]]
    produced: Produced | None = None
    staged: Sequence[int] = ()
    named: bool = False

    @property
    def last(self) -> Token:
        """The newest token that it is given."""
        return self.tokens[-1]

    @property
    def answer(self) -> Appended:
        """What those who wait are told."""
        stored = self.pair.stored
        return Appended(stored.stream, stored.instance, self.tokens[0], self.tokens[-1])


@dataclass(slots=True)
class Advance:
    """A position that moves without rows."""

    pair: DurableStream
    token: Token
    waiting: list[Deferred[None]]

    @property
    def last(self) -> Token:
        """Where the position will be."""
        return self.token


@dataclass(slots=True)
class Barrier:
    """Somebody waits for everything before."""

    waiting: list[Deferred[None]]


@dataclass(slots=True)
class Claim:
    """A producer's name that somebody has taken, who waits until that is on disk."""

    name: ProducerName
    epoch: int
    used_ms: int
    waiting: list[Deferred[ProducerState]]


Item: TypeAlias = Append | Advance | Barrier | Claim


def names_tokens(item: Item) -> TypeGuard[Append | Advance]:
    """Return whether the caller of *item* has named its tokens, and may do so again."""
    return isinstance(item, Advance) or (
        isinstance(item, Append) and item.named and item.produced is None
    )


class _Group:
    """Rows of one pair that become one block."""

    __slots__ = ("count", "joined", "size_bytes", "tokens")

    def __init__(self) -> None:
        self.joined: list[bytes] = []
        self.tokens: list[Sequence[Token]] = []
        self.count = 0
        self.size_bytes = 0

    def has_room(self, rows: JsonRows) -> bool:
        return (
            self.count + len(rows) <= BLOCK_ROWS
            and self.size_bytes + rows.size_bytes <= BLOCK_BYTES
        )

    def add(self, tokens: Sequence[Token], rows: JsonRows) -> None:
        self.joined.append(rows.joined)
        self.tokens.append(tokens)
        self.count += len(rows)
        self.size_bytes += rows.size_bytes

    def block(self, stored: StoredPair, now_ms: int) -> Block:
        tokens = self.tokens[0]
        if len(self.tokens) > 1:
            first, last = tokens[0], self.tokens[-1][-1]
            if last - first + 1 == self.count and all(type(t) is range for t in self.tokens):
                tokens = range(first, last + 1)
            else:
                tokens = list(chain.from_iterable(self.tokens))
        rows = JsonRows(b"".join(self.joined), self.count)
        return render(stored.stream, stored.instance, tokens, rows, now_ms)


@dataclass(slots=True)
class Batch:
    """What one commit carries, and who waits for it.

    Attributes:
        items: In the order of the calls.
        steps: What is published, in token order per pair.
        commit: What is written.
    """

    items: list[Item]
    steps: list[tuple[DurableStream, Block | Advance]] = field(default_factory=list)
    commit: Commit = field(default_factory=Commit)


def take(waiting: list[Item], most: int | None) -> list[Item]:
    """Remove from *waiting*, and return, as much as one commit should carry, *most* items of it."""
    size = taken = 0
    for item in islice(waiting, most):
        if size >= COMMIT_BYTES:
            break
        if isinstance(item, Append):
            size += item.rows.size_bytes
        taken += 1
    items = waiting[:taken]
    del waiting[:taken]
    return items


def gather(items: list[Item], now_ms: int) -> Batch:
    """Return *items* as what is written and published.

    Appends of one pair share blocks; a large one gets several, but no token is parted.
    """
    batch = Batch(items)
    commit = batch.commit
    groups: dict[DurableStream, _Group] = {}
    moved: dict[DurableStream, StoredPair] = {}
    for item in items:
        if isinstance(item, Barrier):
            continue
        if isinstance(item, Claim):
            commit.note(item.name, ProducerState(item.epoch, 0, item.used_ms))
            continue
        pair = item.pair
        stored = pair.stored
        if pair not in moved:
            moved[pair] = StoredPair(stored.id, stored.stream, stored.instance, 0, stored.floor)
            groups[pair] = _Group()
        if isinstance(item, Advance):
            moved[pair].position = item.token
            _close(batch, groups, pair, now_ms)
            batch.steps.append((pair, item))
            continue
        moved[pair].position = item.tokens[-1]
        moved[pair].rows += len(item.rows)
        if groups[pair].has_room(item.rows):
            groups[pair].add(item.tokens, item.rows)
        else:
            _close(batch, groups, pair, now_ms)
            if groups[pair].has_room(item.rows):
                groups[pair].add(item.tokens, item.rows)
            else:
                _divide(batch, groups, item, now_ms)
        commit.staged += item.staged
        if item.transaction_id is not None:
            commit.transactions.append((stored.stream, item.transaction_id, item.answer, now_ms))
        if item.produced is not None:
            name, epoch, sequence, count = item.produced
            commit.note(name, ProducerState(epoch, item.produced.last, now_ms))
            commit.answers.setdefault(name, []).append(Answer(sequence, item.answer, count))
    for pair in groups:
        _close(batch, groups, pair, now_ms)
    for pair, step in batch.steps:
        if isinstance(step, Block):
            commit.blocks.append((pair.stored.id, step))
            moved[pair].size_bytes += len(step.lines)
    commit.pairs = list(moved.values())
    return batch


def _divide(batch: Batch, groups: dict[DurableStream, _Group], item: Append, now_ms: int) -> None:
    """Make several blocks of one append that is larger than a block."""
    tokens, rows = item.tokens, item.rows
    start = 0
    while start < len(rows):
        stop = start
        size = 0
        while stop < len(rows) and (
            stop == start
            or tokens[stop] == tokens[stop - 1]
            or (stop - start < BLOCK_ROWS and size < BLOCK_BYTES)
        ):
            size += len(rows[stop])
            stop += 1
        groups[item.pair].add(tokens[start:stop], rows[start:stop])
        _close(batch, groups, item.pair, now_ms)
        start = stop


def _close(
    batch: Batch, groups: dict[DurableStream, _Group], pair: DurableStream, now_ms: int
) -> None:
    group = groups[pair]
    if group.count:
        batch.steps.append((pair, group.block(pair.stored, now_ms)))
        groups[pair] = _Group()
