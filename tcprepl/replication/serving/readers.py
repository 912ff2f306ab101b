"""Readers of the hub: what each asked for, and what it owns while it is behind.

At the head a reader owns nothing but its place in a `Group`; behind, it owns a `Backlog`: the
moment at which it left the head, and a `Track` for each pair in which there is something for
it (protocol.md section 10).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.replication.serving.heads import Head
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.transport import Outlet
from tcprepl.streams.cursor import Cursor
from tcprepl.streams.pages import Reading

#: Stands for every stream, or every instance, in a subscription.
ANY = "*"
#: What every pair matches.
EVERYTHING: Pair = (ANY, ANY)


def patterns_of(pair: Pair) -> tuple[Pair, Pair, Pair, Pair]:
    """Return the patterns that *pair* matches."""
    stream, instance = pair
    return pair, (stream, ANY), (ANY, instance), EVERYTHING


class Subscription:
    """What a connection asked for: patterns of (stream, instance), `ANY` standing for all.

    Attributes:
        patterns: The patterns; at the head the very set of all who want the same.
        only_instance: The one instance that the peer can be told of (2017), or None.
    """

    __slots__ = ("only_instance", "patterns")

    def __init__(
        self, patterns: Iterable[Pair] = (), only_instance: InstanceName | None = None
    ) -> None:
        self.patterns: Set[Pair] = set(patterns)
        self.only_instance = only_instance

    def add(self, pattern: Pair) -> None:
        """Want *pattern*, too."""
        if not isinstance(self.patterns, set):
            self.patterns = set(self.patterns)
        self.patterns.add(pattern)

    def wants(self, pair: Pair) -> bool:
        """Return whether rows of *pair* are to be sent."""
        stream, instance = pair
        if self.only_instance is not None and instance != self.only_instance:
            return False
        patterns = self.patterns
        return (
            EVERYTHING in patterns
            or pair in patterns
            or (stream, ANY) in patterns
            or (ANY, instance) in patterns
        )


class Group:
    """Readers at the head that want the same lines in the same form.

    Attributes:
        readers: The readers, in the order in which they came (a set that keeps it).
        written_at: When bytes were last written to all of them (monotonic seconds).
    """

    __slots__ = ("form", "only_instance", "patterns", "readers", "written_at")

    def __init__(
        self, form: WireForm, patterns: frozenset[Pair], only: InstanceName | None
    ) -> None:
        self.form = form
        self.patterns = patterns
        self.only_instance = only
        self.readers: dict[Reader, None] = {}
        self.written_at = 0.0


class Groups:
    """The readers at the head, found by the pairs that they want.

    Invariant: there is no group without readers.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[WireForm, frozenset[Pair], InstanceName | None], Group] = {}
        self._by_pattern: dict[Pair, dict[Group, None]] = {}
        #: What was found of each pair since a group came or went.
        self._wanting: dict[Pair, Sequence[Group]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def join(self, reader: Reader) -> None:
        """Let *reader* have its place in the group that wants what it wants."""
        subscription = reader.subscription
        patterns, only = frozenset(subscription.patterns), subscription.only_instance
        key = (reader.form, patterns, only)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(reader.form, patterns, only)
            self._wanting.clear()
            for pattern in patterns:
                self._by_pattern.setdefault(pattern, {})[group] = None
        group.readers[reader] = None
        reader.group = group
        subscription.patterns = group.patterns  # 216 bytes for all of them, not for each

    def leave(self, reader: Reader) -> None:
        """Take *reader* out of its group, if it is in one."""
        group, reader.group = reader.group, None
        if group is None:
            return
        del group.readers[reader]
        if group.readers:
            return
        del self._groups[group.form, group.patterns, group.only_instance]
        self._wanting.clear()
        for pattern in group.patterns:
            groups = self._by_pattern[pattern]
            del groups[group]
            if not groups:
                del self._by_pattern[pattern]

    def wanting(self, pair: Pair) -> Sequence[Group]:
        """Return the groups that want rows of *pair*, each once."""
        wanting = self._wanting.get(pair)
        if wanting is None:
            wanting = self._wanting[pair] = self._find(pair)
        return wanting

    def _find(self, pair: Pair) -> Sequence[Group]:
        found: list[dict[Group, None]] = []
        for pattern in patterns_of(pair):
            groups = self._by_pattern.get(pattern)
            if groups:
                found.append(groups)
        if not found:
            return []
        wanting = found[0] if len(found) == 1 else {g: None for groups in found for g in groups}
        _, instance = pair
        return [g for g in wanting if g.only_instance is None or g.only_instance == instance]


class Track:
    """A reader's way to the head of one pair.

    Attributes:
        head: Where it leads.
        cursor: Where the reader is.
        begun: Whether the reader has been told where it begins; that goes before the first row.
        rows: How many of the hub's rows the reader has had; a lower bound before the hub began.
        size_bytes: How many of the hub's bytes; None where it began at a token of its own, so
            that they can be estimated only.
        sent: The token of the last row that was sent, where rows end below the cursor.
        reading: What tells when to ask again, if the next page is not there yet.
        damage: After and up to which token it met damaged blocks one after another, last.
    """

    __slots__ = ("begun", "cursor", "damage", "head", "reading", "rows", "sent", "size_bytes")

    def __init__(self, head: Head, cursor: Cursor, *, begun: bool) -> None:
        self.head = head
        self.cursor = cursor
        self.begun = begun
        self.rows = 0
        self.size_bytes: int | None = None
        self.sent: Token | None = None
        self.reading: Reading | None = None
        self.damage: tuple[Token, Token] = (0, 0)


class Backlog:
    """What a reader that is not at the head owns.

    Of a pair without a track the reader has what had been handed out at the moment *since*.

    Attributes:
        since: The moment, which the heads remember.
        began_at: When the reader left the head (monotonic seconds).
        tracks: The pairs in which there is something for it.
        order: The same: whose turn it is comes first.
        owed: What it has just subscribed: of each such pair it is told where it stands, once
            the pair, or in the end the reader, is at the head.
        told: Pairs of which it has been told that.
        absent: What is to be said before anything else, of pairs that nobody has written.
    """

    __slots__ = ("absent", "began_at", "order", "owed", "since", "told", "tracks")

    def __init__(self, since: int, now: float) -> None:
        self.since = since
        self.began_at = now
        self.tracks: dict[Pair, Track] = {}
        self.order: deque[Track] = deque()
        self.owed = Subscription()
        self.told: set[Pair] = set()
        self.absent: dict[Pair, bytes] = {}

    def add(self, track: Track) -> None:
        """Add *track*, in place of the one of its pair, if there is one."""
        self.remove(track.head.pair)
        self.tracks[track.head.pair] = track
        self.order.append(track)

    def remove(self, pair: Pair) -> None:
        """Remove the track of *pair*, if there is one."""
        track = self.tracks.pop(pair, None)
        if track is not None:
            self.order.remove(track)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a reader is behind: rows, bytes, and seconds of the oldest unsent row.

    Of rows that the hub did not hand out itself it has a lower bound of their number, an estimate
    of their bytes by the mean of what the log holds, and their age as if they came when it began.
    So whoever stands still has an age that grows.
    """

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    stream: StreamName | None = None


class Owner(Protocol):
    """Whose connection a reader is."""

    def failed(self) -> None:
        """End the connection: something that nobody expected happened, and was logged."""


class Reader:
    """One subscribed connection as the hub sees it.

    Attributes:
        outlet: Where its bytes go.
        label: The name it goes by in logs.
        form: The form of its lines.
        subscription: What it asked for.
        group: The group it belongs to while at the head.
        backlog: What it is owed while not.
        paused_s: Seconds spent not at the head since it first was.
        served_bytes: Bytes of rows written to it.
        gaps: How often it was told that rows are missing.
        owner: Hears when something that nobody expected has kept rows from it, and ends its
            connection, so that it comes back and asks for them; None: its outlet is aborted.
        live: Whether it is still there.
        queued: Whether it waits to be served.
        on_head: Called when it comes to the head, before the last of what it was owed is
            written; may be set by whoever made it.
    """

    __slots__ = (
        "backlog",
        "form",
        "gaps",
        "group",
        "label",
        "live",
        "on_head",
        "outlet",
        "owner",
        "paused_s",
        "queued",
        "served_bytes",
        "subscription",
    )

    def __init__(self, outlet: Outlet, label: str, owner: Owner | None = None) -> None:
        self.outlet = outlet
        self.owner = owner
        self.label = label
        self.form = _NO_FORM
        self.subscription = Subscription()
        self.group: Group | None = None
        self.backlog: Backlog | None = None
        self.paused_s = 0.0
        self.served_bytes = 0
        self.gaps = 0
        self.live = True
        self.on_head: Callable[[], object] | None = None
        self.queued = False


_NO_FORM = WireForm(rdata_instance=True, position_tokens=2, max_line_bytes=0)
