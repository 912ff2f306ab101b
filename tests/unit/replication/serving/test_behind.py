"""Those who are behind: in turns, a page each, however many and wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from twisted.internet.task import Clock

from tcprepl import limits
from tcprepl.errors import LogUnavailable
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.readers import ANY, Lag, Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tests.log_kit import DURABLE, STATES, LateWorker, SqliteStore, add, row

NATIVE = WireForm.of(DIALECTS["tcprepl"])
ALL = (ANY, ANY)


class Outlet:
    """Takes everything, unless it is full."""

    buffered_bytes = 0

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.busy = False

    def write(self, chunk: bytes) -> bool:
        """Keep *chunk*."""
        self.written.append(chunk)
        return not self.busy

    def tokens(self) -> list[int]:
        """Return the tokens of the rows that came, in order."""
        lines = b"".join(self.written).split(b"\n")
        return [int(line.split(b" ")[3]) for line in lines if line.startswith(b"RDATA")]


class Cold:
    """A hub over a log of which nothing is in memory."""

    def __init__(self, where: Path, blocks: int, *instances: str) -> None:
        self.clock = Clock()
        self.worker = LateWorker()
        self.store = SqliteStore(where)
        for instance in instances or ("w",):
            for _ in range(blocks):
                rows = [row(str(number)) for number in range(100)]
                add(self.store, DURABLE, *rows, instance=instance)
        self.store.close()
        self.store.reading_worker = self.worker
        self.store.open()
        self.hub = Hub(self.clock, self.store.log, "w")

    def reader(self, pattern: tuple[str, str] = ALL, asked: int | None = 0) -> tuple[Reader, Any]:
        """Subscribe a reader."""
        outlet: Any = Outlet()
        reader = Reader(outlet, "r")
        self.hub.subscribe(reader, NATIVE, pattern, asked)
        self.hub.serve(reader)
        return reader, outlet

    def run(self, turns: int = 1) -> None:
        """Let the disk be read, and turns pass."""
        for _ in range(turns):
            self.worker.run()
            self.clock.advance(0)

    def after_turns(self, look: Callable[[], object]) -> None:
        """Call *look* after each turn of those who are behind."""
        behind: Any = self.hub.behind
        turn = behind._turn

        def looked_at() -> None:
            turn()
            look()

        behind._turn = looked_at

    def sizes_of_turns(self, readers: list[Any]) -> list[int]:
        """Return a list that grows by the bytes that each turn writes to *readers*."""
        sizes: list[int] = []
        before = 0

        def look() -> None:
            nonlocal before
            written = sum(len(chunk) for _, outlet in readers for chunk in outlet.written)
            sizes.append(written - before)
            before = written

        self.after_turns(look)
        return sizes

    def close(self) -> None:
        """Close everything."""
        self.hub.close()
        self.store.close()
        assert not self.clock.getDelayedCalls()


def test_readers_at_the_same_place_share_what_is_read(tmp_path: Path) -> None:
    cold = Cold(tmp_path, 30)
    readers = [cold.reader() for _ in range(20)]
    with mock.patch.object(
        cold.store.log._database, "page", wraps=cold.store.log._database.page
    ) as page:
        for _ in range(10):
            cold.run()
    assert page.call_count <= 3
    for reader, outlet in readers:
        assert outlet.tokens() == list(range(1, 3_001))
        assert reader.backlog is None
    written = [[chunk for chunk in outlet.written if len(chunk) > 9_999] for _, outlet in readers]
    assert all(ours is theirs for ours, theirs in zip(written[0][1:], written[1][1:], strict=True))
    cold.close()


def test_while_a_page_is_read_other_pairs_and_readers_are_served(tmp_path: Path) -> None:
    cold = Cold(tmp_path, 3)
    reader, outlet = cold.reader()
    other, theirs = cold.reader((STATES, "w"), None)
    add(cold.store, STATES, b'["!a",["@a"]]')
    cold.clock.advance(0)
    assert theirs.tokens() == [1]
    assert other.backlog is None
    assert reader.backlog is not None
    cold.hub.drained(reader)
    assert outlet.tokens() == [1]  # typing; the page of the other stream is on its way
    cold.run(4)
    assert outlet.tokens() == [1, *range(1, 301)]
    assert reader.backlog is None
    cold.close()


def test_a_turn_takes_no_longer_however_many_are_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAGE_BYTES", 4_000)
    monkeypatch.setattr(limits, "TURN_BYTES", 20_000)
    cold = Cold(tmp_path, 20)
    readers: list[Any] = []
    sizes = cold.sizes_of_turns(readers)
    readers += [cold.reader() for _ in range(40)]
    while any(reader.backlog is not None for reader, _ in readers):
        cold.run()
    assert {len(outlet.tokens()) for _, outlet in readers} == {2_000}
    assert len(sizes) > 100
    # what was left of one turn, and the next one
    assert max(sizes) <= 2 * 20_000 + 5_000
    cold.close()


def test_those_who_are_behind_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is far ahead of another."""
    monkeypatch.setattr(limits, "PAGE_BYTES", 4_000)
    monkeypatch.setattr(limits, "TURN_BYTES", 9_000)
    cold = Cold(tmp_path, 10)
    readers = [cold.reader() for _ in range(5)]
    spreads: list[int] = []

    def look() -> None:
        counts = [len(outlet.tokens()) for _, outlet in readers]
        spreads.append(max(counts) - min(counts))

    cold.after_turns(look)
    while any(reader.backlog is not None for reader, _ in readers):
        cold.run()
    assert len(spreads) > 10
    assert max(spreads) <= 300
    cold.close()


