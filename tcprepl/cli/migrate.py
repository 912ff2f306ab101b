"""``tcprepl migrate``: from a data directory to PostgreSQL, and back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcprepl.cli.arguments import DATA
from tcprepl.errors import ConfigError
from tcprepl.web.elements import duration

if TYPE_CHECKING:
    from tcprepl.storage.migration import Step

#: What was copied.
_LOG_IN_WORDS = (
    "{blocks:,} rows of {pairs:,} streams and instances, {incarnations:,} incarnations, "
    "{producers:,} producers, {transactions:,} transaction ids"
)
_OUTBOX_IN_WORDS = (
    "{edus:,} EDUs, {transactions:,} transactions in flight, {put_off:,} put off, "
    "{journal:,} entries of the journal"
)
#: How often a person is told how far it is.
PROGRESS_S = 0.5


@click.command("migrate")
@click.argument("source", metavar="FROM", type=DATA)
@click.argument("target", metavar="TO", type=DATA)
@click.option(
    "--instance",
    default="master",
    show_default=True,
    help="The instance of the server that will write what is in TO, a database.",
)
@click.option(
    "--sender",
    metavar="NAME",
    help="Copy the outbox of the federation sender of this name, and not a log.",
)
def command(source: Path | str, target: Path | str, instance: str, sender: str | None) -> None:
    """Copy the log of a data directory, or an outbox, into a PostgreSQL database, or back.

    Rows, tokens, incarnations, gaps, producers and transaction ids stay what they are, so
    readers and writers go on as after a restart. Stop the servers first. FROM stays as it is; TO
    must not have one, and is not served before all of it was read again and compared. What
    is broken off, even by kill -9, goes on when it is called again.

    \b
    Example:
      $ tcprepl migrate /var/lib/tcprepl postgresql://tcprepl@db/tcprepl
      postgresql://db/tcprepl: 1,000,000 rows of 12 streams, compared with /var/lib/tcprepl
    """
    try:
        from tcprepl.app.migrating import migrate_data
    except ImportError as error:
        raise ConfigError(
            f"{error.name or error} is not there: pip install 'tcprepl[postgresql]'"
        ) from None
    progress = Progress() if sys.stderr.isatty() else None
    try:
        done = migrate_data(
            source,
            target,
            instance if sender is None else sender,
            progress or (lambda _: None),
            sender=sender is not None,
        )
    finally:
        if progress is not None:
            progress.clear()
    shown = [str(side) if isinstance(side, Path) else displayed(side) for side in (source, target)]
    words = _LOG_IN_WORDS if sender is None else _OUTBOX_IN_WORDS
    click.echo(f"{shown[1]}: {words.format(**done.counts)}, compared with {shown[0]}")
    if done.resumed:
        click.echo(f"{done.resumed:,} of them were there from the attempt before")
    click.echo(f"{shown[0]} is as it was: do not serve it any more")


def displayed(url: str) -> str:
    """Return where a URL leads, without the password."""
    from tcprepl.storage import postgresql

    return postgresql.displayed(url)


class Progress:
    """Says on a terminal how far it is, how fast, and for how long it will go on."""

    def __init__(self) -> None:
        self._said_s = 0.0
        self._doing = ""
        self._began_s = 0.0

    def __call__(self, step: Step) -> None:
        """Say it, unless that was done a moment ago."""
        now_s = time.monotonic()
        if step.doing != self._doing:
            self._doing, self._began_s = step.doing, now_s
        if now_s - self._said_s < PROGRESS_S:
            return
        self._said_s = now_s
        rate = (step.done - step.begun_at) / max(now_s - self._began_s, 0.001)
        left_s = (step.total - step.done) / rate if rate else 0.0
        click.echo(
            f"\r{step.doing}: {step.done:,} of {step.total:,} rows, {rate:,.0f} a second, "
            f"{duration(left_s)} left\033[K",
            nl=False,
            err=True,
        )

    def clear(self) -> None:
        """Take it from the screen."""
        click.echo("\r\033[K", nl=False, err=True)
