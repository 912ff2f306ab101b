"""Our own streams on the channels of Redis, for Synapse's workers (protocol.md section 15.4).

To the hub, Redis is one more reader: at the head it gets the bytes that all others get, and
when its socket is full it falls behind and is served from the log. Here each line becomes
the payload of a PUBLISH. Redis keeps nothing for those who are away, so each time the link
comes up, and each time somebody publishes REPLICATE, our positions are said anew, after the
rows before them and before the rows after them; who finds that it missed some asks over HTTP.
"""

from __future__ import annotations

from typing import Any, Final, cast

from twisted.internet.interfaces import IStreamClientEndpoint

from tcprepl import metrics
from tcprepl.clocks import Reactor
from tcprepl.errors import LocalProtocolError, ProtocolError
from tcprepl.ids import InstanceName, ServerName, StreamName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    LockReleasedCommand,
    PositionCommand,
    RemoteServerUpCommand,
    ReplicateCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.parsing import parse_line, word_of
from tcprepl.protocol.serializing import serialize
from tcprepl.replication.redis.link import RedisLink
from tcprepl.replication.redis.resp import encode_publish
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.readers import Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.replication.status import LinkStatus
from tcprepl.replication.transport import Outlet
from tcprepl.streams.releases import Release, assumed_streams, streams_of

log = get_logger(__name__)

#: Shortest time between two announcements of all positions: many REPLICATEs get one.
ANNOUNCE_INTERVAL_S: Final = 0.25

_REDIS: Final = DIALECTS["redis"]
_RDATA: Final = b"RDATA "
_POSITION: Final = b"POSITION "
_AT_NOTHING: Final = b" 0 0"


