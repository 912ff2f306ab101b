"""What a bus contributes to the metrics, asked for at each scrape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tcprepl import metrics

if TYPE_CHECKING:
    from tcprepl.replication.bus.listener import BusListener


def sources(bus: BusListener) -> Iterable[tuple[metrics.Live, metrics.Source]]:
    """Return where each metric is to ask. Rows of processes have Synapse's names."""
    cache, processes = bus.cache, bus.by_process
    return (
        (metrics.BUS_CONNECTIONS, lambda: [((), float(len(bus.clients())))]),
        (metrics.BUS_COMMANDS, lambda: [((k,), float(n)) for k, n in bus.commands.items()]),
        (
            metrics.BUS_CACHE_REQUESTS,
            lambda: [(("hit",), float(cache.hits)), (("miss",), float(cache.misses))],
        ),
        (
            metrics.BUS_CACHE_REMOVED,
            lambda: [(("evicted",), float(cache.evicted)), (("expired",), float(cache.expired))],
        ),
        (metrics.BUS_CACHE_BYTES, lambda: [((), float(cache.size_bytes))]),
        (metrics.BUS_CACHE_ENTRIES, lambda: [((), float(len(cache)))]),
        (
            metrics.INBOUND_COMMANDS,
            lambda: [(("RDATA", name), float(did.rows_in)) for name, did in processes()],
        ),
        (
            metrics.OUTBOUND_COMMANDS,
            lambda: [(("RDATA", name), float(did.rows_out)) for name, did in processes()],
        ),
        (
            metrics.BUS_RECONNECTS,
            lambda: [((name,), float(did.reconnects)) for name, did in processes()],
        ),
        (
            metrics.BUS_PROCESS_CACHE,
            lambda: [
                ((name, result), float(count))
                for name, did in processes()
                for result, count in (("hit", did.cache_hits), ("miss", did.cache_misses))
            ],
        ),
    )
