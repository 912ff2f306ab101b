"""What a server tells of itself: streams, peers, lag (protocol.md sections 6 and 10).

One snapshot serves the STATUS command, the HTTP status page and the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tcprepl import metrics
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.protocol.display import counted, displayable
from tcprepl.streams.holding import DatabaseStatus


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One (stream, instance): its position and what of it is held.

    Attributes:
        stream: Name of the stream.
        instance: Name of the writing instance.
        position: Newest published token.
        floor: Oldest token that can be resumed from.
        rows: Rows published since the server started.
        bytes: Bytes of lines published since the server started.
    """

    stream: StreamName
    instance: InstanceName
    position: Token
    floor: Token
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What a process of the homeserver did on a bus since that started, by its name.

    Attributes:
        rows_in: Rows that it published.
        rows_out: Rows that were written to it.
        reconnects: How often it subscribed again.
        replays: How often it was given what it missed.
        cache_hits: Keys that it asked the cache for, and that were there.
        cache_misses: Keys that were not.
    """

    rows_in: int
    rows_out: int
    reconnects: int
    replays: int
    cache_hits: int
    cache_misses: int

    @property
    def cache(self) -> str:
        """How often the cache had what was asked for, in words."""
        asked = self.cache_hits + self.cache_misses
        return f"{self.cache_hits} of {asked}"


def process_status(counts: Mapping[str, int], rows_out: int) -> ProcessStatus:
    """Return the status of a process.

    Args:
        counts: What was counted, by the names of the fields; and how often it ``subscribed``.
        rows_out: Rows written on connections that are still there, which are not counted yet.
    """
    return ProcessStatus(
        rows_in=counts.get("rows_in", 0),
        rows_out=counts.get("rows_out", 0) + rows_out,
        reconnects=max(0, counts.get("subscribed", 0) - 1),
        replays=counts.get("replays", 0),
        cache_hits=counts.get("cache_hits", 0),
        cache_misses=counts.get("cache_misses", 0),
    )


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One connection.

    Attributes:
        conn_id: Its number, counted from 1 since the server started.
        name: What NAME said; empty when it was not sent.
        address: Where it comes from.
        dialect: The dialect it speaks.
        state: ``new``, ``head`` (it has everything), ``behind`` or ``closing``.
        behind_rows: Rows not yet written to it (a lower bound for what predates the server).
        behind_bytes: Bytes of these rows; where it resumed in the log an estimate, by the mean of
            what is held.
        behind_seconds: Age of the oldest of these rows; those that predate the server count
            from its start.
        behind_stream: The stream of the oldest; None when it is behind in none.
        paused_seconds: Time in all for which its socket took no more.
        buffered_bytes: Bytes that wait in this process for its socket.
        sent_bytes: Bytes of rows written to it.
        gaps: How often it was told that rows are past retention.
        connected_seconds: Age of the connection.
        acked: The newest FEDERATION_ACK; None when it sent none.
        replay: What it was given of what it missed, on a bus: ``replayed``, or why nothing was;
            empty elsewhere, and for one that was never here.
        process: What its process did, on a bus where that has a name; None elsewhere.
    """

    conn_id: int
    name: str
    address: str
    dialect: str
    state: str
    behind_rows: int
    behind_bytes: int
    behind_seconds: float
    behind_stream: StreamName | None
    paused_seconds: float
    buffered_bytes: int
    sent_bytes: int
    gaps: int
    connected_seconds: float
    acked: Token | None = None
    replay: str = ""
    process: ProcessStatus | None = None


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A connection of ours to something that streams come from, or go to.

    Attributes:
        name: Where it leads, without secrets.
        kind: ``upstream`` (rows come from there), ``redis`` (ours go there), or ``writer`` (whom a
            federation sender follows).
        up: Whether it is there.
        seconds: For how long it has been there, or away.
        reason: Why it was lost or cannot be made; None when it never was.
        reconnects: How often it was made again.
        rows: Rows that came or went this way since the start.
        gaps: How often rows were lost on the way and could not be had again.
        newest_gaps: The newest of them, in words.
        idle_seconds: How long ago the last row came; None when none has since the start, and
            where rows only go.
        silent_moves: Writers that moved without a row where that means that some may have been
            lost on their way to us, in words.
    """

    name: str
    kind: str
    up: bool
    seconds: float
    reason: str | None
    reconnects: int
    rows: int
    gaps: int = 0
    newest_gaps: list[str] = field(default_factory=list)
    idle_seconds: float | None = None
    silent_moves: list[str] = field(default_factory=list)

    def _state(self) -> str:
        state = f"up for {self.seconds:.0f} s" if self.up else f"away for {self.seconds:.0f} s"
        reason = f" ({self.reason})" if self.reason and not self.up else ""
        return f"{self.kind} {self.name}: {state}{reason}"

    def trouble(self) -> str | None:
        """Return for how long it has been away, and why, in words; None while it is there."""
        return None if self.up else self._state()

    def lines(self) -> list[str]:
        """Return it in words, a line each."""
        last = "" if self.idle_seconds is None else f" (the last {self.idle_seconds:.0f} s ago)"
        first = (
            f"{self._state()}, {counted(self.rows, 'row')}{last}, "
            f"{counted(self.reconnects, 'reconnect')}, {counted(self.gaps, 'gap')}"
        )
        moves = (f"moved without rows: {move}" for move in self.silent_moves)
        return [first, *(f"gap: {gap}" for gap in self.newest_gaps), *moves]


def link_sources(
    links: Callable[[], Iterable[LinkStatus]],
) -> list[tuple[metrics.Live, metrics.Source]]:
    """Return what the metrics are to show of *links*, which is called at each scrape."""

    def of(what: str) -> metrics.Source:
        def samples() -> list[tuple[tuple[str, str], float]]:
            found = [(link, getattr(link, what)) for link in links()]
            return [((link.name, link.kind), float(n)) for link, n in found if n is not None]

        return samples

    return [
        (metrics.LINK_UP, of("up")),
        (metrics.LINK_ROWS, of("rows")),
        (metrics.LINK_RECONNECTS, of("reconnects")),
        (metrics.LINK_GAPS, of("gaps")),
        (metrics.LINK_IDLE_SECONDS, of("idle_seconds")),
    ]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server at one moment.

    Attributes:
        server_name: Name of the homeserver.
        instance: Name of our own instance.
        uptime_seconds: Time since the server started to listen.
        streams: Every stream that it holds.
        peers: Every connection.
        closed: How many connections have ended, by reason.
        links: Where streams come from, if this is a relay, and the Redis they go to.
        damage: Ranges of rows that cannot be read from the disk, in words: of many the first, and
            how many more there are.
        database: The database that the log shares with other servers, if it does.
    """

    server_name: str
    instance: InstanceName
    uptime_seconds: float
    streams: list[StreamStatus] = field(default_factory=list)
    peers: list[PeerStatus] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)
    links: list[LinkStatus] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    database: DatabaseStatus | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain values that JSON can hold."""
        return asdict(self)

    def lines(
        self, *, streams: int | None = None, peers: int | None = None, behind: int | None = None
    ) -> list[str]:
        """Return the snapshot in words, a line each, for the STATUS command.

        Args:
            streams: How many streams there are, should the snapshot not have all.
            peers: How many connections there are, likewise.
            behind: How many of these are behind.
        """
        more_streams = 0 if streams is None else streams - len(self.streams)
        more_peers = 0 if peers is None else peers - len(self.peers)
        if behind is None or not more_peers:
            behind = sum(peer.state == "behind" for peer in self.peers)
        lines = [
            f"server {self.server_name}, instance {self.instance}, up "
            f"{self.uptime_seconds:.0f} s, {counted(len(self.peers) + more_peers, 'peer')}, "
            f"{behind} behind"
        ]
        lines += [f"damaged: {words}" for words in self.damage]
        if self.database is not None:
            lines += self.database.lines()
        lines += [line for link in self.links for line in link.lines()]
        lines += [
            f"stream {s.stream} of {s.instance}: position {s.position}, held from {s.floor}, "
            f"{counted(s.rows, 'row')} since start"
            for s in self.streams
        ]
        if more_streams:
            lines.append(f"and {counted(more_streams, 'more stream')}")
        lines += [_peer_line(peer) for peer in self.peers]
        if more_peers:
            lines.append(f"and {counted(more_peers, 'more peer')}, not behind or newer")
        return list(map(displayable, lines))


def _peer_line(peer: PeerStatus) -> str:
    who = f"peer {peer.conn_id} {peer.name or '(no name)'} {peer.address} {peer.dialect}"
    if peer.replay:
        who = f"{who} (came back: {peer.replay.replace('_', ' ')})"
    if peer.process is not None:
        did = peer.process
        who = (
            f"{who} (wrote {counted(did.rows_in, 'row')}, got {did.rows_out}, "
            f"{counted(did.reconnects, 'reconnect')}, {counted(did.replays, 'replay')}, "
            f"cache {did.cache})"
        )
    if peer.state == "behind":
        return (
            f"{who}: behind by {counted(peer.behind_rows, 'row')}, {peer.behind_bytes} bytes, "
            f"{peer.behind_seconds:.1f} s (oldest: {peer.behind_stream}), paused "
            f"{peer.paused_seconds:.1f} s in all"
        )
    if peer.state == "head":
        return f"{who}: has everything, paused {peer.paused_seconds:.1f} s in all"
    return f"{who}: {peer.state}"
