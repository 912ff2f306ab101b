"""``tcprepl check``: one look for a monitoring system, told by the exit code."""

from __future__ import annotations

from typing import Any

import click

from tcprepl.cli import Group
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, to_options
from tcprepl.errors import TcpreplError
from tcprepl.protocol.display import counted, displayable, few

OK, WARNING, CRITICAL = 0, 1, 2
#: How long a server may take to answer: less than those wait who ask, ten seconds with Nagios.
TIMEOUT_S = 8.0
#: Things that are amiss that are said: a server says fewer, one of an earlier version may not.
_MOST_AMISS = 30

timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=SECONDS,
    default=TIMEOUT_S,
    show_default=True,
    help="How long the server may take to answer.",
)


@click.group("check", cls=Group)
def command() -> None:
    """Look once, print one line, and exit with 0 (fine), 1 (warning) or 2 (critical).

    That is what Nagios, Icinga and their kin expect of a plugin.

    \b
    Example:
      $ tcprepl check lag --warn 5s --crit 60s
      OK: 3 peers, the slowest (fed1) is 0.0 s and 0 rows behind
    """


@command.command("lag")
@to_options
@click.option("--warn", type=SECONDS, default=5.0, show_default=True, help="Seconds behind.")
@click.option("--crit", type=SECONDS, default=60.0, show_default=True, help="Seconds behind.")
@timeout_option
def lag(url: str, token: str | None, warn: float, crit: float, timeout_s: float) -> int:
    """Check how far the slowest reader of a server is behind.

    \b
    Example:
      $ tcprepl check lag --warn 5s --crit 60s
      OK: 3 peers, the slowest (fed1) is 0.0 s and 0 rows behind
    """
    if warn > crit:
        raise click.UsageError(f"--warn {warn:g} is above --crit {crit:g}: it would never be said")
    try:
        status = Api(url, token, timeout_s=timeout_s).get("/_tcprepl/v1/status")
    except TcpreplError as error:
        click.echo(f"CRITICAL: {displayable(str(error))}")
        return CRITICAL
    code, text = judge(status["peers"], warn, crit)
    click.echo(displayable(text))
    return code


def judge(peers: list[dict[str, Any]], warn: float, crit: float) -> tuple[int, str]:
    """Return exit code and text for what a status says of peers."""
    if not peers:
        return OK, "OK: no peers"
    slowest = max(peers, key=lambda peer: (peer["behind_seconds"], peer["behind_rows"]))
    seconds = slowest["behind_seconds"]
    code = CRITICAL if seconds >= crit else WARNING if seconds >= warn else OK
    word = ("OK", "WARNING", "CRITICAL")[code]
    count = counted(len(peers), "peer")
    name = slowest["name"] or slowest["address"]
    return code, (
        f"{word}: {count}, the slowest ({name}) is {seconds:.1f} s "
        f"and {counted(slowest['behind_rows'], 'row')} behind"
    )


@command.command("health")
@to_options
@timeout_option
@click.option(
    "--warn-degraded",
    is_flag=True,
    help="Warn when it serves and something is amiss: for monitors, not for what restarts it.",
)
def health(url: str, token: str | None, timeout_s: float, warn_degraded: bool) -> int:
    """Check that a server can serve: positions known, log writable.

    One that is degraded serves: its upstream is away, or a block of its log cannot be read. That
    is said, and is a warning with --warn-degraded.

    \b
    Example:
      $ tcprepl check health
      OK: ready
    """
    try:
        found = Api(url, token, timeout_s=timeout_s).get("/health")
    except TcpreplError as error:
        click.echo(f"CRITICAL: {displayable(str(error))}")
        return CRITICAL
    if not (degraded := found.get("degraded")):
        click.echo("OK: ready")
        return OK
    said = few(degraded, most=_MOST_AMISS)
    word = "WARNING" if warn_degraded else "OK"
    click.echo(f"{word}: ready, but degraded: {displayable('; '.join(said))}")
    return WARNING if warn_degraded else OK
