"""Who reads a log with gaps over HTTP gets every row there is, and is told of every gap once.

The log of a relay: rows of two writers, positions that move without rows, gaps of both kinds,
and now and then a trim. Its readers ask at any moment, with any limit. One follows by long
poll, and does what a refusal tells it; one fetches pages of catch-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from tests.web_site import Exchange, Stage

STREAM = "audit"
INSTANCES = ("master", "w~1")
#: Tokens (after, upto].
Span = tuple[int, int]


class World:
    """A site over the log of a relay.

    Attributes:
        stage: The site.
        rows: The token of each row, by writer.
        gaps: Where rows may be missing, by writer.
        trimmed: Up to where rows were let go, by writer.
    """

    def __init__(self) -> None:
        self.stage = Stage()
        self.rows: dict[str, list[int]] = {instance: [] for instance in INSTANCES}
        self.gaps: dict[str, list[Span]] = {instance: [] for instance in INSTANCES}
        self.trimmed = dict.fromkeys(INSTANCES, 0)

    def position(self, instance: str) -> int:
        """Return where a writer is."""
        return self.stage.log.position(STREAM, instance)

    def do(self, step: str, instance: str, number: int) -> None:
        """Let something happen upstream."""
        position = self.position(instance)
        if step == "rows":
            self.stage.publish(STREAM, *range(number), instance=instance)
            self.rows[instance] += range(position + 1, position + 1 + number)
        elif step == "batch":
            encoded = [b"0"] * number
            _ = self.stage.publisher.publish_json(STREAM, encoded, batch=True, instance=instance)
            self.rows[instance] += [position + 1] * number
        elif step == "move":
            _ = self.stage.log.advance(STREAM, instance, position + number)
        elif step == "trim":
            upto = min(position, self.trimmed[instance] + number)
            self.stage.log.trim(STREAM, instance, upto)
            self.trimmed[instance] = upto
        else:
            lost = step == "lose"
            self.stage.lose(STREAM, position + number, instance=instance, lost=lost)
            self.gaps[instance].append((position, position + number))


class Reader:
    """What a reader knows of one writer.

    Attributes:
        start: Where it began.
        at: Where it is.
        seen: The token of each row that it got.
        told: What it was told it had missed.
    """

    def __init__(self, start: int) -> None:
        self.start = self.at = start
        self.seen: list[int] = []
        self.told: list[Span] = []

    def miss(self, after: int, upto: int) -> None:
        """Take note that rows may be missing."""
        assert after == self.at
        assert upto > after
        self.told.append((after, upto))
        self.at = upto

    def judge(self, world: World, instance: str) -> None:
        """Compare with what happened: all that there is, and every gap once."""
        missed = {token for span in self.told for token in inside(span)}
        assert len(missed) == sum(upto - after for after, upto in self.told)
        there = [token for token in world.rows[instance] if token > self.start]
        assert self.seen == [token for token in there if token not in missed]
        absent = {token for span in world.gaps[instance] for token in inside(span)}
        assert {token for token in absent if token > self.start} <= missed
        assert missed <= absent | set(range(1, world.trimmed[instance] + 1))


def inside(span: Span) -> Iterator[int]:
    """Yield the tokens of a span."""
    yield from range(span[0] + 1, span[1] + 1)


class Poller:
    """Follows by long poll; a refusal says with which position to go on."""

    def __init__(self, world: World, position: str, starts: dict[str, int]) -> None:
        self.world = world
        self.position = position
        self.readers = {instance: Reader(starts[instance]) for instance in INSTANCES}
        self.waiting: Exchange | None = None

    def ask(self, limit: int, timeout: int) -> None:
        """Send a request, if none waits."""
        if self.waiting is None:
            self.waiting = self.world.stage.poll(
                **{STREAM: self.position, "limit": limit, "timeout": timeout}
            )
        self.look()

    def look(self) -> None:
        """Take the answer, if it has come."""
        exchange = self.waiting
        if exchange is None or not exchange.answered:
            return
        self.waiting = None
        answer = exchange.answer
        exchange.leave()
        if answer.status == 410:
            told = answer.json
            reader = self.readers[told["instance"]]
            reader.miss(reader.at, told["held"])
            if told["errcode"] == "TCPREPL_ROWS_MISSING":
                edges = {upto for _, upto in self.world.gaps[told["instance"]]}
                assert told["held"] in edges
            self.position = str(told["position"])
            return
        assert answer.status == 200, answer.body
        if STREAM in answer.json:
            table = answer.json[STREAM]
            for token, *cells in table["rows"]:
                instance = cells[1] if len(cells) > 1 else "master"
                self.readers[instance].seen.append(token)
            self.position = str(table["position"])
            self._arrive()

    def _arrive(self) -> None:
        for instance, reader in self.readers.items():
            name = instance.replace("~", "=7E")
            for part in self.position.split(","):
                if part.startswith(f"{name}~") or (part.isdigit() and instance == "master"):
                    reader.at = int(part.rpartition("~")[2])

    def finish(self) -> None:
        """Ask until there is nothing more."""
        if self.waiting is not None:
            self.world.stage.clock.advance(600)
            self.look()
        before = None
        while self.position != before:
            before = self.position
            self.ask(3, 0)


class Fetcher:
    """Fetches pages of catch-up of one writer, as far as it is told that there is something."""

    def __init__(self, world: World, instance: str, start: int) -> None:
        self.world = world
        self.instance = instance
        self.reader = Reader(start)

    def ask(self, upto: int) -> None:
        """Fetch one page."""
        reader = self.reader
        answer = self.world.stage.get(
            f"/_synapse/replication/get_repl_stream_updates/{STREAM}/x",
            from_token=reader.at,
            upto_token=upto,
            instance=self.instance,
        ).json
        if "missing" in answer:
            assert upto >= answer["missing"][1]
            reader.miss(*answer["missing"])
        reader.seen += [token for token, _ in answer["updates"]]
        reached = answer["upto_token"]
        assert answer["limited"] == (reached < min(upto, self.world.position(self.instance)))
        reader.at = max(reader.at, reached)

    def finish(self) -> None:
        """Ask until there is nothing more."""
        while (before := self.reader.at) < self.world.position(self.instance):
            self.ask(self.world.position(self.instance))
            assert self.reader.at > before


NUMBERS = st.integers(1, 4)
HAPPENS = st.tuples(
    st.sampled_from(["rows", "rows", "batch", "move", "lose", "lose", "begin anew", "trim"]),
    st.sampled_from(INSTANCES),
    NUMBERS,
)
POLL = st.tuples(st.just("poll"), NUMBERS, st.sampled_from([0, 10_000]))
FETCH = st.tuples(st.just("fetch"), st.sampled_from(INSTANCES), st.integers(0, 9))


@given(before=st.lists(HAPPENS, max_size=8), start=st.data(), steps=st.lists(HAPPENS | POLL))
def test_a_poller_gets_every_row_and_is_told_of_every_gap_once(
    before: list[Any], start: st.DataObject, steps: list[Any]
) -> None:
    """From wherever it begins, and whenever it asks."""
    world = World()
    for step in before:
        world.do(*step)
    starts = {
        instance: start.draw(st.integers(0, world.position(instance))) for instance in INSTANCES
    }
    position = ",".join(
        f"{name}~{token}"
        for name, token in zip(("master", "w=7E1"), starts.values(), strict=True)
        if token
    )
    poller = Poller(world, position or "0", starts)
    run(world, poller, steps)


@given(before=st.lists(HAPPENS, max_size=8), steps=st.lists(HAPPENS | POLL))
def test_a_poller_that_begins_anew_begins_where_nothing_is_missing(
    before: list[Any], steps: list[Any]
) -> None:
    """It is not refused, and gets what is behind the last gap."""
    world = World()
    for step in before:
        world.do(*step)
    starts = {
        instance: max([world.trimmed[instance], *(upto for _, upto in world.gaps[instance])])
        for instance in INSTANCES
    }
    poller = Poller(world, "-1", starts)
    poller.ask(100, 0)
    assert [reader.told for reader in poller.readers.values()] == [[], []]
    run(world, poller, steps)


def run(world: World, poller: Poller, steps: list[Any]) -> None:
    """Let everything happen, then see what the poller has."""
    for step, *arguments in steps:
        if step == "poll":
            poller.ask(*arguments)
        else:
            world.do(step, *arguments)
        poller.look()
    poller.finish()
    for instance, reader in poller.readers.items():
        reader.judge(world, instance)
    world.stage.close()


@given(before=st.lists(HAPPENS, max_size=8), start=st.data(), steps=st.lists(HAPPENS | FETCH))
def test_pages_of_catch_up_have_every_row_and_name_every_gap_once(
    before: list[Any], start: st.DataObject, steps: list[Any]
) -> None:
    """Also where a page was asked for that ends within a gap."""
    with patch("tcprepl.limits.CATCH_UP_ROWS", 3):
        world = World()
        for step in before:
            world.do(*step)
        fetchers = {
            instance: Fetcher(world, instance, start.draw(st.integers(0, world.position(instance))))
            for instance in INSTANCES
        }
        for step, *arguments in steps:
            if step == "fetch":
                instance, further = arguments
                fetcher = fetchers[instance]
                fetcher.ask(min(world.position(instance), fetcher.reader.at + further))
            else:
                world.do(step, *arguments)
        for instance, fetcher in fetchers.items():
            fetcher.finish()
            fetcher.reader.judge(world, instance)
        world.stage.close()
