"""How fast rows get to the disk, and how fast they come back.

``python -m tests.benchmarks.bench_log`` prints the figures; `run` returns them.

* Ingest: through `Publisher` (so encoded and validated), in batches of 100 rows of about 200 bytes
  that are unlike one another, each acknowledged only when on disk (SQLite WAL,
  ``synchronous=FULL``), with several appends in flight, and strictly one after the other.
* Read back: everything, as ready lines, from the disk in a process that has nothing in
  memory, and from the blocks in memory.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import receipt_rows

BATCH_ROWS = 100
DEFAULT_ROWS = 300_000
IN_FLIGHT = 32


def ingest(where: str, rows: int, in_flight: int) -> dict[str, float]:
    """Publish *rows* into a new log, in a directory or a database; return the figures."""
    from twisted.internet import reactor  # the process is ours
    from twisted.internet.defer import Deferred, DeferredList

    from tcprepl.streams.opening import open_log, open_shared_log
    from tcprepl.streams.publisher import Publisher
    from tcprepl.streams.registry import Registry

    registry = Registry()
    figures: dict[str, float] = {}
    batches = itertools.cycle(receipt_rows.batches(BATCH_ROWS))

    async def work() -> None:
        shared = where.startswith("postgresql:")
        log = (
            await open_shared_log(where, "master", registry, reactor)
            if shared
            else open_log(where, registry, reactor)
        )
        publisher = Publisher(log, registry, "master")
        sizes: list[int] = []
        log.add_listener(lambda block: sizes.append(len(block.lines)))
        left = rows // BATCH_ROWS

        async def one() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await publisher.publish("receipts", next(batches))

        cpu, wall = time.process_time(), time.perf_counter()
        await DeferredList([Deferred.fromCoroutine(one()) for _ in range(in_flight)])
        seconds = time.perf_counter() - wall
        figures["rows_per_s"] = rows / seconds
        figures["cpu_us_per_row"] = (time.process_time() - cpu) / rows * 1e6
        figures["bytes_per_row"] = sum(sizes) / rows
        figures["blocks"] = len(sizes)
        if not shared:
            upto = log.position("receipts", "master")
            figures["memory_read_rows_per_s"] = read_back(log, upto)
        await log.close()

    done = Deferred.fromCoroutine(work())
    done.addBoth(lambda answer: (reactor.stop(), answer)[1])  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    return figures


def read_back(log: Any, upto: int, first: int | None = None) -> float:
    """Read rows as ready lines, page after page; return rows a second of CPU time.

    Nothing waits here, so on a machine without other work that is the time that it takes.
    """
    after = log.position("receipts", "master") - 15_000 if first is None else first
    rows = size = 0
    started = time.process_time()
    while True:
        page = log.read("receipts", "master", after, upto)
        rows += len(page.tokens)
        size += len(page.lines)
        after = page.upto
        if not page.limited:
            break
    return rows / (time.process_time() - started)


def write_single_rows(directory: Path, rows: int) -> None:
    """Write *rows* rows into a new log, each in a commit, and so a block, of its own."""
    from tcprepl.storage.worker import InlineWorker
    from tcprepl.streams.registry import Registry
    from tcprepl.streams.sqlite import SqliteLog

    registry = Registry()
    log = SqliteLog(directory, registry, lambda: int(time.time() * 1000), InlineWorker())
    lines = registry.encode_rows("receipts", receipt_rows.batches(BATCH_ROWS)[0])
    for number in range(rows):
        log.append("receipts", "master", [lines[number % len(lines)]])
    log.close()


def read_from_disk(directory: Path) -> dict[str, float]:
    """Read the whole log of *directory* back, three times; return the best figure."""
    from tcprepl.storage.worker import InlineWorker
    from tcprepl.streams.registry import Registry
    from tcprepl.streams.sqlite import SqliteLog

    log = SqliteLog(directory, Registry(), lambda: int(time.time() * 1000), InlineWorker())
    upto = log.position("receipts", "master")
    best = max(read_back(log, upto, log.floor("receipts", "master")) for _ in range(3))
    log.close().addErrback(lambda failure: failure.raiseException())
    return {"rows_per_s": best}


def _in_process(*args: str) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_log", *args],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def run(rows: int = DEFAULT_ROWS) -> dict[str, Any]:
    """Measure, print and return the figures; each part in a process of its own."""
    figures: dict[str, Any] = {"rows": rows, "batch_rows": BATCH_ROWS, "in_flight": IN_FLIGHT}
    with tempfile.TemporaryDirectory() as where:
        directory = Path(where) / "data"
        figures["ingest"] = _in_process("ingest", str(directory), str(rows), str(IN_FLIGHT))
        figures["read"] = _in_process("read", str(directory))
        shutil.rmtree(directory)
        write_single_rows(directory, rows // 30)
        figures["read_single"] = _in_process("read", str(directory))
        shutil.rmtree(directory)
        figures["sequential"] = _in_process("ingest", str(directory), str(rows // 10), "1")
    concurrent, sequential = figures["ingest"], figures["sequential"]
    single = figures["read_single"]
    print(
        f"ingest, durable, {IN_FLIGHT} appends in flight  {concurrent['rows_per_s']:12,.0f} rows/s"
        f"  ({concurrent['cpu_us_per_row']:.2f} us CPU a row,"
        f" {concurrent['bytes_per_row']:.0f} bytes a line)\n"
        f"ingest, durable, one after the other  {sequential['rows_per_s']:12,.0f} rows/s\n"
        f"read back from disk, ready lines      {figures['read']['rows_per_s']:12,.0f} rows/s\n"
        f"the same of single rows               {single['rows_per_s']:12,.0f} rows/s\n"
        f"read back from memory, ready lines    "
        f"{concurrent['memory_read_rows_per_s']:12,.0f} rows/s"
    )
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["ingest"]:
        print(json.dumps(ingest(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    elif sys.argv[1:2] == ["read"]:
        print(json.dumps(read_from_disk(Path(sys.argv[2]))))
    else:
        run()
