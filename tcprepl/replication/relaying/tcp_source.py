"""An upstream that speaks the line protocol over TCP: tcprepl, or Synapse up to 1.66."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from tcprepl.clocks import Reactor
from tcprepl.ids import InstanceName, Pair, ServerName, StreamName, Token
from tcprepl.protocol.commands import Command, ErrorCommand, ServerCommand
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.connection import Token as AccessToken
from tcprepl.replication.relaying.intake import LogPositions, RelayCatchUp, RelayIntake
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.codec import Rows
from tcprepl.streams.registry import Registry


class TcpUpstream:
    """Follows every stream of a server and hands all of it to an `RelayIntake`.

    Args:
        reactor: The reactor.
        endpoint: Where the server is.
        name: What to call it in the status.
        intake: Where rows go.
        registry: The streams.
        server_name: The homeserver that it has to be.
        dialect: ``auto``, or what it speaks.
        catch_up: Where missed rows are fetched if it cannot resume.
        on_command: Called with every other command that comes down.
        passive: Never send a command of our readers up.
        token: What it asks for.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        name: str,
        intake: RelayIntake,
        registry: Registry,
        *,
        server_name: ServerName,
        dialect: str = "auto",
        catch_up: CatchUp | None = None,
        on_command: Callable[[Command], object] | None = None,
        passive: bool = False,
        token: AccessToken | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._intake = intake
        self._on_command = on_command
        self._passive = passive
        self._up_since: float = reactor.seconds()
        # Rows of 2017 before their POSITION: they come in any order, and the log wants theirs.
        self._unordered: dict[Pair, list[tuple[Token, bytes]]] = {}
        self._client = ReplicationClient(
            reactor,
            endpoint,
            None,
            self._rows,
            positions=LogPositions(intake),
            name="tcprepl-relay",
            server_name=server_name,
            token=token,
            since="start",
            on_reset=intake.reset,
            on_position=self._position,
            on_command=self._command,
            on_connected=self._connected,
            dialect=dialect,
            catch_up=None if catch_up is None else RelayCatchUp(intake, catch_up),
            registry=registry,
            passed_over=intake.passed_over,
        )

    def start(self) -> None:
        """Connect, and stay connected."""
        self._client.startService()

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.stopService()

    def send(self, command: Command) -> bool:
        """Send *command* up; return whether it left."""
        return not self._passive and self._client.send(command)

    def status(self) -> LinkStatus:
        """Return how it goes."""
        up = self._client.connected
        since = self._up_since if up else self._client.away_since
        return LinkStatus(
            name=self._name,
            kind="upstream",
            up=up,
            seconds=self._reactor.seconds() - since,
            reason=self._client.last_error,
            reconnects=self._client.reconnects,
            rows=self._intake.rows_taken,
            idle_seconds=self._intake.idle_seconds(),
            **self._intake.gap_status(),
        )

    def _connected(self, client: ReplicationClient) -> None:
        self._unordered.clear()
        self._intake.incarnation = client.incarnation
        self._up_since = self._reactor.seconds()

    def _rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: Rows
    ) -> Deferred[None] | None:
        if (stream, instance) in self._client.catching_up:
            held = self._unordered.setdefault((stream, instance), [])
            held += [(token, row) for row in rows.raw]
            return None
        return self._intake.rows(stream, instance, token, rows)

    async def _position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        pair = (stream, instance)
        held = self._unordered.get(pair, [])
        held.sort(key=_token)
        taken = 0
        try:
            for own, group in groupby(held, key=_token):
                rows = [row for _, row in group]
                waiting = self._intake.take(pair, own, rows)
                if waiting is not None:
                    await waiting
                taken += len(rows)
            self._intake.position(stream, instance, token)
        finally:
            del held[:taken]  # what the disk has refused comes again with the position
        self._unordered.pop(pair, None)

    def _command(self, command: Command) -> None:
        of_the_connection = isinstance(command, ErrorCommand | ServerCommand)
        if self._on_command is not None and not of_the_connection:
            self._on_command(command)


def _token(one: tuple[Token, bytes]) -> Token:
    return one[0]
