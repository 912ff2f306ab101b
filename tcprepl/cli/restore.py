"""``tcprepl restore``: a data directory out of a copy."""

from __future__ import annotations

from pathlib import Path

import click

from tcprepl.cli.progress import Progress
from tcprepl.protocol.display import counted
from tcprepl.storage.backup import restore_backup


@click.command("restore")
@click.argument("backup", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
def command(backup: Path, directory: Path) -> None:
    """Make the data directory DIRECTORY out of BACKUP, which `tcprepl backup` made.

    The copy is checked first. DIRECTORY must be new or empty: stop the server, and move the old
    one away. Readers that are ahead of the copy notice, and get everything from there on.

    \b
    Example:
      $ tcprepl restore /backup/monday /var/lib/tcprepl
      /var/lib/tcprepl: 5 files of 2026-11-23T03:00:00+00:00; start the server on it
    """
    with Progress("bytes") as progress:
        made = restore_backup(backup, directory, progress.of)
    files = counted(len(made.files), "file")
    click.echo(f"{directory}: {files} of {made.made_at}; start the server on it")
