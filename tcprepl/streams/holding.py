"""Who writes to a database, for looking: leases, epochs, and whether the database is there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcprepl.ids import InstanceName
from tcprepl.protocol.display import few


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds an instance.

    Attributes:
        instance: The instance.
        epoch: How often it was taken; a commit that was in doubt and not done counts, too.
        holder: The process that took it last: its host and its process id.
        held_seconds: How long ago that was.
        left_seconds: For how long its lease goes on without being renewed; below 0, it is over
            for that long, and another process may take the instance.
    """

    instance: InstanceName
    epoch: int
    holder: str
    held_seconds: float
    left_seconds: float

    def later(self, seconds: float) -> Holder:
        """Return what is known of it *seconds* later."""
        return replace(
            self,
            held_seconds=self.held_seconds + seconds,
            left_seconds=self.left_seconds - seconds,
        )

    def words(self) -> str:
        """Return it in words."""
        held = f"held by {self.holder} for {self.held_seconds:.0f} s"
        if self.left_seconds <= 0:
            held = f"free for {abs(self.left_seconds):.0f} s, last held by {self.holder}"
        lease = f", its lease ends in {self.left_seconds:.1f} s" if self.left_seconds > 0 else ""
        return f"instance {self.instance}: epoch {self.epoch}, {held}{lease}"


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """The database of a log, as one of its servers sees it.

    Attributes:
        where: Where it is, without the password.
        instance: The instance that this server writes as.
        epoch: With which epoch.
        renewed_seconds: How long ago its lease was renewed last, which each commit does.
        away_seconds: For how long the database has been away; None while it is there.
        reason: Why it is away.
        holders: Who holds each instance, as this server has heard last.
        elsewhere: Streams of instances whose rows are in the memory of the server that writes them,
            and that it alone serves: "typing of a".
    """

    where: str
    instance: InstanceName
    epoch: int
    renewed_seconds: float
    away_seconds: float | None = None
    reason: str | None = None
    holders: list[Holder] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it in words, a line each."""
        state = "there"
        if self.away_seconds is not None:
            state = f"away for {self.away_seconds:.0f} s ({self.reason})"
        first = (
            f"database {self.where}: {state}, instance {self.instance} has epoch {self.epoch}, "
            f"its lease was renewed {self.renewed_seconds:.1f} s ago"
        )
        lines = [first, *few(self.holders, "instance", say=Holder.words)]
        if self.elsewhere:
            names = ", ".join(few(self.elsewhere))
            lines.append(f"not served here, but by the server that writes it, from memory: {names}")
        return lines
