"""``tcprepl presence``: say that a user is there, or is not."""

from __future__ import annotations

import json
from urllib.parse import quote

import click

from tcprepl.cli import Group
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import to_options

#: What a user may be. The server has the last word; these are what it takes.
STATES = ("online", "unavailable", "offline", "busy")


@click.group("presence", cls=Group)
def command() -> None:
    """Say that a user of the server is there, or is not.

    \b
    Example:
      $ tcprepl watch presence &
      $ tcprepl presence set @alice:example.com online --status-msg 'back at last'
      @alice:example.com online (back at last)
    """


@command.command("set")
@click.argument("user")
@click.argument("state", type=click.Choice(STATES))
@click.option("--status-msg", help="A text to show with it; without it there is none.")
@to_options
def set_state(user: str, state: str, status_msg: str | None, url: str, token: str | None) -> None:
    """Set the presence of USER to STATE.

    A user who is not heard of again is taken to be offline half a minute later.

    \b
    Example:
      $ tcprepl presence set @alice:example.com unavailable
    """
    body: dict[str, object] = {"presence": state}
    if status_msg is not None:
        body["status_msg"] = status_msg
    path = f"/_matrix/client/v3/presence/{quote(user, safe='')}/status"
    Api(url, token).request("PUT", path, {"user_id": user}, json.dumps(body).encode())
