"""The metrics of this process, and the names they go by.

Dashboards that were made for Synapse keep working: what Synapse measures too has Synapse's
name (``synapse_...``); what only tcprepl has is called ``tcprepl_...``. Everything lives in
`REGISTRY`, not in prometheus_client's global registry.

Two kinds of metric are used:

* Plain counters and histograms for what happens seldom (a transaction, a failure).
* `Live` metrics for state and for what happens often. Nothing is written to them: whoever
  holds the number registers a *source*, and the number is asked for when somebody scrapes.
  So a hot path only adds to an integer that it owns, and several servers in one process
  (as in the tests) add up instead of overwriting each other.

It is one table of names and what to think of them, and is read as one: so it may be longer than
other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: Every metric of this process.
REGISTRY = CollectorRegistry()

#: The ``Content-Type`` of what `render` returns.
CONTENT_TYPE = CONTENT_TYPE_LATEST

#: Asked at each scrape: the label values of each sample, and its value.
Source: TypeAlias = Callable[[], Iterable[tuple[Sequence[str], float]]]


class Live(Collector):
    """A gauge or a counter that is asked for at each scrape.

    Samples of several sources with equal labels are added up. A counter does not go back
    when a source leaves: what it had counted is kept.

    Attributes:
        name: The name that is exposed (``_total`` is added to a counter's).
        labels: The names of the labels.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        kind: Literal["gauge", "counter"] = "gauge",
        labels: Sequence[str] = (),
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self.name = name
        self.labels = tuple(labels)
        self._documentation = documentation
        self._kind = kind
        self._sources: list[Source] = []
        self._kept: dict[tuple[str, ...], float] = {}
        if registry is not None:
            registry.register(self)

    def add_source(self, source: Source) -> Source:
        """Ask *source* at each scrape from now on; returns it, for `remove_source`."""
        self._sources.append(source)
        return source

    def remove_source(self, source: Source) -> None:
        """Stop asking *source*; a counter keeps what it had counted. Unknown ones are ignored."""
        if source not in self._sources:
            return
        self._sources.remove(source)
        if self._kind == "counter":
            self._add_up(source, self._kept)

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return the present value for each combination of labels."""
        totals = dict(self._kept)
        for source in tuple(self._sources):
            self._add_up(source, totals)
        return totals

    def describe(self) -> Iterator[Metric]:
        """Yield the empty family, so that a second metric of this name is refused."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Yield the family with its samples."""
        family = self._family()
        for labels, value in self.samples().items():
            family.add_metric(labels, value)
        yield family

    def _family(self) -> GaugeMetricFamily | CounterMetricFamily:
        family = GaugeMetricFamily if self._kind == "gauge" else CounterMetricFamily
        return family(self.name, self._documentation, labels=self.labels)

    def _add_up(self, source: Source, totals: dict[tuple[str, ...], float]) -> None:
        try:
            for labels, value in source():
                key = tuple(labels)
                totals[key] = totals.get(key, 0.0) + value
        except Exception:
            # One broken source must not hide all other metrics from the operator.
            logger.exception("metrics.source_failed", metric=self.name)


def render() -> bytes:
    """Return every metric in the Prometheus text format (`CONTENT_TYPE`)."""
    return generate_latest(REGISTRY)


# -- Replication: connections ---------------------------------------------------------------

INBOUND_COMMANDS = Live(
    "synapse_replication_tcp_protocol_inbound_commands",
    "Commands received, by command and by the name of the peer",
    kind="counter",
    labels=("command", "name"),
)
OUTBOUND_COMMANDS = Live(
    "synapse_replication_tcp_protocol_outbound_commands",
    "Commands sent, by command and by the name of the peer",
    kind="counter",
    labels=("command", "name"),
)
INBOUND_RDATA = Live(
    "synapse_replication_tcp_protocol_inbound_rdata_count",
    "Rows received, by stream",
    kind="counter",
    labels=("stream_name",),
)
CLOSE_REASON = Counter(
    "synapse_replication_tcp_protocol_close_reason",
    "Connections ended, by the reason",
    ["reason_type"],
    registry=REGISTRY,
)
TRANSPORT_SEND_BUFFER = Live(
    "synapse_replication_tcp_protocol_transport_send_buffer",
    "Bytes that wait in the transport, by the name of the peer",
    labels=("name",),
)
TOTAL_CONNECTIONS = Live(
    "synapse_replication_tcp_resource_total_connections",
    "Replication connections open now",
)
STREAM_UPDATES = Live(
    "synapse_replication_tcp_resource_stream_updates",
    "Rows published, by stream",
    kind="counter",
    labels=("stream_name",),
)
USER_SYNC = Counter(
    "synapse_replication_tcp_resource_user_sync", "USER_SYNC received", registry=REGISTRY
)
FEDERATION_ACK = Counter(
    "synapse_replication_tcp_resource_federation_ack", "FEDERATION_ACK received", registry=REGISTRY
)
USER_IP_CACHE = Counter(
    "synapse_replication_tcp_resource_user_ip_cache", "USER_IP received", registry=REGISTRY
)
COMMAND_QUEUE = Live(
    "synapse_replication_tcp_command_queue",
    "Batches received that wait for their handler, by stream",
    labels=("stream_name",),
)
CURRENT_POSITION = Live(
    "synapse_storage_stream_current_position",
    "The newest token, by stream",
    labels=("stream_name",),
)
STREAM_POSITION = Live(
    "tcprepl_stream_position",
    "The newest token, by stream and instance: one that stands still while its writer works, "
    "is one that no row reaches; look at the writer",
    labels=("stream", "instance"),
)
STREAM_IN_ROWS = Live(
    "tcprepl_stream_received_rows",
    "Rows that came in, by stream and instance: published here, or had from an upstream. "
    "What grows much faster than it did is a writer gone wild; `tcprepl log top` shows by "
    "which keys",
    kind="counter",
    labels=("stream", "instance"),
)
STREAM_IN_BYTES = Live(
    "tcprepl_stream_received_bytes",
    "Bytes of the rows that came in: what of a durable stream grows here grows on the disk; "
    "streams.retention bounds it",
    kind="counter",
    labels=("stream", "instance"),
)
STREAM_OUT_ROWS = Live(
    "tcprepl_stream_sent_rows",
    "Rows written to readers of the line protocol and the bus: once for each of them, so "
    "that it grows with readers; a relay takes some away",
    kind="counter",
    labels=("stream", "instance"),
)
STREAM_OUT_BYTES = Live(
    "tcprepl_stream_sent_bytes",
    "Bytes of those rows: who reads a stream that it does not need costs this; name streams in "
    "REPLICATE",
    kind="counter",
    labels=("stream", "instance"),
)
PEERS = Live(
    "tcprepl_peers",
    "Connections by state; behind: served from the log, as it fell behind or came back. Where that "
    "lasts, `tcprepl top` says who it is and why",
    labels=("state",),
)
CATCH_UP_BYTES = Live(
    "tcprepl_catchup_bytes",
    "Bytes of which readers who are behind were served from the log: none in quiet times. "
    "Where it grows all the time, somebody comes back again and again, or never catches up; "
    "`tcprepl top` says who",
    kind="counter",
)
CATCH_UP_TURNS = Live(
    "tcprepl_catchup_full_turns",
    "Turns in which readers who are behind could have been served more: they share a budget, so "
    "that those at the head hardly notice. Where it grows all the time, spread readers over relays",
    kind="counter",
)
BUDGET_USED = Live(
    "tcprepl_budget_used_ratio",
    "How much of a bound is used, from 0 to 1. Near 1 of connections: newcomers are turned away, "
    "raise replication.max_connections or find who opens them; of unanswered_rows: writers wait "
    "for the disk",
    labels=("budget",),
)
PRODUCERS = Live(
    "tcprepl_producers",
    "Names of producers that are remembered; beyond 10,000 new ones are refused: writers should "
    "keep their names",
)
DAMAGED_RANGES = Live(
    "tcprepl_log_damaged_ranges",
    "Ranges of rows that cannot be read from the disk, as far as somebody has tried: above "
    "0, check the disk; `tcprepl log verify` names the rows, a backup may have them",
    labels=("stream", "instance"),
)
PEER_BEHIND_ROWS = Live(
    "tcprepl_peer_behind_rows",
    "Rows that a peer has not been sent yet: for how long counts, see tcprepl_peer_behind_seconds",
    labels=("peer", "stream"),
)
PEER_BEHIND_BYTES = Live(
    "tcprepl_peer_behind_bytes",
    "Bytes that a peer has not been sent yet: they cost disk, not memory; beyond "
    "streams.retention they are lost to it. Of what it resumed in the log an estimate, by the mean "
    "of what is held",
    labels=("peer", "stream"),
)
PEER_BEHIND_SECONDS = Live(
    "tcprepl_peer_behind_seconds",
    "Age of the oldest row that a peer has not been sent yet, from the server's start on for rows "
    "of before it: above a minute, look with `tcprepl top` whether its socket is paused; if so at "
    "that process, if not at this one",
    labels=("peer", "stream"),
)
PEER_PAUSED_SECONDS = Live(
    "tcprepl_peer_paused_seconds",
    "Time for which a peer's socket took no more: a peer for which it grows by a second a "
    "second does not read; look at that process, nobody else waits for it",
    kind="counter",
    labels=("peer",),
)
LINK_UP = Live(
    "tcprepl_link_up",
    "Whether an upstream, the writer of a federation sender, or the Redis that is published to, is "
    "there (1) or away (0): the status says why; what was missed is fetched when it is back",
    labels=("link", "kind"),
)
LINK_ROWS = Live(
    "tcprepl_link_rows",
    "Rows that came or went over a link",
    kind="counter",
    labels=("link", "kind"),
)
LINK_RECONNECTS = Live(
    "tcprepl_link_reconnects",
    "Times a link was made again",
    kind="counter",
    labels=("link", "kind"),
)
LINK_GAPS = Live(
    "tcprepl_link_gaps",
    "Gaps held beside the log: rows lost on the way from an upstream. Name the HTTP address "
    "of the writer in `instances`, so that what a connection loses is fetched",
    labels=("link", "kind"),
)
LINK_IDLE_SECONDS = Live(
    "tcprepl_link_idle_seconds",
    "Time since the last row came from an upstream: where it grows beyond what is usual "
    "while the link is up, look at the writers",
    labels=("link", "kind"),
)
DROPPED = Counter(
    "tcprepl_dropped",
    "What was thrown away: rows, EDUs, lines; and why. What expired, or was known already, is "
    "as it should be; look into the log for the rest",
    ["what", "why"],
    registry=REGISTRY,
)
REFUSED_ACCESS = Counter(
    "tcprepl_access_refused",
    "What was refused for want of a token or a right, by side (line, http, bus) and why: where it "
    "grows, a peer has an old token or lacks a right, or somebody guesses; `why` says which",
    ["side", "why"],
    registry=REGISTRY,
)
GAPS = Counter(
    "tcprepl_gaps",
    "Times a reader could not be resumed from the log and had to start anew: raise "
    "streams.retention_of for that stream, or let the reader run more often",
    ["stream"],
    registry=REGISTRY,
)

# -- The bus --------------------------------------------------------------------------------

BUS_CONNECTIONS = Live(
    "tcprepl_bus_connections",
    "Clients of the bus connected now: fewer than processes of the homeserver means that one "
    "is away",
)
BUS_COMMANDS = Live(
    "tcprepl_bus_commands",
    "Commands of Redis received, by name: what Synapse never sends comes from somebody else",
    kind="counter",
    labels=("command",),
)
BUS_CACHE_REQUESTS = Live(
    "tcprepl_bus_cache_requests",
    "Keys asked for in the cache of the bus, by whether they were there: each miss is work for the "
    "database of the homeserver; see tcprepl_bus_cache_removed_total for why there are many",
    kind="counter",
    labels=("result",),
)
BUS_PROCESS_CACHE = Live(
    "tcprepl_bus_process_cache_requests",
    "Keys that each process asked the cache of the bus for, by whether they were there: "
    "each miss is work for the database of the homeserver; one that has just begun has many",
    kind="counter",
    labels=("process", "result"),
)
BUS_RECONNECTS = Live(
    "tcprepl_bus_process_reconnects",
    "How often each process began again to listen to the bus: more often than it was "
    "restarted, look into its log and at the network",
    kind="counter",
    labels=("process",),
)
BUS_CACHE_REMOVED = Live(
    "tcprepl_bus_cache_removed",
    "Keys that went from the cache of the bus: for want of room, or as their time was over",
    kind="counter",
    labels=("why",),
)
BUS_REPLAYS = Counter(
    "tcprepl_bus_replays",
    "Processes that began to listen to the bus, by what they were given of what they missed: "
    "those who were given too little should be restarted, or bus.replay_seconds raised",
    ("outcome",),
    registry=REGISTRY,
)
BUS_SILENT_MOVES = Counter(
    "tcprepl_bus_silent_moves",
    "Positions that moved without a row in streams in which every token is that of a row: "
    "some may have been lost before they were published; restart who depends on them",
    ("stream", "instance"),
    registry=REGISTRY,
)
BUS_CACHE_BYTES = Live(
    "tcprepl_bus_cache_bytes",
    "Bytes in the cache of the bus: at its bound, what was used least goes first",
)
BUS_CACHE_ENTRIES = Live("tcprepl_bus_cache_entries", "Keys in the cache of the bus")

# -- Federation -----------------------------------------------------------------------------

SENT_TRANSACTIONS = Live(
    "synapse_federation_client_sent_transactions",
    "Transactions that a destination accepted",
    kind="counter",
)
SENT_EDUS = Live(
    "synapse_federation_client_sent_edus", "EDUs that a destination accepted", kind="counter"
)
SENT_EDUS_BY_TYPE = Live(
    "synapse_federation_client_sent_edus_by_type",
    "EDUs that a destination accepted, by type",
    kind="counter",
    labels=("type",),
)
PENDING_DESTINATIONS = Live(
    "synapse_federation_transaction_queue_pending_destinations",
    "Destinations with something to send",
)
PENDING_EDUS = Live(
    "synapse_federation_transaction_queue_pending_edus",
    "EDUs that wait to be sent, counted every half minute",
)
SEND_QUEUE_EDUS = Live(
    "synapse_federation_send_queue_edus_size", "Entries in the writer's send queue: edus"
)
OUTBOX_ROWS = Live(
    "tcprepl_outbox_rows",
    "EDUs on disk that wait to be sent, by lane: `tcprepl fed ls` says for whom",
    labels=("lane",),
)
OUTBOX_OLDEST_SECONDS = Live(
    "tcprepl_outbox_oldest_seconds",
    "Age of the oldest EDU on disk, by lane: above some hours, `tcprepl fed ls` says which server "
    "it is for, and why it waits",
    labels=("lane",),
)

# -- State in memory ------------------------------------------------------------------------

TYPING_USERS = Live("tcprepl_typing_users", "Users typing now, counted once for each room")
TYPING_ROOMS = Live("tcprepl_typing_rooms", "Rooms held in memory for typing")
PRESENCE_USERS = Live(
    "tcprepl_presence_users", "Users held in memory, by presence", labels=("state",)
)
TIMERS_PENDING = Live(
    "tcprepl_timers_pending", "Entries in the wheel timers, by kind", labels=("kind",)
)
EPHEMERAL_CHANGES = Live(
    "tcprepl_ephemeral_changes",
    "Changes of state in memory that were published, by stream",
    kind="counter",
    labels=("stream",),
)

# -- Background work ------------------------------------------------------------------------

BACKGROUND_STARTED = Live(
    "synapse_background_process_start_count",
    "Background processes started, by name",
    kind="counter",
    labels=("name",),
)
BACKGROUND_IN_FLIGHT = Live(
    "synapse_background_process_in_flight_count",
    "Background processes running now, by name",
    labels=("name",),
)
BACKGROUND_SECONDS = Live(
    "tcprepl_background_process_seconds",
    "Time from start to end of background processes, by name",
    kind="counter",
    labels=("name",),
)
BACKGROUND_FAILED = Counter(
    "tcprepl_background_failed",
    "Background work that failed, by name: the log has the reason of each (background.failed)",
    ["name"],
    registry=REGISTRY,
)

# -- The process ----------------------------------------------------------------------------

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
REACTOR_LATENESS = Live(
    "tcprepl_reactor_lateness_seconds",
    "How late the latest turn of the last minute was: above 0.5, something holds the one thread, "
    "or the machine is out of CPU",
)
DATA_BYTES = Live(
    "tcprepl_data_bytes",
    "Bytes of the files in the data directory: streams.retention bounds them, for each "
    "stream and instance",
)
DATA_FREE_BYTES = Live(
    "tcprepl_data_free_bytes",
    "Bytes left on the disk of the data directory: at 0, appends are refused with 503",
)
CERTIFICATE_END = Live(
    "tcprepl_certificate_end_timestamp_seconds",
    "When the certificate of a listener ends, in seconds since 1970: renew it before",
    labels=("listener",),
)
DATABASE_AWAY = Live(
    "tcprepl_database_away_seconds",
    "How long the database has been away, 0 while it is there: meanwhile appends are refused "
    "with 503, and go on by themselves when it is back",
)
INSTANCE_EPOCH = Live(
    "tcprepl_instance_epoch",
    "How often each instance of the database was taken, and by which process last: where it "
    "grows all the time, two processes have the same name",
    labels=("instance", "holder"),
)
INSTANCE_LEASE = Live(
    "tcprepl_instance_lease_seconds",
    "For how long each instance is kept without being heard of: below 0 it is free, and "
    "nobody writes it; start its process, or a standby",
    labels=("instance",),
)
COMMIT_SECONDS = Histogram(
    "tcprepl_commit_seconds",
    "How long the disk, or the database, took for a commit of the log, its fsync included: above "
    "0.1 s writers wait for the disk; look what else uses it",
    registry=REGISTRY,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
