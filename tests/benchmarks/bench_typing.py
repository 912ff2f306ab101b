"""Typing: what changed between two tokens, at the cost of what changed.

Queries and updates of the stream change cache at 1 k to 1 M known rooms, beside Synapse
1.66's own class (``TCPREPL_BENCH_SYNAPSE`` may name the interpreter that has it) and beside a
walk over all rooms; the same through the whole of `Board.updates`; memory of a room in which
nobody types; a wheel with a million timers.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tcprepl.ephemeral.board import Board
from tcprepl.ephemeral.typing_notifications import make_board
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError, python_of

ROOT = Path(__file__).resolve().parent.parent.parent
PEER = Path(__file__).resolve().parent / "peers" / "change_cache_peer.py"
SYNAPSE = "synapse-1.66.0"
QUERY, UPDATE, UPDATES = "typing query", "typing update", "typing updates()"
FLAT = "1,000,000 rooms beside 1,000"
UNIT = "us"
REPETITIONS = 5
SIZES = (1_000, 10_000, 100_000, 1_000_000)
#: Rooms that changed between the two tokens.
CHANGED = 10
#: A million rooms may cost at most 1.5 times as much as a thousand.
FLATNESS = 0.667


def _case(rooms: int) -> str:
    return f"{rooms:,} rooms, {CHANGED} changed"


TARGETS = (
    *(Target(QUERY, _case(rooms), SYNAPSE, 2.0) for rooms in SIZES),
    *(Target(UPDATE, _case(rooms), SYNAPSE, 2.0) for rooms in SIZES),
    Target(QUERY, FLAT, "tcprepl, 1,000 rooms", FLATNESS),
    Target(UPDATES, FLAT, "tcprepl, 1,000 rooms", FLATNESS),
    Target(QUERY, _case(SIZES[-1]), "walk over all rooms", 1_000.0),
    Target(UPDATES, _case(SIZES[-1]), "walk over all rooms", 1_000.0),
)


def run() -> Iterator[Result]:
    """Measure everything; what is compared is measured one right after the other."""
    yield from _caches()
    yield from _boards()
    yield from _memory()
    yield from _wheel()


def _peer(system: str, python: Path, rooms: int) -> dict[str, list[float]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if system == "tcprepl" else None
    answer = subprocess.run(
        [str(python), str(PEER), system, str(rooms), str(REPETITIONS)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    figures: dict[str, list[float]] = json.loads(answer)
    return figures


def _synapse() -> Path:
    given = os.environ.get("TCPREPL_BENCH_SYNAPSE")
    return Path(given) if given else python_of("1.66.0")


def _caches() -> Iterator[Result]:
    flat: dict[int, list[float]] = {}
    for rooms in SIZES:
        case = _case(rooms)
        figures = _peer("tcprepl", Path(sys.executable), rooms)
        flat[rooms] = figures["query_us"]
        yield summarise(QUERY, case, "tcprepl", UNIT, figures["query_us"])
        yield summarise(UPDATE, case, "tcprepl", UNIT, figures["update_us"])
        try:
            figures = _peer("synapse", _synapse(), rooms)
        except SetupError as error:
            yield absent(QUERY, case, SYNAPSE, UNIT, error)
            yield absent(UPDATE, case, SYNAPSE, UNIT, error)
            continue
        yield summarise(QUERY, case, SYNAPSE, UNIT, figures["query_us"])
        yield summarise(UPDATE, case, SYNAPSE, UNIT, figures["update_us"])
    yield from _flat(QUERY, flat)


def _flat(bench: str, figures: dict[int, list[float]]) -> Iterator[Result]:
    """Compare the best repetitions: what else runs on the machine only ever adds."""
    for name, rooms in (("tcprepl", SIZES[-1]), ("tcprepl, 1,000 rooms", SIZES[0])):
        some = figures[rooms]
        yield Result(bench, FLAT, name, min(some), UNIT, min(some), max(some), "the best")


def _time_us(work: Callable[[], object], count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - started) / count * 1e6


def _filled(rooms: int) -> Board[Sequence[str]]:
    board = make_board(0)
    for number in range(rooms):
        board.post(f"!room{number}:example.com", ["@user:example.com"], number + 1)
    return board


def _boards() -> Iterator[Result]:
    flat: dict[int, list[float]] = {}
    for rooms in SIZES:
        board, after = _filled(rooms), rooms - CHANGED
        assert len(board.updates(after).entries) == CHANGED
        gc.collect()
        gc.freeze()
        updates = partial(board.updates, after)
        flat[rooms] = [_time_us(updates, 5_000) for _ in range(REPETITIONS)]
        note = "rows with their users"
        yield summarise(UPDATES, _case(rooms), "tcprepl", UNIT, flat[rooms], note)
        if rooms == SIZES[-1]:
            figures = [_time_us(partial(_walk, board, after), 3) for _ in range(REPETITIONS)]
            for bench in (QUERY, UPDATES):
                yield summarise(bench, _case(rooms), "walk over all rooms", UNIT, figures)
        gc.unfreeze()
    yield from _flat(UPDATES, flat)


def _walk(board: Board[Sequence[str]], after: int) -> list[str]:
    """Find the rooms without an index: what the code did before there was one."""
    states = board._states
    return [room for room, entry in states.items() if entry.token > after]


def _memory() -> Iterator[Result]:
    rooms = 20_000
    each, left = [], []
    names = [f"!room{number}:example.com" for number in range(10 * rooms)]
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        board = make_board(0)
        for number, name in enumerate(names[:rooms], start=1):
            board.post(name, [], number)
        each.append(tracemalloc.get_traced_memory()[0] / rooms)
        for number, name in enumerate(names, start=rooms + 1):
            board.post(name, [], number)
        board.forget_blank(number)
        left.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(board) == 0
    note = "for ten minutes; its name not counted"
    yield summarise("typing memory", "a quiet room", "tcprepl", "bytes", each, note)
    note = "after ten minutes: the change cache"
    yield summarise("typing memory", f"{10 * rooms:,} quiet rooms", "tcprepl", "bytes", left, note)


def _wheel() -> Iterator[Result]:
    count = 1_000_000
    bench = "wheel timer"
    chance = random.Random(1)
    times = [chance.randrange(120_000) for _ in range(count)]
    timed = ("!room:example.com", "@user:example.com")
    inserts, fetches, sizes = [], [], []
    for _ in range(3):
        wheel: WheelTimer[tuple[str, str]] = WheelTimer()
        gc.collect()
        tracemalloc.start()
        for then_ms in times[: count // 10]:
            wheel.insert(timed, then_ms)
        sizes.append(tracemalloc.get_traced_memory()[0] / (count // 10))
        tracemalloc.stop()
        wheel = WheelTimer()
        started = time.process_time()
        for then_ms in times:
            wheel.insert(timed, then_ms)
        inserts.append((time.process_time() - started) / count * 1e6)
        started = time.process_time()
        fetched = sum(len(wheel.fetch(now_ms)) for now_ms in range(0, 130_000, 5_000))
        fetches.append((time.process_time() - started) / count * 1e6)
        assert fetched == count
    case = f"{count:,} timers"
    yield summarise(bench, f"insert, {case}", "tcprepl", UNIT, inserts)
    yield summarise(bench, f"fetch, {case}", "tcprepl", UNIT, fetches, "per timer")
    yield summarise(bench, f"memory, {case}", "tcprepl", "bytes", sizes, "per timer")