def test_readers_at_forty_places_get_everything_though_no_page_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has waited for a page gets it, so that nobody asks for ever."""
    monkeypatch.setattr(limits, "PAGE_CACHE_BYTES", 0)
    cold = Cold(tmp_path, 40)
    readers = [cold.reader((DURABLE, "w"), number * 100) for number in range(40)]
    while any(reader.backlog is not None for reader, _ in readers):
        assert cold.worker.jobs
        cold.run()
    for number, (_, outlet) in enumerate(readers):
        assert outlet.tokens() == list(range(number * 100 + 1, 4_001))
    cold.close()


def test_a_disk_that_refuses_is_asked_again_and_nothing_is_lost(tmp_path: Path) -> None:
    """What another pair had for the same chunk has gone out."""
    cold = Cold(tmp_path, 2, "a", "b")
    cold.worker = InlineWorker()  # type: ignore[assignment]
    cold.store.log._pages._worker = cold.worker
    database = cold.store.log._database
    real = database.page
    asked: list[str] = []

    def refuse(stored: Any, *rest: Any) -> Any:
        asked.append(stored.instance)
        if stored.instance == "b":
            raise LogUnavailable("away")
        return real(stored, *rest)

    with mock.patch.object(database, "page", refuse):
        reader, outlet = cold.reader()
        assert outlet.tokens() == list(range(1, 201))
        assert reader.backlog is not None
        cold.hub.drained(reader)
        cold.clock.advance(limits.READ_RETRY_S)
        assert asked.count("b") >= 3
    cold.clock.advance(limits.READ_RETRY_S)
    cold.clock.advance(0)
    assert outlet.tokens() == list(range(1, 201)) * 2
    assert reader.backlog is None
    with mock.patch.object(database, "page", side_effect=LogUnavailable("away")):
        cold.store.log._pages._pages.clear()
        cold.store.log._pages._begins.clear()
        cold.reader()
        cold.close()


def test_a_reader_that_leaves_while_its_page_is_read_is_forgotten(tmp_path: Path) -> None:
    cold = Cold(tmp_path, 2)
    reader, outlet = cold.reader()
    cold.hub.unsubscribe(reader)
    cold.run(3)
    assert outlet.tokens() == []
    assert cold.hub._heads._remembered == {}
    cold.close()


def test_a_full_socket_waits_and_owns_one_number(tmp_path: Path) -> None:
    """Whatever is published meanwhile, in however many pairs."""
    clock = Clock()
    log = MemoryLog(Registry(), lambda: 0)
    hub = Hub(clock, log, "master")
    outlet: Any = Outlet()
    reader = Reader(outlet, "slow")
    hub.subscribe(reader, NATIVE, ALL, None)
    hub.serve(reader)
    outlet.busy = True
    for number in range(50):
        for instance in ("a", "b", "c"):
            _ = log.append("events", f"{instance}{number}", [b"[]"])
        clock.advance(0)
    assert reader.backlog is not None
    assert reader.backlog.tracks == {}
    assert reader.backlog.since == 1
    lag = hub.lag(reader)
    assert (lag.rows, lag.stream) == (149, "events")
    outlet.busy = False
    hub.drained(reader)
    clock.advance(0)
    assert reader.backlog is None
    lines = b"".join(outlet.written).decode().splitlines()
    assert sorted(line for line in lines if line.startswith("RDATA")) == sorted(
        f"RDATA events {instance}{number} 1 []" for number in range(50) for instance in "abc"
    )
    assert len([line for line in lines if line.startswith("POSITION")]) == 150


def test_who_hangs_in_rows_of_before_the_start_lags_by_seconds_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these rows is in memory; they are at least as old as the hub."""
    monkeypatch.setattr(limits, "PAGE_BYTES", 4_000)
    cold = Cold(tmp_path, 30)
    size = cold.store.log.source((DURABLE, "w")).size_bytes
    cold.clock.advance(2.0)
    reader, outlet = cold.reader()
    lag = cold.hub.lag(reader)
    assert (lag.rows, lag.bytes, lag.seconds, lag.stream) == (3_000, size, 2.0, DURABLE)
    cold.run()
    outlet.busy = True
    assert 0 < len(outlet.tokens()) < 3_000
    for passed in (30.0, 60.0):
        cold.clock.advance(30.0)
        lag = cold.hub.lag(reader)
        left = 3_000 - len(outlet.tokens())
        assert (lag.rows, lag.seconds) == (left, 2.0 + passed)
        assert lag.bytes == pytest.approx(size * left / 3_000, rel=0.01)
    outlet.busy = False
    cold.hub.drained(reader)
    cold.run(99)
    assert cold.hub.lag(reader) == Lag()
    cold.close()


