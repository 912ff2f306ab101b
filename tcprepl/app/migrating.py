"""A migration as a user asks for it: which sides there are, and what is copied."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from tcprepl.errors import ConfigError
from tcprepl.federation.sending.migration import OUTBOX
from tcprepl.federation.sending.outbox_postgres import schema_of
from tcprepl.ids import InstanceName
from tcprepl.storage.migrating_postgres import PostgresSource, PostgresTarget
from tcprepl.storage.migrating_sqlite import SqliteSource, SqliteTarget
from tcprepl.storage.migration import Kind, Migrated, Step, migrate
from tcprepl.streams.migration import LOG
from tcprepl.streams.postgres_schema import SCHEMA_NAME


def migrate_data(
    source: Path | str,
    target: Path | str,
    name: InstanceName,
    tell: Callable[[Step], object],
    *,
    sender: bool = False,
) -> Migrated:
    """Copy a log, or an outbox, to *target*: from a directory to the URL of a database, or back.

    Args:
        source: Where it is; it stays as it is.
        target: Where it is to be.
        name: The instance that will write, in a database, what came out of a directory; or the
            name of the sender.
        tell: Called now and then with how far it is.
        sender: Whether it is the outbox of a federation sender, and not a log.

    Raises:
        ConfigError: *source* and *target* are of the same sort, or the name cannot be.
        LogError: One of them is in use, in the way, damaged or away.
    """
    kind, schema = (OUTBOX, schema_of(name)) if sender else (LOG, SCHEMA_NAME)
    with ExitStack() as opened:
        if isinstance(source, Path) and isinstance(target, str):
            reading = opened.enter_context(closing(SqliteSource(source, kind)))
            writing = opened.enter_context(closing(PostgresTarget(target, schema, kind, name)))
            return migrate(kind, reading, writing, tell)
        if isinstance(source, str) and isinstance(target, Path):
            return _out_of_a_database(opened, kind, schema, source, target, tell)
    raise ConfigError("expected a directory and postgresql://..., or the other way about")


def _out_of_a_database(
    opened: ExitStack,
    kind: Kind,
    schema: str,
    source: str,
    target: Path,
    tell: Callable[[Step], object],
) -> Migrated:
    reading = opened.enter_context(closing(PostgresSource(source, schema, kind)))
    reading.open(str(target))
    writing = opened.enter_context(closing(SqliteTarget(target, kind)))
    return migrate(kind, reading, writing, tell)
