"""What the driver looks at: streams as a person reads them, and what a worker has kept."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.harness import Lines
from tests.invariants import Diary, Row, Told


def read_stream(port: int, stream: str, head: int, instance: str = "master") -> list[Row | Told]:
    """Return what a reader that begins at 0 is told of a pair, up to *head*."""
    diary: list[Row | Told] = []
    known = 0
    batch: list[str] = []
    with Lines(port) as lines:
        lines.send(f"REPLICATE {stream} {instance} 0\n")
        while known < head:
            line = lines.readline()
            if not line:
                raise AssertionError(f"closed while {stream} was read, at {known} of {head}")
            words = line.split(" ", 4)
            if words[0] == "RDATA" and words[1:3] == [stream, instance]:
                batch.append(words[4])
                if words[3] != "batch":
                    known = int(words[3])
                    diary += [Row(known, row) for row in batch]
                    batch = []
            elif words[0] == "POSITION" and words[1:3] == [stream, instance]:
                before, now = int(words[3]), int(words[4])
                if before != known:
                    diary.append(Told(known, before))
                known = now
    return diary


def worker_diary(database: Path, stream: str) -> Diary:
    """Return what `tests.faults.worker` has committed of a stream, in order."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not {"seen", "told"} <= tables:
            return []
        seen = connection.execute(
            "SELECT number, token, row FROM seen WHERE stream = ? ORDER BY number", (stream,)
        ).fetchall()
        told = connection.execute(
            "SELECT behind, known, token FROM told WHERE stream = ? ORDER BY number", (stream,)
        ).fetchall()
    entries: list[tuple[int, int, Row | Told]] = [(n, 0, Row(t, row)) for n, t, row in seen]
    entries += [(behind, 1 + place, Told(k, t)) for place, (behind, k, t) in enumerate(told)]
    return [entry for _, _, entry in sorted(entries, key=lambda entry: entry[:2])]
