"""Readers of the hub: what each asked for, and what it owns while it is behind.

At the head a reader owns nothing but its place in a `Group`; behind, it owns a `Backlog`
of integers (protocol.md section 10).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TypeAlias

from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.transport import Outlet

Pair: TypeAlias = tuple[StreamName, InstanceName]

#: Samples of past heads that are kept for each pair, to tell how old unsent rows are.
HEAD_SAMPLES = 512
#: Shortest time between two such samples.
HEAD_SAMPLE_S = 0.1

#: Stands for every stream, or every instance, in a subscription.
ANY = "*"


class Head:
    """Where one (stream, instance) has been published to, and how much that was.

    Attributes:
        token: The newest token handed to the readers.
        rows: Rows published since the hub began.
        bytes: Bytes of lines published since the hub began.
        origin: The position before the first row that the hub published.
    """

    __slots__ = ("_times", "_tokens", "bytes", "origin", "rows", "token")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.origin = token
        self.rows = 0
        self.bytes = 0
        self._tokens: list[Token] = []
        self._times: list[float] = []

    def sample(self, now: float) -> None:
        """Remember that the head is at its token at *now* (monotonic seconds).

        A sample stands for the rows up to its token, and has the time of the oldest of them.
        """
        if self._times and now - self._times[-1] < HEAD_SAMPLE_S:
            self._tokens[-1] = self.token
            return
        self._tokens.append(self.token)
        self._times.append(now)
        if len(self._tokens) > HEAD_SAMPLES:
            # Join the older half by twos: what is long past needs no fine grain.
            half = HEAD_SAMPLES // 4 * 2
            self._tokens[:half] = self._tokens[1:half:2]
            self._times[:half] = self._times[:half:2]

    def age_of(self, token: Token, now: float) -> float:
        """Return for how many seconds rows after *token* have existed; 0 when there are none."""
        if token >= self.token:
            return 0.0
        index = bisect_right(self._tokens, token)
        if index == len(self._times):
            return 0.0
        return now - self._times[index]


class Subscription:
    """What a connection asked for: patterns of (stream, instance), `ANY` standing for all.

    Attributes:
        patterns: The patterns.
        only_instance: The one instance that the peer can be told of (2017), or None.
    """

    __slots__ = ("only_instance", "patterns")

    def __init__(
        self, patterns: frozenset[Pair] = frozenset(), only_instance: InstanceName | None = None
    ) -> None:
        self.patterns = patterns
        self.only_instance = only_instance

    def wants(self, pair: Pair) -> bool:
        """Return whether rows of *pair* are to be sent."""
        stream, instance = pair
        if self.only_instance is not None and instance != self.only_instance:
            return False
        patterns = self.patterns
        return (
            pair in patterns
            or (stream, ANY) in patterns
            or (ANY, instance) in patterns
            or (ANY, ANY) in patterns
        )


class Group:
    """Readers at the head that want the same lines in the same form.

    Attributes:
        readers: The readers, in the order in which they came (a set that keeps it).
        written_at: When bytes were last written to all of them (monotonic seconds).
    """

    __slots__ = ("_wanted", "form", "readers", "subscription", "written_at")

    def __init__(self, form: WireForm, subscription: Subscription) -> None:
        self.form = form
        self.subscription = subscription
        self.readers: dict[Reader, None] = {}
        self.written_at = 0.0
        self._wanted: dict[Pair, bool] = {}

    def wants(self, pair: Pair) -> bool:
        """Return whether the group wants rows of *pair*; remembered."""
        wanted = self._wanted.get(pair)
        if wanted is None:
            wanted = self._wanted[pair] = self.subscription.wants(pair)
        return wanted


class Backlog:
    """What a reader that is not at the head owns: integers only.

    Attributes:
        cursors: For each pair the token up to which the reader has been served.
        sent: For a pair whose last sent row is below its cursor: the token of that row.
        owed: Pairs that are owed a POSITION once they are at the head.
        compacted: Pairs being re-read from their restart point, where superseded rows are gone.
        base_rows: For each pair how many of the hub's rows the reader has had.
        base_bytes: The same in bytes.
        began_at: When the reader left the head (monotonic seconds).
        turn: Counts pages, so that each stream comes first in its turn.
        unbegun: Pairs just subscribed at the head, whose POSITION is yet to come: it has to
            go before their rows, should there be any by then.
    """

    __slots__ = (
        "base_bytes",
        "base_rows",
        "began_at",
        "compacted",
        "cursors",
        "owed",
        "sent",
        "turn",
        "unbegun",
    )

    def __init__(
        self,
        cursors: dict[Pair, Token],
        base_rows: dict[Pair, int],
        base_bytes: dict[Pair, int],
        now: float,
    ) -> None:
        self.cursors = cursors
        self.base_rows = base_rows
        self.base_bytes = base_bytes
        self.began_at = now
        self.sent: dict[Pair, Token] = {}
        self.owed: set[Pair] = set()
        self.compacted: set[Pair] = set()
        self.turn = 0
        self.unbegun: set[Pair] = set()


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a reader is behind: rows, bytes, and seconds of the oldest unsent row."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    stream: StreamName | None = None


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
    """

    __slots__ = (
        "backlog",
        "form",
        "gaps",
        "group",
        "label",
        "live",
        "outlet",
        "paused_s",
        "served_bytes",
        "serving",
        "subscription",
    )

    def __init__(self, outlet: Outlet, label: str) -> None:
        self.outlet = outlet
        self.label = label
        self.form = _NO_FORM
        self.subscription = _NOTHING
        self.group: Group | None = None
        self.backlog: Backlog | None = None
        self.paused_s = 0.0
        self.served_bytes = 0
        self.gaps = 0
        self.live = True
        self.serving = False


_NO_FORM = WireForm(rdata_instance=True, position_tokens=2, max_line_bytes=0)
_NOTHING = Subscription()
