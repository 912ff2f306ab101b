"""``tcprepl typing``: say that a user types, or has stopped."""

from __future__ import annotations

import json
from urllib.parse import quote

import click

from tcprepl.cli import Group
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import to_options


@click.group("typing", cls=Group)
def command() -> None:
    """Say that a user of the server types in a room, or has stopped.

    The server tells everybody who follows its typing stream, and the other servers in the
    room.

    \b
    Example:
      $ tcprepl watch typing &
      $ tcprepl typing start '!room:example.com' @alice:example.com --timeout 10000
      !room:example.com @alice:example.com
    """


@command.command("start")
@click.argument("room")
@click.argument("user")
@click.option(
    "--timeout",
    "timeout_ms",
    type=click.IntRange(min=0),
    default=30_000,
    show_default=True,
    metavar="MS",
    help="For how long, in milliseconds; the server allows two minutes.",
)
@to_options
def start(room: str, user: str, timeout_ms: int, url: str, token: str | None) -> None:
    """Say that USER types in ROOM.

    \b
    Example:
      $ tcprepl typing start '!room:example.com' @alice:example.com
    """
    _put(url, token, room, user, {"typing": True, "timeout": timeout_ms})


@command.command("stop")
@click.argument("room")
@click.argument("user")
@to_options
def stop(room: str, user: str, url: str, token: str | None) -> None:
    """Say that USER has stopped typing in ROOM.

    \b
    Example:
      $ tcprepl typing stop '!room:example.com' @alice:example.com
    """
    _put(url, token, room, user, {"typing": False})


def _put(url: str, token: str | None, room: str, user: str, body: dict[str, object]) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(room, safe='')}/typing/{quote(user, safe='')}"
    Api(url, token).request("PUT", path, {"user_id": user}, json.dumps(body).encode())
