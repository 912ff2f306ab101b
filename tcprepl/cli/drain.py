"""``tcprepl drain``: let everybody go who has everything, and end a server."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec

from tcprepl.cli.api import Api, ApiFailed
from tcprepl.cli.arguments import DurationType, token_options, url_option
from tcprepl.errors import TcpreplError
from tcprepl.limits import DRAIN_WITHIN_S, MAX_DRAIN_WITHIN_S
from tcprepl.protocol.display import displayable


def _one_word(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value != displayable(value) or len(value.split()) > 1:
        raise click.BadParameter(f"{value!r} is no address: expected one word", ctx, param)
    return value


@click.command("drain")
@url_option("--to", "The server to drain")
@token_options
@click.option(
    "--elsewhere",
    metavar="ADDR",
    default="",
    callback=_one_word,
    help="Where peers are told to go: an address, as they can use it.",
)
@click.option(
    "--within",
    type=DurationType(upto=MAX_DRAIN_WITHIN_S),
    default=DRAIN_WITHIN_S,
    show_default=True,
    help="How long peers have; 0: who does not have everything is closed at once.",
)
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each look.")
def command(
    url: str, token: str | None, elsewhere: str, within: float, no_wait: bool, as_json: bool
) -> int:
    """Take no new connections and no rows, let everybody go who has everything, and end a server.

    What was taken is on disk and answered. Each reader is closed once it has every row, and told
    where to go by --elsewhere; federation senders once they have acknowledged. Those that
    federation.senders names are waited for even if they are away. After --within the rest is
    closed, and resumes elsewhere. The process then ends with exit code 0, and the systemd
    units of `tcprepl files` do not start it again. Where a .socket unit holds the ports, stop that
    first.

    The exit code is 1 if somebody was closed without everything, or a federation sender has not
    acknowledged everything.

    \b
    Example:
      $ tcprepl drain --elsewhere repl2.example.com:9092
      drained: everybody has everything
    """
    api = Api(url, token)
    body = json.dumps({"within_seconds": within, "to": elsewhere}).encode()
    state: dict[str, Any] = {}
    while not state.get("over"):
        try:
            found = api.request("POST", "/_tcprepl/v1/drain", body=body)
        except ApiFailed as error:
            if not state or error.status is not None:
                raise
            raise TcpreplError(
                "the server ended before it said that it was drained; the last was: "
                f"{_words(state)}"
            ) from None
        state = found
        if as_json:
            click.echo(json.dumps(state))
        elif no_wait or not state["over"]:
            click.echo(_words(state), err=not no_wait)
        if no_wait:
            return 0
    if state["unserved"] or state.get("senders"):
        raise TcpreplError(_words(state))
    if not as_json:
        click.echo(_words(state))
    return 0


def _words(state: dict[str, Any]) -> str:
    """Return how far it is, in words."""
    from tcprepl.replication.serving.draining import DrainState  # and Twisted

    return displayable(msgspec.convert(state, DrainState).words)
