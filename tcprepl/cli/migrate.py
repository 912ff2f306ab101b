"""``tcprepl migrate``: from a data directory to PostgreSQL, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from tcprepl.cli.arguments import DATA
from tcprepl.cli.progress import Progress
from tcprepl.errors import ConfigError
from tcprepl.protocol.grammar import INSTANCE_SHAPE, is_instance_name

if TYPE_CHECKING:
    from tcprepl.storage.migration import Step

#: What was copied: the name of the count, one of them, and several.
_Counts: TypeAlias = tuple[tuple[str, str, str], ...]
_LOG: _Counts = (
    ("incarnations", "incarnation", "incarnations"),
    ("producers", "producer", "producers"),
    ("transactions", "transaction id", "transaction ids"),
)
_OUTBOX: _Counts = (
    ("edus", "EDU", "EDUs"),
    ("transactions", "transaction in flight", "transactions in flight"),
    ("put_off", "put off", "put off"),
    ("journal", "entry of the journal", "entries of the journal"),
)


def _words(counts: Mapping[str, int], which: _Counts) -> str:
    """Return how many there are of each."""
    return ", ".join(
        f"{counts[name]:,} {one if counts[name] == 1 else several}" for name, one, several in which
    )


def _log_in_words(counts: Mapping[str, int]) -> str:
    """Return what was copied of a log."""
    rows = _words(counts, (("blocks", "row", "rows"),))
    pairs = _words(counts, (("pairs", "stream and instance", "streams and instances"),))
    return f"{rows} of {pairs}, {_words(counts, _LOG)}"


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_instance_name(value):
        raise click.BadParameter(f"{value!r}: expected {INSTANCE_SHAPE}", ctx, param)
    return value


@click.command("migrate")
@click.argument("source", metavar="FROM", type=DATA)
@click.argument("target", metavar="TO", type=DATA)
@click.option(
    "--instance",
    default="master",
    show_default=True,
    callback=_name,
    help="The instance of the server that will write what is in TO, a database.",
)
@click.option(
    "--sender",
    metavar="NAME",
    callback=_name,
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
      postgresql://db/tcprepl: 1,000,000 rows of 12 streams and instances, 9 incarnations, ...
    """
    try:
        from tcprepl.app.migrating import migrate_data
    except ImportError as error:
        raise ConfigError(
            f"{error.name or error} is not there: pip install 'tcprepl[postgresql]'"
        ) from None
    with Progress("rows") as progress:

        def tell(step: Step) -> None:
            if step.doing != progress.doing:
                progress.begin(step.doing, step.total, step.begun_at)
            progress.at(step.done)

        done = migrate_data(
            source,
            target,
            instance if sender is None else sender,
            tell,
            sender=sender is not None,
        )
    shown = [str(side) if isinstance(side, Path) else displayed(side) for side in (source, target)]
    words = _log_in_words(done.counts) if sender is None else _words(done.counts, _OUTBOX)
    click.echo(f"{shown[1]}: {words}, compared with {shown[0]}")
    if done.resumed:
        click.echo(f"{done.resumed:,} of them were there from the attempt before")
    click.echo(f"{shown[0]} is as it was: do not serve it any more")


def displayed(url: str) -> str:
    """Return where a URL leads, without the password."""
    from tcprepl.storage import postgresql

    return postgresql.displayed(url)
