"""``tcprepl backup``: a copy of a data directory, while its process runs."""

from __future__ import annotations

from pathlib import Path

import click

import tcprepl
from tcprepl.cli.progress import Progress
from tcprepl.config import load
from tcprepl.protocol.display import counted, displayable
from tcprepl.storage.backup import faults_at_its_making, make_backup


@click.command("backup")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The data directory.  [default: that of --config, else ./tcprepl-data]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file of the server.",
)
def command(directory: Path, data: Path | None, config_file: Path | None) -> int:
    """Copy the whole data directory to DIRECTORY, which must not exist yet.

    The server, relay or federation sender goes on meanwhile. The copy has its signing key and
    is for its owner alone. DIRECTORY appears when all of it is on disk. If a
    database is damaged, the copy is kept all the same, what is wrong is said on stderr, and the
    exit code is 1: keep the copies of before. `tcprepl log verify` reads every row as well.

    \b
    Example:
      $ tcprepl backup --data /var/lib/tcprepl /backup/monday
      /backup/monday: 5 files, 1048576 bytes
    """
    if data is None and config_file is not None:
        configured = load(config_file).config.data_directory
        if configured is None:
            raise click.UsageError(f"{config_file} keeps everything in memory: nothing to copy")
        data = Path(configured)
    data = data or Path("tcprepl-data")
    with Progress("bytes") as progress:
        made = make_backup(data, directory, tcprepl.__version__, progress.of)
    files, room = counted(len(made.files), "file"), counted(made.size_bytes, "byte")
    click.echo(f"{directory}: {files}, {room}")
    faults = list(faults_at_its_making(directory, made))
    for fault in faults:
        click.echo(displayable(fault), err=True)
    return int(bool(faults))
