"""``tcprepl reload``: tell a running process to take up its changed configuration."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from tcprepl.errors import TcpreplError
from tcprepl.storage.lock import holder_of


@click.command("reload")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default="tcprepl-data",
    show_default=True,
    help="The data directory of the process.",
)
def command(data: Path) -> None:
    """Let the process that uses a data directory reload: what SIGHUP does.

    It takes up certificates, tokens, limits, retention and more; its log says what changed and
    what needs a restart. Connections stay, except those of tokens whose rights have changed.

    \b
    Example:
      $ tcprepl reload --data /var/lib/tcprepl
      process 812 reloads; its log says what has changed
    """
    pid = holder_of(data)
    if pid is None:
        raise TcpreplError(f"{data}: no process uses it")
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise TcpreplError(f"process {pid} is not yours: run this as its user") from None
    click.echo(f"process {pid} reloads; its log says what has changed")
