"""``tcprepl watch``: follow who types or who is online, and print each change.

This is a worker in small: a `ReplicationClient`, and a follower that makes the writer's state
from the rows. It prints what the follower holds, not the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from msgspec import structs
from twisted.internet.defer import Deferred

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.cli import Group, logs
from tcprepl.cli.arguments import SECONDS, from_option
from tcprepl.cli.following import is_refusal, refused
from tcprepl.cli.formats import Format, output_options
from tcprepl.cli.output import write_as_is, write_out
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.ephemeral.follower import Follower
from tcprepl.ephemeral.presence_follower import PresenceFollower
from tcprepl.ephemeral.presence_states import is_blank
from tcprepl.ephemeral.typing_notifications import TypingFollower
from tcprepl.protocol.commands import Command, ErrorCommand
from tcprepl.protocol.display import displayable
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.streams.codec import Rows
from tcprepl.streams.rows import PresenceRow

#: Silence after which everything that a server had to say at first has been said.
SETTLE_S = 0.2


class Watch:
    """Prints what a follower holds, whenever it changes.

    While the follower catches up (at first, after a reconnect or a reset) it passes through
    states of the past. These are held back, and what came out of them is printed: a change
    is printed as such only when it happens before our eyes.

    Args:
        reactor: Time.
        only: The one room or user to print; None for all.
        count: End after this many lines.
        as_json: Print objects.
        in_form: Makes a line of the room or user and the object.
    """

    def __init__(
        self,
        reactor: Reactor,
        only: str | None,
        count: int | None,
        as_json: bool,
        in_form: Callable[[str, bytes], bytes] | None = None,
    ) -> None:
        self._in_form = in_form
        self.done: Deferred[None] = Deferred()
        self._reactor = reactor
        self._only = only
        self._left = count
        self._as_json = as_json
        #: Lines held back, by room or user: (text, fields, whether there is nothing to it).
        self._held: dict[str, tuple[str, dict[str, object], bool]] | None = {}
        self._rows_came = False
        self._timer: Any = None
        #: What was printed last, by room or user; nothing for those that are blank.
        self._shown: dict[str, str] = {}

    # -- what the follower says ------------------------------------------------------------

    def typing(self, room_id: str, users: Sequence[str]) -> None:
        """Hear who types in a room."""
        text = f"{room_id} {' '.join(users) or '-'}"
        self._changed(room_id, text, {"room_id": room_id, "user_ids": list(users)}, not users)

    def presence(self, _: PresenceRow, after: PresenceRow) -> None:
        """Hear the state of a user."""
        text = f"{after.user_id} {after.state}"
        if after.status_msg:
            text += f" ({after.status_msg})"
        self._changed(after.user_id, text, structs.asdict(after), is_blank(after))

    # -- what the client says --------------------------------------------------------------

    def hold(self, *_: object) -> None:
        """What comes now is of the past, until it is known to have been caught up with."""
        if self._held is None:
            self._held = {}
        self._rows_came = False
        self._wait()

    def rows(self) -> None:
        """Rows have come."""
        if self._held is not None:
            self._rows_came = True
            self._wait()

    def position(self, *_: object) -> None:
        """A position has come: after rows it ends the catching up."""
        if self._held is None:
            return
        if self._rows_came:
            self._release()
        else:
            self._wait()

    def end(self) -> None:
        """End, if that has not happened yet."""
        if not self.done.called:
            self.done.callback(None)

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _wait(self) -> None:
        self.close()
        self._timer = self._reactor.callLater(SETTLE_S, self._release)

    def _release(self) -> None:
        self.close()
        held, self._held = self._held or {}, None
        for key, line in held.items():
            self._changed(key, *line)

    def _changed(self, key: str, text: str, fields: dict[str, object], blank: bool) -> None:
        if self._only not in (None, key):
            return
        if self._held is not None:
            self._held.pop(key, None)
            self._held[key] = (text, fields, blank)
            return
        if text == self._shown.get(key) or (blank and key not in self._shown):
            return
        if blank:
            del self._shown[key]
        else:
            self._shown[key] = text
        if self._in_form is not None:
            self._print(self._in_form(key, json.dumps(fields).encode()))
        else:
            self._print((json.dumps(fields) if self._as_json else displayable(text)).encode())

    def _print(self, line: bytes) -> None:
        if self.done.called:
            return
        try:
            (write_out if self._in_form is None else write_as_is)(line + b"\n")
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

    async def main(reactor: Reactor) -> int:
        form: Format | None = options["row_format"]
        in_form = None if form is None else lambda k, row: form.line({"s": stream, "k": k}, row)
        watch = Watch(reactor, options["only"], options["count"], options["as_json"], in_form)
        follower = make_follower(watch)

        def handle(name: str, instance: str, token: int, rows: Rows) -> None:
            watch.rows()
            follower.handle_rows(name, instance, token, rows)

        def reset(name: str, instance: str, known: int | None, token: int) -> None:
            watch.hold()
            follower.on_reset(name, instance, known, token)

        def heard(said: Command) -> None:
            if watch.done.called or not isinstance(said, ErrorCommand):
                return
            if is_refusal(said, token_taken=client.token_taken):
                watch.done.errback(refused(address, said.text))

        client = ReplicationClient(
            reactor,
            client_endpoint(reactor, address),
            [stream],
            handle,
            name="tcprepl-watch",
            server_name=address.server_name,
            token=address.token,
            since="start",
            on_reset=reset,
            on_position=watch.position,
            on_connected=watch.hold,
            on_command=heard,
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
            watch.close()
        return 0

    return run_until_done(main)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Log more about the connection."),
        output_options("change", "srkST"),
        click.option("--for", "for_s", type=SECONDS, help="End after this many seconds."),
        click.option("--count", type=click.IntRange(min=1), help="End after this many lines."),
        from_option,
    ):
        function = option(function)
    return function


@click.group("watch", cls=Group)
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
