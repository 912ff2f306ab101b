"""``tcprepl reload``: tell a running process to take up its changed configuration."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from tcprepl.app.answering import Outcome, told
from tcprepl.cli.arguments import SECONDS
from tcprepl.errors import TcpreplError
from tcprepl.protocol.display import displayable
from tcprepl.storage.lock import holder_of

#: How often it is looked for an answer.
_LOOK_S = 0.05


@click.command("reload")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default="tcprepl-data",
    show_default=True,
    help="The data directory of the process.",
)
@click.option(
    "--within",
    type=SECONDS,
    default=30.0,
    show_default=True,
    help="How long to wait for an answer.",
)
def command(data: Path, within: float) -> None:
    """Let the process that uses a data directory reload: what SIGHUP does.

    It takes up certificates, tokens, limits, retention and more, and says here what has changed
    and what needs a restart. Connections stay, except those of tokens whose rights have changed.
    The exit code is 1 if it refuses, as the configuration has faults: then nothing has changed.

    \b
    Example:
      $ tcprepl reload --data /var/lib/tcprepl
      process 812 has reloaded
        changed: http.token, log.level
        needs a restart: http.listen
    """
    before = told(data)
    pid = holder_of(data) if before is None else before.pid
    if pid is None:
        raise TcpreplError(f"{data}: no process uses it")
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise TcpreplError(f"process {pid} is not yours: run this as its user") from None
    if before is None:
        click.echo(f"process {pid} reloads; its log says what has changed")
        return
    outcome = _answer(data, pid, before.reloads, time.monotonic() + within)
    if outcome.faults:
        faults = "".join(f"\n  {displayable(fault)}" for fault in outcome.faults)
        raise TcpreplError(f"process {pid} refuses, the old settings hold:{faults}")
    click.echo(f"process {pid} has reloaded")
    for words in (
        outcome.text,
        outcome.changed and f"changed: {', '.join(outcome.changed)}",
        outcome.needs_restart and f"needs a restart: {', '.join(outcome.needs_restart)}",
    ):
        if words:
            click.echo(f"  {words}")


def _answer(data: Path, pid: int, reloads: int, deadline: float) -> Outcome:
    """Return what became of a reload."""
    while time.monotonic() < deadline:
        now = told(data)
        if now is None or now.pid != pid:
            raise TcpreplError(f"process {pid} ended before it said what became of it")
        if now.outcome is not None and now.reloads > reloads:
            return now.outcome
        time.sleep(_LOOK_S)
    raise TcpreplError(f"process {pid} does not say what became of it; see its log")
