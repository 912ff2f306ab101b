"""``tcprepl fed``: look at what waits for other servers, and do something about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tcprepl.app.sender import NAME_FILE
from tcprepl.cli import Group
from tcprepl.cli.federation_sender import DEFAULT_DATA
from tcprepl.clocks import steady_seconds
from tcprepl.errors import ConfigError
from tcprepl.federation.sending import control
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.outbox_file import OUTBOX_FILE
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.failures import NotReached
from tcprepl.protocol.display import displayable, printable

_DATA = click.Path(path_type=Path, file_okay=False)


@click.group("fed", cls=Group)
@click.option(
    "--data",
    type=_DATA,
    default=DEFAULT_DATA,
    envvar="TCPREPL_SENDER_DATA",
    show_default=True,
    show_envvar=True,
    help="The data directory of the federation sender.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, data: Path, as_json: bool) -> None:
    """Show what waits for other servers, why, and until when; retry, pause, drop or purge it.

    Works on the running sender, or on its outbox when none runs.

    \b
    Example:
      $ tcprepl fed ls
      DESTINATION   STATE    EDUS  OLDEST  NEXT TRY  WHY
      example.org   waiting    12    4m 2s      51s  3 tries failed: HTTP 502
      $ tcprepl fed retry example.org
      example.org: tried now
    """
    context.obj = data, as_json


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Let a subcommand take ``--data`` and ``--json``, too: people write them at either place."""

    @click.option(
        "--data",
        "own_data",
        type=_DATA,
        metavar="DIRECTORY",
        help="As before the command.",
    )
    @click.option("--json", "own_json", is_flag=True, help="Print JSON.")
    @click.pass_obj
    def wrapped(
        options: tuple[Path, bool],
        /,
        own_data: Path | None,
        own_json: bool,
        **arguments: Any,
    ) -> None:
        data, as_json = options
        function(own_data or data, as_json or own_json, **arguments)

    wrapped.__doc__ = function.__doc__
    return wrapped


@command.command("ls")
@_with_options
def ls(data: Path, as_json: bool) -> None:
    """List the destinations for which something waits, the oldest first."""
    found = ask(data, "ls")
    if as_json:
        click.echo(json.dumps(found))
        return
    if not found:
        click.echo("nothing waits")
        return
    now_ms = time.time() * 1000
    rows = [("DESTINATION", "STATE", "EDUS", "OLDEST", "NEXT TRY", "WHY")]
    for line in found:
        next_ms = line["next_try_ms"]
        rows.append(
            (
                line["destination"],
                line["state"],
                str(line["queued_edus"]),
                age(line["oldest_seconds"]) if line["queued_edus"] else "-",
                age((next_ms - now_ms) / 1000) if next_ms else "-",
                line["why"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        left = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
        middle = "  ".join(f"{row[n]:>{widths[n]}}" for n in (2, 3, 4))
        click.echo(displayable(f"{left}  {middle}  {row[5]}"))


@command.command("show")
@click.argument("destination")
@_with_options
def show(data: Path, as_json: bool, destination: str) -> None:
    """Show everything that is known of one destination."""
    found = ask(data, "show", destination)
    if as_json:
        click.echo(json.dumps(found))
        return
    quarantined = found.pop("quarantined", [])
    width = max(map(len, found))
    for name, value in found.items():
        words = name.removesuffix("_ms").replace("_", " ")
        click.echo(f"{words:<{width}}  {_text(name, value)}")
    if quarantined:
        click.echo("\nIn quarantine, because the destination refused each of them:")
    for edu in quarantined:
        when = _text("refused_ms", edu["refused_ms"])
        click.echo(f"  {edu['id']}  {edu['edu_type']}  {when}  {printable(edu['reason'] or '-')}")


def _text(name: str, value: Any) -> str:
    """Return a value of ``show`` for people."""
    if value in (None, "", {}):
        return "-"
    if name.endswith("_ms"):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value / 1000))
    if isinstance(value, dict):
        return ", ".join(f"{lane} {count}" for lane, count in value.items())
    return printable(str(value))


def _handle(name: str, summary: str, answer: str) -> None:
    """Add the subcommand *name*, which does one thing to one destination."""

    @command.command(name, help=summary)
    @click.argument("destination")
    @_with_options
    def handle(data: Path, as_json: bool, destination: str) -> None:
        found = ask(data, name, destination)
        click.echo(json.dumps(found) if as_json else f"{destination}: {answer.format(**found)}")


@command.command("retry")
@click.argument("destination")
@click.option(
    "--quarantined",
    is_flag=True,
    help="Also with the EDUs that it refused and that are in quarantine.",
)
@click.option("--parked", is_flag=True, hidden=True)
@_with_options
def retry(data: Path, as_json: bool, destination: str, quarantined: bool, parked: bool) -> None:
    """Try a destination now."""
    quarantined = quarantined or parked  # what it was called once
    found = ask(data, "retry-quarantined" if quarantined else "retry", destination)
    text = f"{destination}: tried now ({found['taken_up_again']} taken up again)"
    click.echo(json.dumps(found) if as_json else text)


_handle(
    "drop",
    "Throw away the EDUs that a destination refused and that are in quarantine.",
    "dropped from quarantine: {dropped}",
)
_handle("pause", "Send nothing to a destination; what waits is kept.", "paused")
_handle("resume", "Send to a destination again.", "resumed")
_handle(
    "purge",
    "Throw away everything that waits for a destination.",
    "purged; EDUs thrown away: {purged}",
)
_handle(
    "forget-discovery",
    "Forget where a destination is, and look for it again.",
    "forgotten: {forgotten}",
)


def age(seconds: float) -> str:
    """Return a length of time for people, in its two largest units."""
    left = max(0, round(seconds))
    words: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or words or unit == "s":
            words.append(f"{count}{unit}")
    return " ".join(words[:2])


class _NoTransport:
    """Stands for the transport where nothing is sent."""

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        """Send nothing."""
        raise NotReached("no sender is running")


class _Stopped:
    """A clock for a sender that does not run: it tells the time, and calls nothing."""

    def seconds(self) -> float:
        """Return the time of day."""
        return steady_seconds()

    def callLater(self, delay: float, call: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Call nothing."""
        raise AssertionError("nothing is sent")


def ask(data: Path, operation: str, destination: str | None = None) -> Any:
    """Ask the sender that runs on *data*, or do it on its outbox if none runs.

    Raises:
        ConfigError: There is no outbox.
        FederationError: It cannot be done.
    """
    try:
        return control.ask(data, operation, destination)
    except ConnectionRefusedError:
        pass
    path = data / OUTBOX_FILE
    if not path.exists():
        raise ConfigError(
            f"--data {data}: no federation sender has run there; or its outbox is in a database, "
            "and it does not run now, or waits as a standby: ask the one that sends"
        )
    named = data / NAME_FILE
    outbox = Outbox(path, run_inline)
    try:
        server_name = named.read_text().strip() if named.exists() else "localhost"
        clock: Any = _Stopped()
        sender = FederationSender(clock, outbox, _NoTransport(), server_name)
        sender.take_up()
        return control.ask_offline(control.Handles(sender), operation, destination)
    finally:
        _ = outbox.close()
