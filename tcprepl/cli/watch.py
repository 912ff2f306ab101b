"""``tcprepl watch``: follow who types or who is online, and print each change.

This is a worker in small: a `ReplicationClient`, and a follower that makes the writer's state
from the rows. It prints what the follower holds, not the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec
from twisted.internet.defer import Deferred

from tcprepl.cli import logs
from tcprepl.cli.arguments import SECONDS, from_option
from tcprepl.cli.following import client_endpoint
from tcprepl.cli.output import write_out
from tcprepl.cli.running import run_until_done
from tcprepl.config import Address
from tcprepl.ephemeral.follower import Follower
from tcprepl.ephemeral.presence import PresenceFollower
from tcprepl.ephemeral.typing_notifications import TypingFollower
from tcprepl.replication.client import ReplicationClient
from tcprepl.streams.rows import PresenceRow


class Watch:
    """Prints the lines it is given, up to a number of them.

    Args:
        only: The one room or user to print; None for all.
        count: End after this many lines.
        as_json: Print objects.
    """

    def __init__(self, only: str | None, count: int | None, as_json: bool) -> None:
        self.done: Deferred[None] = Deferred()
        self._only = only
        self._left = count
        self._as_json = as_json

    def typing(self, room_id: str, users: Sequence[str]) -> None:
        """Print who types in a room."""
        text = f"{room_id} {' '.join(users) or '-'}"
        self._print(room_id, text, {"room_id": room_id, "user_ids": list(users)})

    def presence(self, _: PresenceRow, after: PresenceRow) -> None:
        """Print the state of a user."""
        text = f"{after.user_id} {after.state}"
        if after.status_msg:
            # A message may hold line ends and terminal sequences: it is shown, not obeyed.
            text += f" ({json.dumps(after.status_msg, ensure_ascii=False)[1:-1]})"
        fields = {name: getattr(after, name) for name in type(after).__struct_fields__}
        self._print(after.user_id, text, fields)

    def end(self) -> None:
        """End, if that has not happened yet."""
        if not self.done.called:
            self.done.callback(None)

    def _print(self, key: str, text: str, fields: dict[str, object]) -> None:
        if self.done.called or self._only not in (None, key):
            return
        line = msgspec.json.encode(fields) if self._as_json else text.encode()
        try:
            write_out(line + b"\n")
        except OSError as error:
            self.done.errback(error)
            return
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.end()


def _watch(
    stream: str,
    make_follower: Callable[[Watch], Follower[Any]],
    options: dict[str, Any],
) -> int:
    logs.configure("debug" if options["verbose"] else "info")
    address: Address = options["source"]

    async def main(reactor: Any) -> int:
        watch = Watch(options["only"], options["count"], options["as_json"])
        follower = make_follower(watch)
        client = ReplicationClient(
            reactor,
            client_endpoint(reactor, address),
            [stream],
            follower.handle_rows,
            name="tcprepl-watch",
            since="start",
            on_reset=follower.on_reset,
        )
        timer = None
        if options["for_s"] is not None:
            timer = reactor.callLater(options["for_s"], watch.end)
        client.startService()
        try:
            await watch.done
        finally:
            if timer is not None and timer.active():
                timer.cancel()
            await client.stopService()
        return 0

    return run_until_done(main)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Log more about the connection."),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each."),
        click.option("--for", "for_s", type=SECONDS, help="End after this many seconds."),
        click.option("--count", type=click.IntRange(min=1), help="End after this many lines."),
        from_option,
    ):
        function = option(function)
    return function


@click.group("watch")
def command() -> None:
    """Follow the state that a stream makes up, and print each change of it.

    What holds at the moment is printed first. A connection that is lost is made again; if
    the server was restarted in the meantime, what it no longer says is printed as gone.

    \b
    Example:
      $ tcprepl watch typing
      !room:example.com @alice:example.com @bob:example.com
      !room:example.com @bob:example.com
      !room:example.com -
    """


@command.command("typing")
@click.argument("only", metavar="[ROOM]", required=False)
@_options
def watch_typing(**options: Any) -> int:
    """Print who types in ROOM, or in every room: the users, or a dash for nobody.

    \b
    Example:
      $ tcprepl watch typing '!room:example.com' --count 1
      !room:example.com @alice:example.com
    """
    return _watch("typing", lambda watch: TypingFollower(watch.typing), options)


@command.command("presence")
@click.argument("only", metavar="[USER]", required=False)
@_options
def watch_presence(**options: Any) -> int:
    """Print the presence of USER, or of everybody: the state, and the message in brackets.

    \b
    Example:
      $ tcprepl watch presence --count 1
      @alice:example.com online (back at last)
    """
    return _watch("presence", lambda watch: PresenceFollower(watch.presence), options)
