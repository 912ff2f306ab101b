"""Disks for a simulated world: real SQLite files, and what may happen to them.

Nothing stands between SQLite and the file system, so what a crash leaves is made by copying: a
copy of the database and its write-ahead log, taken between any two statements, is what is there
after ``kill -9`` at that moment; one whose log is cut within what the last commit appended is
what a power cut may leave; one with a turned bit is a damaged disk. Refusals come in at the one
door that all databases of the package are opened through (`tcprepl.storage.sqlite`).
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from tcprepl.storage import sqlite as door
from tcprepl.streams.block_store import BODY
from tests.simulation.universe import Process

#: What a disk may do, and what SQLite says then.
REFUSALS = {
    "full": "database or disk is full",
    "no fsync": "disk I/O error",
    "failing": "disk I/O error",
}
#: What it may do as well: take its time.
SLOW = "slow"
_WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "REPLACE")
#: How long a job takes on a disk, and on one that is slow.
JOB_S = 0.004
SLOW_JOB_S = 2.0


class Disk:
    """A machine's disk: one directory.

    Attributes:
        directory: Where its files are.
        mood: ``ok``, or what it does instead (`REFUSALS`, `SLOW`).
        refused: How often it has refused.
    """

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.chance = chance
        self.mood = "ok"
        self.refused = 0
        self.copies = 0
        directory.mkdir(parents=True, exist_ok=True)

    def ask(self, statement: str) -> None:
        """Refuse *statement*, if that is what it does now."""
        mood = self.mood
        if mood in ("ok", SLOW):
            return
        word = statement.lstrip()[:7].upper()
        if mood == "full":
            refuses = word.startswith(_WRITES)
        elif mood == "no fsync":
            refuses = word.startswith("COMMIT")
        else:
            refuses = not word.startswith(("ROLLBAC", "PRAGMA")) and self.chance.random() < 0.3
        if refuses:
            self.refused += 1
            raise sqlite3.OperationalError(REFUSALS[mood])

    def copy(self, name: str) -> Path:
        """Return a copy of the files as they are."""
        self.copies += 1
        target = self.directory.with_name(f"{self.directory.name}.{name}{self.copies}")
        shutil.copytree(self.directory, target)
        return target

    def become(self, image: Path) -> None:
        """Hold what *image* holds; it is used up."""
        shutil.rmtree(self.directory)
        image.rename(self.directory)


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *args: Any) -> Any:
        self.connection.disk.ask(sql)  # type: ignore[attr-defined]
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        self.connection.disk.ask(sql)  # type: ignore[attr-defined]
        return super().executemany(sql, *args)


class _Connection(sqlite3.Connection):
    disk: Disk

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self.cursor().executemany(sql, *args)

    def commit(self) -> None:
        if self.in_transaction:
            self.disk.ask("COMMIT")
        super().commit()


class Disks:
    """Every disk of a world, and the door to them.

    Attributes:
        by_directory: The disks.
    """

    def __init__(self, where: Path, chance: random.Random) -> None:
        self.where = where
        self.chance = chance
        self.by_directory: dict[Path, Disk] = {}
        self.open: list[tuple[Disk, sqlite3.Connection]] = []

    def disk(self, name: str) -> Disk:
        """Return the disk called *name*."""
        directory = self.where / name
        if directory not in self.by_directory:
            self.by_directory[directory] = Disk(directory, self.chance)
        return self.by_directory[directory]

    def connect(self, path: Any, **options: Any) -> sqlite3.Connection:
        """Open a database, as `sqlite3.connect` does."""
        disk = self.by_directory.get(Path(path).parent) if path != ":memory:" else None
        if disk is None:
            return sqlite3.connect(path, **options)
        if disk.mood == "failing" and self.chance.random() < 0.3:
            raise sqlite3.OperationalError("unable to open database file")
        connection = sqlite3.connect(path, factory=_Connection, **options)
        connection.disk = disk
        # the machine that runs this does not lose its power: waiting for it proves nothing
        self.open.append((disk, connection))
        return connection

    def close(self, disk: Disk) -> None:
        """Take everything from whoever had files of *disk* open, as the end of a process does."""
        rest = []
        for one, connection in self.open:
            if one is disk:
                with suppress(sqlite3.Error):
                    connection.close()
            else:
                rest.append((one, connection))
        self.open = rest

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let all databases be opened here."""

        class Sqlite:
            connect = staticmethod(self.connect)

            def __getattr__(self, name: str) -> Any:
                return getattr(sqlite3, name)

        with mock.patch.object(door, "sqlite3", Sqlite()):
            yield