class PublishOutlet:
    """Turns the hub's lines into PUBLISH commands.

    A stream that nothing was ever written to is not mentioned before its first row: whoever
    follows other writers of it would ask us for what we do not have.

    Attributes:
        rows: Rows published.
    """

    def __init__(self, link: RedisLink, outlet: Outlet) -> None:
        self.rows = 0
        self._link = link
        self._outlet = outlet
        self._unsaid: dict[bytes, bytes] = {}

    @property
    def busy(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._outlet.busy

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the socket."""
        return self._outlet.buffered_bytes

    def write(self, chunk: bytes) -> bool:
        """Publish each line of *chunk*; return whether the socket takes more."""
        lines = chunk.split(b"\n")
        lines.pop()
        self.rows += len(lines) - chunk.count(b"\n" + _POSITION) - chunk.startswith(_POSITION)
        if self._unsaid or _AT_NOTHING in chunk:
            lines = self._without_nothing(lines)
        if not lines:
            return True
        self._link.expect(lines[-1])
        return self._outlet.write(encode_publish(self._link.channel, lines))

    def abort(self) -> None:
        """End the connection at once."""
        self._outlet.abort()

    def _without_nothing(self, lines: list[bytes]) -> list[bytes]:
        said: list[bytes] = []
        for line in lines:
            word, stream, instance, _ = line.split(b" ", 3)
            pair = b"%b %b" % (stream, instance)
            if line.startswith(_POSITION) and line.endswith(_AT_NOTHING):
                self._unsaid[pair] = line
                continue
            first = self._unsaid.pop(pair, None)
            if first is not None and word == _RDATA[:-1]:
                said.append(first)
            said.append(line)
        return said


class RedisPeer:
    """Everybody behind Redis, as handlers of commands see them."""

    conn_id = 0
    dialect = "redis"
    name = ""

    def __init__(self, address: str) -> None:
        self.address = address

    def __repr__(self) -> str:
        return f"<RedisPeer {self.address}>"


class RedisWriter:
    """Publishes the streams of our instance, and hears what the workers say.

    Args:
        reactor: The reactor.
        endpoint: Where Redis is.
        name: What to call it in the status.
        server: Whose hub is published, and whose handlers hear commands.
        server_name: The homeserver, which is the name of the channel.
        instance: Our own instance.
        release: The release of Synapse that all who listen have; None: any since 1.33. They
            are told of its streams and of no others.
        user: For AUTH.
        password: For AUTH.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        name: str,
        server: ReplicationServer,
        *,
        server_name: ServerName,
        instance: InstanceName,
        release: Release | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._streams = sorted(assumed_streams("redis") if release is None else streams_of(release))
        self._name = name
        self._server = server
        self._hub: Hub = server.hub
        self._instance = instance
        self._peer: Any = RedisPeer(name)
        self._reader: Reader | None = None
        self._outlet: PublishOutlet | None = None
        self._form = WireForm.of(_REDIS, words=False)
        self._published = 0
        self._announce_call: Any = None
        self._announced_at = float("-inf")
        self.link = RedisLink(
            reactor,
            endpoint,
            server_name,
            on_lines=self._heard,
            on_up=self._up,
            on_down=self._down,
            on_drained=self._drained,
            to_others=True,
            user=user,
            password=password,
        )
        server.on(RemoteServerUpCommand, self._server_up)
        server.links.append(self.status)

    def unpublished(self, stream: StreamName, instance: InstanceName) -> str | None:
        """Return why rows of *instance* in *stream* do not go to Redis; None when they do."""
        if instance != self._instance:
            return (
                f"not published over Redis: only rows of {self._instance} are, as Synapse takes "
                "the tokens of all writers of a stream for one sequence"
            )
        if stream not in self._streams:
            return (
                f"not published over Redis: not every Synapse has {stream}, and one that has not "
                "gives up its connection when it hears of it (redis.synapse says which is there)"
            )
        return None

    def start(self) -> None:
        """Connect, and stay connected."""
        self.link.start()

    async def stop(self) -> None:
        """Publish what is pending and disconnect."""
        self._hub.flush()
        await self.link.stop()

    # -- the link ----------------------------------------------------------------------

    def _up(self) -> None:
        outlet = self.link.outlet
        assert outlet is not None
        self._outlet = PublishOutlet(self.link, outlet)
        self._reader = Reader(cast("Outlet", self._outlet), f"redis {self._name}")
        self._announced_at = float("-inf")
        self._announce()

    def _down(self, reason: str) -> None:
        if self._reader is not None:
            self._hub.unsubscribe(self._reader)
        if self._outlet is not None:
            self._published += self._outlet.rows
        self._reader = self._outlet = None
        if self._announce_call is not None:
            self._announce_call.cancel()
            self._announce_call = None

    def _drained(self) -> None:
        if self._reader is not None:
            self._hub.drained(self._reader)

    def _announce(self) -> None:
        """Say every position of ours: pending rows first, so that the order is right."""
        self._announce_call = None
        if self._reader is not None:
            self._announced_at = self._reactor.seconds()
            for stream in self._streams:
                self._hub.subscribe(self._reader, self._form, (stream, self._instance), None)
            self._hub.serve(self._reader)

    # -- what is heard -----------------------------------------------------------------

    def _heard(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if payload.startswith((_RDATA, _POSITION)):
                continue  # ours, or of another writer, whose reader we are not
            if self.link.is_echo(payload):
                continue
            try:
                command = parse_line(payload.rstrip(b"\r\n"), _REDIS)
            except ProtocolError as error:
                metrics.DROPPED.labels("line", "unreadable").inc()
                log.warning("redis.line.unreadable", word=word_of(payload), reason=str(error))
                continue
            self._take(command)

    def _take(self, command: Command) -> None:
        if isinstance(command, ReplicateCommand):
            if self._announce_call is None:
                wait = self._announced_at + ANNOUNCE_INTERVAL_S - self._reactor.seconds()
                self._announce_call = self._reactor.callLater(max(0.0, wait), self._announce)
        elif isinstance(command, LockReleasedCommand) and command.instance == self._instance:
            return
        elif not isinstance(command, PositionCommand):
            self._server.dispatch(command, self._peer)

    # -- what else is said -------------------------------------------------------------

    def send(self, command: Command) -> bool:
        """Publish *command*; return whether Redis was there to take it."""
        try:
            line = serialize(command, _REDIS)[:-1]
        except LocalProtocolError as error:
            log.info("redis.command.dropped", command=command.NAME, reason=str(error))
            return False
        if self.link.publish([line]):
            return True
        metrics.DROPPED.labels("command", "not_connected").inc()
        log.info("redis.command.dropped", command=command.NAME)
        return False

    def _server_up(self, command: RemoteServerUpCommand, peer: Any) -> None:
        """Pass on what a peer of ours noticed; what came from Redis stays there."""
        if peer is not self._peer:
            self.send(command)

    def status(self) -> LinkStatus:
        """Return how it goes."""
        rows = self._published + (self._outlet.rows if self._outlet is not None else 0)
        return LinkStatus(
            name=self._name,
            kind="redis",
            up=self.link.up,
            seconds=self._reactor.seconds() - self.link.changed_at,
            reason=self.link.last_error,
            reconnects=self.link.reconnects,
            rows=rows,
        )
