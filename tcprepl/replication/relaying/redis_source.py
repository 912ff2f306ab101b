"""An upstream that speaks over Redis: every Synapse since 1.67 (protocol.md section 15.4).

What is said there is read by `tcprepl.replication.relaying.lines`; here is the link, and what
goes the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IStreamClientEndpoint

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import LocalProtocolError, ProtocolError
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import Command, ReplicateCommand, UserIpCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import serialize
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.redis.link import RedisLink
from tcprepl.replication.relaying.intake import RelayIntake
from tcprepl.replication.relaying.lines import Followers, LineReader
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.registry import Registry

log = get_logger(__name__)

#: Commands of our readers that are kept for Redis while it is away.
MAX_UNSENT: Final = 1_000
#: The channel that carries USER_IP, after the name of the server.
USER_IP_CHANNEL: Final = "USER_IP"

_REDIS: Final = DIALECTS["redis"]


class RedisUpstream:
    """Follows every stream on a Redis channel and hands all of it to a `RelayIntake`.

    Args:
        reactor: The reactor.
        endpoint: Where Redis is.
        name: What to call it in the status.
        intake: Where rows go.
        registry: The streams.
        server_name: The homeserver, which is the name of the channel.
        user: For AUTH.
        password: For AUTH.
        catch_up: Where missed rows are fetched.
        on_command: Called with every other command that is heard.
        passive: Never publish anything, not even REPLICATE: positions are then compared
            only when their writers say them.
        user_ip: Hear USER_IP as well: it is counted, and not passed on.
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
        user: str | None = None,
        password: str | None = None,
        catch_up: CatchUp | None = None,
        on_command: Callable[[Command], object] | None = None,
        passive: bool = False,
        user_ip: bool = False,
    ) -> None:
        self.reactor = reactor
        self._name = name
        self._intake = intake
        self._on_command = on_command
        self._passive = passive
        self._user_ip = user_ip
        self._unsent: list[bytes] = []
        self._bad_lines = 0
        self.link = RedisLink(
            reactor,
            endpoint,
            server_name,
            on_lines=self._heard,
            on_up=self._up,
            on_down=self._down,
            also=[f"{server_name}/{USER_IP_CHANNEL}"] if user_ip else [],
            publishes=not passive,
            user=user,
            password=password,
        )
        self._followers = Followers(reactor, intake, registry, catch_up, self.link.resume)
        self._lines = LineReader(self._followers, self._other)

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and stay connected."""
        self._followers.start()
        self.link.start()

    async def stop(self) -> None:
        """Disconnect, and let what is under way end."""
        await self.link.stop()
        await self._followers.stop()

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read."""
        return self._bad_lines + self._lines.bad_lines

    def _up(self) -> None:
        self._bad_lines += self._lines.bad_lines
        self._lines = LineReader(self._followers, self._other, was_away=self._intake.follow())
        if not self._passive:
            unsent, self._unsent = self._unsent, []
            self.link.publish([serialize(ReplicateCommand(), _REDIS)[:-1], *unsent])

    def _down(self, reason: str) -> None:
        dropped = self._lines.held_rows
        if dropped:
            log.warning("redis.batch.cut_off", rows=dropped, reason=reason)

    # -- up ----------------------------------------------------------------------------

    def send(self, command: Command) -> bool:
        """Publish *command*; while Redis is away it is kept for its return."""
        if self._passive:
            return False
        try:
            line = serialize(command, _REDIS)[:-1]
        except LocalProtocolError as error:
            metrics.DROPPED.labels("command", "not_in_dialect").inc()
            log.info("redis.command.dropped", command=command.NAME, reason=str(error))
            return False
        if self.link.up:
            self.link.publish([line])
        elif len(self._unsent) < MAX_UNSENT:
            self._unsent.append(line)
        else:
            metrics.DROPPED.labels("command", "not_connected").inc()
            return False
        return True

    # -- down --------------------------------------------------------------------------

    def _heard(self, payloads: list[bytes]) -> None:
        """Work through what one read brought, in order."""
        self._lines.take(payloads)
        if self._followers.full:
            self.link.pause()

    def _other(self, line: bytes) -> None:
        """Deal with a line that is neither a row nor a position."""
        if self.link.is_echo(line):
            return
        try:
            command = parse_line(line, _REDIS)
        except ProtocolError as error:
            self._lines.bad(line, str(error))
            return
        if isinstance(command, UserIpCommand):
            # It carries an access token: it is counted if that was asked for, and goes nowhere.
            if self._user_ip:
                metrics.USER_IP_CACHE.inc()
        elif self._on_command is not None and not isinstance(command, ReplicateCommand):
            run_in_background(self._on_command, command)

    def status(self) -> LinkStatus:
        """Return how it goes."""
        return LinkStatus(
            name=self._name,
            kind="upstream",
            up=self.link.up,
            seconds=self.reactor.seconds() - self.link.changed_at,
            reason=self.link.last_error,
            reconnects=self.link.reconnects,
            rows=self._intake.rows_taken,
            idle_seconds=self._intake.idle_seconds(),
            **self._intake.gap_status(),
        )