def test_who_resumes_in_rows_of_before_the_start_lags_behind_all_after_them(
    tmp_path: Path,
) -> None:
    cold = Cold(tmp_path, 30)
    size = cold.store.log.source((DURABLE, "w")).size_bytes
    cold.clock.advance(40.0)
    add(cold.store, DURABLE, *[row("more")] * 10)
    cold.clock.advance(0)
    outlet: Any = Outlet()
    reader = Reader(outlet, "r")
    cold.hub.subscribe(reader, NATIVE, ALL, None)
    cold.hub.resume(reader, {(DURABLE, "w"): 2_000})
    outlet.busy = True
    cold.clock.advance(5.0)
    lag = cold.hub.lag(reader)
    assert (lag.rows, lag.seconds) == (1_010, 45.0)
    assert lag.bytes == pytest.approx(size / 3, rel=0.02)
    # above the rows of before the start, it is the age of those since
    cold.hub.resume(reader, {(DURABLE, "w"): 3_000})
    assert cold.hub.lag(reader).seconds == 5.0
    cold.hub.unsubscribe(reader)
    cold.clock.advance(0)
    cold.close()


def test_a_socket_that_leads_back_while_it_is_written_to_is_no_trouble() -> None:
    """It may drain at once, or its reader be gone."""
    clock = Clock()
    log = MemoryLog(Registry(), lambda: 0)
    for number in range(3):
        _ = log.append("events", "master", [b"[%d]" % number])
    hub = Hub(clock, log, "master")
    outlet: Any = Outlet()
    reader = Reader(outlet, "r")
    real = outlet.write

    def write(chunk: bytes) -> bool:
        hub.drained(reader)
        hub.serve(reader)
        return bool(real(chunk))

    outlet.write = write
    hub.subscribe(reader, NATIVE, ALL, 0)
    hub.serve(reader)
    clock.advance(0)
    assert outlet.tokens() == [1, 2, 3]
    assert reader.backlog is None


def test_a_reader_that_cannot_be_served_ends_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever otherwise, connected and told nothing."""
    cold = Cold(tmp_path, 3)
    failing, others = cold.reader(), [cold.reader() for _ in range(2)]
    aborted: list[str] = []
    failing[1].abort = lambda: aborted.append("failing")
    behind: Any = cold.hub.behind
    step = behind._step

    def broken(reader: Reader, track: Any) -> Any:
        if reader is failing[0]:
            raise MemoryError
        return step(reader, track)

    monkeypatch.setattr(behind, "_step", broken)
    cold.run(20)
    assert aborted == ["failing"]
    assert not failing[0].live
    for reader, outlet in others:
        assert reader.backlog is None
        assert outlet.tokens() == list(range(1, 301))
    cold.close()
