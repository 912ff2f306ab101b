"""What the logs keep, and for how long (protocol.md section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tcprepl.ids import StreamName
from tcprepl.limits import TRANSACTION_AGE_S

_MIB = 1_048_576


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of one (stream, instance) is kept; None does not bound.

    The oldest blocks go first, whole blocks only, so that up to one block more may be there.

    Attributes:
        max_age_s: Oldest row, in seconds.
        max_bytes: Bytes of rendered lines.
        max_rows: Number of rows.
    """

    max_age_s: float | None = None
    max_bytes: int | None = None
    max_rows: int | None = None

    def is_full(self, size_bytes: int, rows: int) -> bool:
        """Return whether so much is more than may be held, however old it is."""
        return self.excess(0, size_bytes, rows, 0) is not None

    def excess(self, oldest_ms: int, size_bytes: int, rows: int, now_ms: int) -> str | None:
        """Return which setting (`streams.retention`) wants the oldest block gone, if any does.

        Args:
            oldest_ms: When the oldest block was written.
            size_bytes: Bytes held.
            rows: Rows held.
            now_ms: The present.
        """
        if self.max_rows is not None and rows > self.max_rows:
            return f"retention.rows={self.max_rows}"
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            return f"retention.bytes={self.max_bytes}"
        if self.max_age_s is not None and now_ms - oldest_ms > self.max_age_s * 1000:
            return f"retention.age={self.max_age_s:g}s"
        return None


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds of every log of one process, all per (stream, instance).

    Attributes:
        durable: For streams on disk.
        ephemeral: For streams in memory.
        streams: Bounds of single streams, in place of those two.
        recent_bytes: How much of a durable stream is also held in memory, so that readers
            who are a little behind never touch the disk.
        transaction_age_s: How long a transaction id is remembered: what HTTP and federation
            promise to whoever asks again.
        reserved_tokens: How many tokens of an ephemeral stream are claimed on disk at once;
            a crash skips up to this many.
    """

    durable: Bounds = Bounds(max_age_s=7 * 86_400.0, max_bytes=1024 * _MIB, max_rows=10_000_000)
    ephemeral: Bounds = Bounds(max_age_s=3_600.0, max_bytes=8 * _MIB, max_rows=50_000)
    streams: Mapping[StreamName, Bounds] = field(default_factory=lambda: MappingProxyType({}))
    recent_bytes: int = 4 * _MIB
    transaction_age_s: float = TRANSACTION_AGE_S
    reserved_tokens: int = 10_000

    def bounds(self, stream: StreamName, *, durable: bool) -> Bounds:
        """Return the bounds of *stream*."""
        return self.streams.get(stream) or (self.durable if durable else self.ephemeral)
