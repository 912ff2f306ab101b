"""What a server contributes to the metrics, asked for at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Final

from tcprepl import limits, metrics
from tcprepl.replication.status import PeerStatus, link_sources

if TYPE_CHECKING:
    from tcprepl.replication.serving.server import ReplicationServer

#: Names of peers that have a series of their own: a name is whatever somebody says it is.
MAX_NAMES: Final = 100
#: Under which name all others are counted.
OTHERS: Final = "(others)"


class CommandCounts:
    """How many commands came in, by word and name of the peer; bounded, and never less.

    Only the names of peers that are connected need a series. When a new name comes and there
    is no room, the oldest one that nobody has any longer makes some: its counts go to those
    of all others.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Counter[str]] = {OTHERS: Counter()}

    def add(self, word: str, name: str, connected: Container[str], count: int = 1) -> None:
        """Count a command; *connected* has the names of those who are there."""
        self.of(name, connected)[word] += count

    def of(self, name: str, connected: Container[str]) -> Counter[str]:
        """Return what is counted by word for *name*, as long as it is among *connected*."""
        counts = self._by_name.get(name)
        if counts is None:
            counts = self._by_name[OTHERS]
            if len(self._by_name) <= MAX_NAMES or self._make_room(connected):
                counts = self._by_name[name] = Counter()
        return counts

    def _make_room(self, connected: Container[str]) -> bool:
        for name in self._by_name:
            if name != OTHERS and name not in connected:
                self._by_name[OTHERS].update(self._by_name.pop(name))
                return True
        return False

    def by_name(self) -> Mapping[str, Counter[str]]:
        """Return what is counted by word for each name."""
        return self._by_name

    def by_word_and_name(self) -> dict[tuple[str, str], int]:
        """Return the counts."""
        return {
            (word, name): count
            for name, counts in self._by_name.items()
            for word, count in counts.items()
        }


class Sources:
    """The series of one server, from `add` to `remove`."""

    def __init__(self, server: ReplicationServer) -> None:
        self._metrics: list[tuple[metrics.Live, metrics.Source]] = [
            (metrics.TOTAL_CONNECTIONS, lambda: [((), len(server.peers()))]),
            (
                metrics.INBOUND_COMMANDS,
                lambda: [(key, float(n)) for key, n in server.received_commands().items()],
            ),
            (
                metrics.STREAM_UPDATES,
                lambda: [((s.stream,), float(s.rows)) for s in server.streams()],
            ),
            (
                metrics.STREAM_POSITION,
                lambda: [((s.stream, s.instance), float(s.position)) for s in server.streams()],
            ),
            (
                metrics.CURRENT_POSITION,
                lambda: [
                    ((s.stream,), float(s.position))
                    for s in server.streams()
                    if s.instance == server.instance
                ],
            ),
            (metrics.STREAM_IN_ROWS, _of_heads(server, "rows")),
            (metrics.STREAM_IN_BYTES, _of_heads(server, "size_bytes")),
            (metrics.STREAM_OUT_ROWS, _of_heads(server, "sent_rows")),
            (metrics.STREAM_OUT_BYTES, _of_heads(server, "sent_bytes")),
            (metrics.PEERS, lambda: _by_state(server)),
            (metrics.CATCH_UP_BYTES, lambda: [((), float(server.hub.behind.served_bytes))]),
            (metrics.CATCH_UP_TURNS, lambda: [((), float(server.hub.behind.full_turns))]),
            (metrics.BUDGET_USED, lambda: _budgets(server)),
            (metrics.PRODUCERS, lambda: [((), float(server.log.producers()))]),
            (
                metrics.TRANSPORT_SEND_BUFFER,
                lambda: [((_label(p),), float(p.buffered_bytes)) for p in server.peers()],
            ),
            (
                metrics.PEER_BEHIND_ROWS,
                lambda: [
                    ((_label(p), p.behind_stream or ""), float(p.behind_rows))
                    for p in server.peers()
                ],
            ),
            (
                metrics.PEER_BEHIND_BYTES,
                lambda: [
                    ((_label(p), p.behind_stream or ""), float(p.behind_bytes))
                    for p in server.peers()
                ],
            ),
            (
                metrics.PEER_BEHIND_SECONDS,
                lambda: [
                    ((_label(p), p.behind_stream or ""), p.behind_seconds) for p in server.peers()
                ],
            ),
            (
                metrics.PEER_PAUSED_SECONDS,
                lambda: [((_label(p),), p.paused_seconds) for p in server.peers()],
            ),
            (
                metrics.DAMAGED_RANGES,
                lambda: [(pair, 1.0) for pair in server.damaged_ranges()],
            ),
            *link_sources(server.link_states),
        ]

    def add(self) -> None:
        """Show them from now on."""
        for live, source in self._metrics:
            live.add_source(source)

    def remove(self) -> None:
        """Show them no longer."""
        for live, source in self._metrics:
            live.remove_source(source)


def _of_heads(server: ReplicationServer, what: str) -> metrics.Source:
    """Return the source of one number of each stream and instance."""
    return lambda: [(pair, float(getattr(h, what))) for pair, h in server.hub.heads.items()]


def _by_state(server: ReplicationServer) -> list[tuple[tuple[str], float]]:
    found = Counter(peer.state for peer in server.peers())
    return [((state,), float(found[state])) for state in ("new", "head", "behind", "closing")]


def _budgets(server: ReplicationServer) -> list[tuple[tuple[str], float]]:
    used = {
        "connections": server.connections / max(1, server.max_connections),
        "unanswered_rows": server.door.waiting_bytes / limits.MAX_ALL_UNANSWERED_BYTES,
    }
    return [((budget,), ratio) for budget, ratio in used.items()]


def _label(peer: PeerStatus) -> str:
    return peer.name or "unnamed"