class Thread:
    """Does a process's work with its disk, a little later: `tcprepl.storage.worker.Worker`.

    One job at a time, in order. A process that is killed loses the jobs that were not begun; the
    one that is about to be done may be cut short (`Thread.killed`).
    """

    def __init__(self, process: Process, disk: Disk) -> None:
        self.process = process
        self.disk = disk
        self.jobs: deque[tuple[Callable[[], Any], Callable[..., None]]] = deque()
        self._call: Any = None

    @property
    def busy(self) -> bool:
        """Whether something is to be done."""
        return bool(self.jobs)

    def submit(self, job: Callable[[], Any], done: Callable[..., None]) -> None:
        """Run *job* later, then *done*."""
        self.jobs.append((job, done))
        self._begin()

    def _begin(self) -> None:
        if self.jobs and self._call is None:
            most_s = SLOW_JOB_S if self.disk.mood == SLOW else JOB_S
            self._call = self.process.callLater(self.disk.chance.random() * most_s, self._next)

    def _next(self) -> None:
        self._call = None
        if self.jobs:  # else `call` has done them
            self._do(*self.jobs.popleft())
        self._begin()

    def _do(self, job: Callable[[], Any], done: Callable[..., None]) -> None:
        try:
            answer = job()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self.process.callFromThread(done, None, error)
        else:
            self.process.callFromThread(done, answer, None)

    def call(self, job: Callable[[], Any]) -> Any:
        """Run *job* after those before it, and return what it does."""
        while self.jobs:
            self._do(*self.jobs.popleft())
        return job()

    def stop(self) -> None:
        """End, after the jobs that were given."""
        self.call(lambda: None)
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None


def crash_image(disks: Disks, disk: Disk, thread: Thread | None) -> tuple[Path, str]:
    """Return what ``kill -9`` leaves on *disk*, and when it struck.

    If *thread* is at work, that is at a statement of its job, in the middle of what the job's
    commit appends to the write-ahead log, or after it and before anybody hears of it.
    """
    chance = disks.chance
    if thread is None or not thread.jobs:
        return disk.copy("idle"), "idle"
    before = disk.copy("before")
    sizes = {path.name: path.stat().st_size for path in disk.directory.glob("*-wal")}
    images: list[Path] = []
    left = chance.randint(1, 12)

    def statement(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            images.append(disk.copy("within"))

    connections = [connection for one, connection in disks.open if one is disk]
    for connection in connections:
        with suppress(sqlite3.ProgrammingError):
            connection.set_trace_callback(statement)
    with suppress(Exception):  # whoever is killed hears of nothing
        thread.jobs[0][0]()
    for connection in connections:
        with suppress(sqlite3.ProgrammingError):
            connection.set_trace_callback(None)
    kind = chance.choice(["before", "within", "torn", "after"])
    image = before
    if kind == "within" and images:
        image = images.pop()
    elif kind == "after":
        image = disk.copy("after")
    elif kind == "torn":
        image = _torn(disk, before, sizes, chance)
    for other in (before, *images):
        if other != image:
            shutil.rmtree(other)
    return image, kind


def _torn(disk: Disk, before: Path, sizes: dict[str, int], chance: random.Random) -> Path:
    """Return the files with each log cut somewhere in what was appended to it just now."""
    image = disk.copy("torn")
    for path in image.glob("*-wal"):
        size, then = path.stat().st_size, sizes.get(path.name, 0)
        if size <= then:  # it was begun anew: what was there before is not there any more
            shutil.rmtree(image)
            return before
        with path.open("r+b") as file:
            file.truncate(chance.randint(then, size))
    for path in image.glob("*-shm"):
        path.unlink()
    return image


def turn_a_bit(
    path: Path, streams: Sequence[str], chance: random.Random
) -> tuple[str, str, int] | None:
    """Turn one bit in the body of some block of a log that nobody has open; return which.

    Args:
        path: The log's file.
        streams: Whose blocks to choose from.
        chance: Chooses.

    Returns:
        The (stream, instance, last token) of the block; None if there is none.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        found = connection.execute(
            f"SELECT pairs.stream, pairs.instance, blocks.last, {BODY} FROM blocks"
            " JOIN pairs ON pairs.id = blocks.pair ORDER BY blocks.pair, blocks.last"
        ).fetchall()
    found = [row for row in found if row[0] in streams]
    content = path.read_bytes()
    chance.shuffle(found)
    for stream, instance, last, body in found:
        at = content.find(body)
        if at >= 0 and content.find(body, at + 1) < 0:
            at += chance.randrange(len(body))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([content[at] ^ (1 << chance.randrange(8))]))
            return stream, instance, last
    return None
