"""What INFO says, in sections and by names that exporters know (protocol.md section 15.7)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tcprepl import __version__
from tcprepl.protocol.display import displayable
from tcprepl.replication.bus.cache import Cache

_NOTE: Final = (
    "this is no Redis, but tcprepl in its place: pub/sub and a small cache, which is what a "
    "Synapse uses; the rest is at the HTTP listener (/metrics) and in tcprepl top"
)
#: Sections that are said only to who asks for them, or for everything.
_ON_REQUEST: Final = frozenset({"commandstats"})
_STATM: Final = Path("/proc/self/statm")


class Facts(NamedTuple):
    """What there is to say.

    Attributes:
        addresses: Where the bus listens.
        uptime_s: For how long, in seconds.
        connections: How many there are.
        max_connections: How many there may be.
        received: How many there were since the start.
        rejected: How many more were turned away.
        listening: How many have subscribed something.
        channels: How many channels are subscribed by name.
        patterns: How many patterns are.
        commands: How often each command was used.
        cache: The cache.
        trouble: Why the log takes nothing now; None as far as is known that it does.
    """

    addresses: Iterable[str]
    uptime_s: float
    connections: int
    max_connections: int
    received: int
    rejected: int
    listening: int
    channels: int
    patterns: int
    commands: Mapping[str, int]
    cache: Cache
    trouble: str | None = None


def info(facts: Facts, asked: Iterable[str] = ()) -> str:
    """Return what INFO says of the sections that are *asked* for, all the usual ones by default."""
    wanted = {name.lower() for name in asked}
    everything = bool(wanted & {"all", "everything"})
    usual = everything or not wanted or "default" in wanted
    parts: list[str] = []
    for title, section in _sections(facts).items():
        name = title.lower()
        if everything or name in wanted or (usual and name not in _ON_REQUEST):
            lines = [f"# {title}", *(f"{key}:{value}" for key, value in section.items()), ""]
            parts.append("\r\n".join(lines))
    return "\r\n".join(parts)


def _sections(facts: Facts) -> dict[str, dict[str, object]]:
    cache, times = facts.cache, os.times()
    ports = [address.rpartition(":")[2] for address in facts.addresses]
    return {
        "Server": {
            "server_name": "tcprepl",
            "tcprepl_version": __version__,
            "note": _NOTE,
            "redis_version": "0.0.0",
            "redis_mode": "standalone",
            "process_id": os.getpid(),
            "tcp_port": next((port for port in ports if port.isdigit()), 0),
            "uptime_in_seconds": int(facts.uptime_s),
            "uptime_in_days": int(facts.uptime_s // 86_400),
        },
        "Clients": {
            "connected_clients": facts.connections,
            "maxclients": facts.max_connections,
            "blocked_clients": 0,
            "pubsub_clients": facts.listening,
        },
        "Memory": {
            "used_memory": cache.size_bytes,
            "used_memory_dataset": cache.size_bytes,
            "used_memory_rss": _resident_bytes(),
            "maxmemory": cache.max_bytes,
            "maxmemory_policy": "allkeys-lru",
        },
        # what Redis says when it cannot write its file, which is what is watched
        "Persistence": {
            "loading": 0,
            "aof_last_write_status": "ok" if facts.trouble is None else "err",
            **({} if facts.trouble is None else {"tcprepl_trouble": displayable(facts.trouble)}),
        },
        "Stats": {
            "total_connections_received": facts.received,
            "rejected_connections": facts.rejected,
            "total_commands_processed": sum(facts.commands.values()),
            "expired_keys": cache.expired,
            "evicted_keys": cache.evicted,
            "keyspace_hits": cache.hits,
            "keyspace_misses": cache.misses,
            "pubsub_channels": facts.channels,
            "pubsub_patterns": facts.patterns,
        },
        "Replication": {"role": "master", "connected_slaves": 0},
        "CPU": {"used_cpu_sys": f"{times.system:.6f}", "used_cpu_user": f"{times.user:.6f}"},
        "Commandstats": {
            f"cmdstat_{name}": f"calls={count},usec=0,usec_per_call=0.00"
            for name, count in facts.commands.items()
            if name.isalpha()
        },
        "Keyspace": {"db0": f"keys={len(cache)},expires=0,avg_ttl=0"} if len(cache) else {},
    }


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not on Linux
        return 0
