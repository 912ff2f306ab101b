"""Which log a process gets: on disk, in memory, or in a database that it shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from twisted.internet.defer import Deferred

from tcprepl.clocks import Reactor, steady_ms
from tcprepl.errors import ConfigError
from tcprepl.ids import InstanceName
from tcprepl.storage.worker import ThreadWorker
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.holding import Holder
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention
from tcprepl.streams.sqlite import SqliteLog


def open_log(
    directory: Path | str | None,
    registry: Registry,
    reactor: Reactor,
    retention: Retention | None = None,
    clock_ms: Callable[[], int] = steady_ms,
    gaps: Gaps | None = None,
) -> Log:
    """Open the log of a process.

    Args:
        directory: The data directory; None keeps everything in memory.
        registry: What streams there are.
        reactor: The reactor, with its time and its threads.
        retention: What to keep.
        clock_ms: Gives the time in ms since 1970, by a clock that never jumps.
        gaps: Where rows are known to be missing, if anywhere: those of a relay.

    Raises:
        LogLocked: another process has the directory open.
        LogCorrupt: the database is damaged, or is not one.
        LogTooNew: a newer version of tcprepl wrote it.
        LogUnavailable: the directory cannot be used, or the disk refuses.
    """
    if directory is None:
        return MemoryLog(registry, clock_ms, retention, reactor, gaps)
    writing = ThreadWorker(reactor.callFromThread, "tcprepl-log")
    reading = ThreadWorker(reactor.callFromThread, "tcprepl-read")
    return SqliteLog(directory, registry, clock_ms, writing, retention, reactor, gaps, reading)


async def open_shared_log(
    url: str,
    instance: InstanceName,
    registry: Registry,
    reactor: Reactor,
    retention: Retention | None = None,
    clock_ms: Callable[[], int] = steady_ms,
    gaps: Gaps | None = None,
    *,
    standby: bool = False,
    lease_s: float = 10.0,
) -> Log:
    """Open the log in a PostgreSQL database, to write as *instance*; all others can be read.

    Args:
        url: Where the database is.
        instance: The name to write under; of all processes one at a time has it.
        registry: What streams there are.
        reactor: The reactor, with its time and its threads.
        retention: What to keep.
        clock_ms: Gives the time in ms since 1970, by a clock that never jumps.
        gaps: Where rows are known to be missing, if anywhere: those of a relay.
        standby: Whether to wait for as long as another process has the name.
        lease_s: How long the name is kept for a process that is not heard of.

    Raises:
        ConfigError: psycopg is not installed.
        LogHeld: another process writes as *instance*.
        LogTooNew: a newer version of tcprepl made the tables.
        LogUnavailable: the database cannot be used, or refuses.
        CancelledError: whoever waits has cancelled it.
    """
    try:
        from tcprepl.streams.postgres_database import PostgresDatabase
        from tcprepl.streams.postgresql import PostgresLog
    except ImportError as error:
        raise _lacking(error) from None
    retention = retention or Retention()
    database = PostgresDatabase(
        url, instance, lease_s=lease_s, transaction_age_s=retention.transaction_age_s
    )
    writing = ThreadWorker(reactor.callFromThread, "tcprepl-log")

    def done(_: None, error: BaseException | None) -> None:
        if taken.called:  # nobody waits any more
            database.close()
        elif error is not None:
            taken.errback(error)
        else:
            taken.callback(None)
            return
        writing.stop()

    taken: Deferred[None] = Deferred(lambda _: database.stop())
    writing.submit(lambda: database.take(standby=standby), done)
    await taken
    reading = ThreadWorker(reactor.callFromThread, "tcprepl-read")
    looking = ThreadWorker(reactor.callFromThread, "tcprepl-look")
    log = PostgresLog(
        database, registry, clock_ms, writing, retention, reactor, gaps, reading, looking
    )
    log.listen(reactor.callFromThread)
    return log


class Looked(NamedTuple):
    """What was seen of the database of a log.

    Attributes:
        holders: Who writes there.
        warnings: What is wrong with its settings, each with what to do after a semicolon.
    """

    holders: list[Holder]
    warnings: list[str]


def look_at_database(url: str) -> Looked:
    """Look at the database of a log, and change nothing.

    Args:
        url: Where the database is.

    Raises:
        ConfigError: psycopg is not installed.
        LogUnavailable: the database cannot be used, or refuses.
    """
    try:
        from tcprepl.storage.postgresql import Link, look_at_load, look_at_server
        from tcprepl.streams.postgres_schema import HOLDERS, SCHEMA_NAME
    except ImportError as error:
        raise _lacking(error) from None
    link = Link(url, SCHEMA_NAME)
    try:
        warnings = look_at_server(url, link) + look_at_load(link)
        with link.using() as connection:
            made = connection.execute("SELECT to_regclass('writers')").fetchone()
            found = [] if made == (None,) else connection.execute(HOLDERS).fetchall()
    finally:
        link.close()
    return Looked([Holder(*row) for row in found], warnings)


def _lacking(error: ImportError) -> ConfigError:
    return ConfigError(
        f"the log is to be in PostgreSQL, and {error.name or error} is not there: "
        "pip install 'tcprepl[postgresql]'"
    )
