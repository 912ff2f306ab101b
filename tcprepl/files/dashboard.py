"""A dashboard for Grafana: what is asked of `tcprepl.metrics`, and how it is drawn.

`ROWS` is the dashboard in short; `dashboard` writes it out as Grafana imports it (schema 39,
Grafana 10 and newer). Panels that Synapse's own dashboard has go by the same metrics.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

#: Whole width of the grid, and what a panel gets of it.
GRID, WIDTH, HEIGHT = 24, 8, 8
_SELECTED = 'job=~"$job",instance=~"$instance"'


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: What it shows.
        unit: Grafana's name of the unit.
        queries: What each line is: PromQL, where ``%`` stands for the chosen processes, and its
            legend.
        about: What to think of it.
        kind: How it is drawn.
        warn: From which value it is red; None for never.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str
    kind: str = "timeseries"
    warn: float | None = None


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is all well?",
        (
            Panel(
                "Slowest reader",
                "s",
                (("max(tcprepl_peer_behind_seconds{%}) or vector(0)", "behind"),),
                "Age of the oldest row that somebody has not been sent.",
                "stat",
                60,
            ),
            Panel(
                "Links away",
                "none",
                (("count(tcprepl_link_up{%} == 0) or vector(0)", "away"),),
                "Upstreams, or a Redis that is published to, that are not there.",
                "stat",
                1,
            ),
            Panel(
                "Gaps told to readers in an hour",
                "none",
                (("sum(increase(tcprepl_gaps_total{%}[1h])) or vector(0)", "gaps"),),
                "Readers that came back later than retention allows.",
                "stat",
                1,
            ),
        ),
    ),
    (
        "Streams",
        (
            Panel(
                "Rows published",
                "wps",
                (
                    (
                        "sum by (stream_name) (rate("
                        "synapse_replication_tcp_resource_stream_updates_total{%}[5m]))",
                        "{{stream_name}}",
                    ),
                ),
                "By stream.",
            ),
            Panel(
                "Rows received",
                "wps",
                (
                    (
                        "sum by (stream_name) (rate("
                        "synapse_replication_tcp_protocol_inbound_rdata_count_total{%}[5m]))",
                        "{{stream_name}}",
                    ),
                ),
                "By workers and relays, from their upstream.",
            ),
            Panel(
                "Bytes in",
                "Bps",
                (
                    (
                        "sum by (stream) (rate(tcprepl_stream_received_bytes_total{%}[5m]))",
                        "{{stream}}",
                    ),
                ),
                "Of rows, by stream; of durable ones they grow on the disk.",
            ),
            Panel(
                "Rows out",
                "wps",
                (
                    (
                        "sum by (stream) (rate(tcprepl_stream_sent_rows_total{%}[5m]))",
                        "{{stream}}",
                    ),
                ),
                "To readers, once for each of them.",
            ),
            Panel(
                "Bytes out",
                "Bps",
                (
                    (
                        "sum by (stream) (rate(tcprepl_stream_sent_bytes_total{%}[5m]))",
                        "{{stream}}",
                    ),
                ),
                "A stream that many read and few need stands out here.",
            ),
            Panel(
                "Left out",
                "wps",
                (
                    (
                        "sum by (what, why) (rate(tcprepl_dropped_total{%}[5m]))",
                        "{{what}}: {{why}}",
                    ),
                ),
                "Rows, EDUs and lines that were not taken, and why.",
            ),
        ),
    ),
    (
        "Readers",
        (
            Panel(
                "Connections",
                "none",
                (
                    (
                        "synapse_replication_tcp_resource_total_connections{%}",
                        "{{instance}}",
                    ),
                ),
                "Of the line protocol.",
            ),
            Panel(
                "Behind, in seconds",
                "s",
                (("max by (peer) (tcprepl_peer_behind_seconds{%})", "{{peer}}"),),
                "A reader that is slow costs nothing; one that stays behind loses rows in the end.",
            ),
            Panel(
                "Behind, in rows",
                "none",
                (("sum by (peer) (tcprepl_peer_behind_rows{%})", "{{peer}}"),),
                "Over all its streams.",
            ),
            Panel(
                "Time that sockets took no more",
                "percentunit",
                (("rate(tcprepl_peer_paused_seconds_total{%}[5m])", "{{peer}}"),),
                "Share of the time: the network or the reader is the bottleneck.",
            ),
            Panel(
                "Connections by state",
                "none",
                (("sum by (state) (tcprepl_peers{%})", "{{state}}"),),
                "Behind: served from the log.",
            ),
            Panel(
                "Catching up",
                "Bps",
                (("rate(tcprepl_catchup_bytes_total{%}[5m])", "{{instance}}"),),
                "Bytes of which those who are behind are served.",
            ),
            Panel(
                "Turns in which there was more to catch up",
                "ops",
                (("rate(tcprepl_catchup_full_turns_total{%}[5m])", "{{instance}}"),),
                "All the time: spread readers over relays.",
            ),
            Panel(
                "Commands received",
                "cps",
                (
                    (
                        "sum by (command) (rate("
                        "synapse_replication_tcp_protocol_inbound_commands_total{%}[5m]))",
                        "{{command}}",
                    ),
                ),
                "By kind.",
            ),
            Panel(
                "Ends of connections",
                "cps",
                (
                    (
                        "sum by (reason_type) (rate("
                        "synapse_replication_tcp_protocol_close_reason_total{%}[5m]))",
                        "{{reason_type}}",
                    ),
                ),
                "By reason.",
            ),
        ),
    ),
    (
        "Links and the bus",
        (
            Panel(
                "Rows over links",
                "wps",
                (("rate(tcprepl_link_rows_total{%}[5m])", "{{link}}"),),
                "From upstreams and to Redis.",
            ),
            Panel(
                "Commands of the bus",
                "cps",
                (
                    (
                        "sum by (command) (rate(tcprepl_bus_commands_total{%}[5m]))",
                        "{{command}}",
                    ),
                ),
                "What Synapse's processes ask for in Redis's place.",
            ),
            Panel(
                "Hits of the cache",
                "percentunit",
                (
                    (
                        'sum(rate(tcprepl_bus_cache_requests_total{%,result="hit"}[5m])) / '
                        "sum(rate(tcprepl_bus_cache_requests_total{%}[5m]))",
                        "hits",
                    ),
                ),
                "Of the bus.",
            ),
        ),
    ),
    (
        "Federation",
        (
            Panel(
                "Waiting on disk",
                "none",
                (("sum by (lane) (tcprepl_outbox_rows{%})", "{{lane}}"),),
                "EDUs that a federation sender has and other servers have not.",
            ),
            Panel(
                "Oldest on disk",
                "s",
                (("max by (lane) (tcprepl_outbox_oldest_seconds{%})", "{{lane}}"),),
                "One server that is away makes this grow; `tcprepl fed ls` says which.",
            ),
            Panel(
                "EDUs accepted by others",
                "cps",
                (
                    (
                        "sum by (type) (rate("
                        "synapse_federation_client_sent_edus_by_type_total{%}[5m]))",
                        "{{type}}",
                    ),
                ),
                "By type.",
            ),
        ),
    ),
    (
        "The process",
        (
            Panel(
                "CPU",
                "percentunit",
                (("rate(process_cpu_seconds_total{%}[5m])", "{{instance}}"),),
                "Of one core.",
            ),
            Panel(
                "Memory",
                "bytes",
                (("process_resident_memory_bytes{%}", "{{instance}}"),),
                "Resident.",
            ),
            Panel(
                "Commits of the log",
                "s",
                (
                    (
                        "histogram_quantile(0.5, sum by (le) (rate("
                        "tcprepl_commit_seconds_bucket{%}[5m])))",
                        "half are faster",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate("
                        "tcprepl_commit_seconds_bucket{%}[5m])))",
                        "99 of 100 are faster",
                    ),
                ),
                "With their fsync.",
                warn=0.1,
            ),
            Panel(
                "Lateness of the reactor",
                "s",
                (("tcprepl_reactor_lateness_seconds{%}", "{{instance}}"),),
                "Above 0.5 s something holds the one thread.",
                warn=0.5,
            ),
            Panel(
                "Bounds that are used",
                "percentunit",
                (("tcprepl_budget_used_ratio{%}", "{{budget}}"),),
                "At 100 % newcomers are turned away, or writers wait.",
                warn=0.9,
            ),
            Panel(
                "Producers",
                "none",
                (("tcprepl_producers{%}", "{{instance}}"),),
                "Names that are remembered; beyond 10,000 new ones are refused.",
                warn=9_000,
            ),
            Panel(
                "Certificates end in",
                "s",
                (
                    (
                        "min by (listener) (tcprepl_certificate_end_timestamp_seconds{%}) - time()",
                        "{{listener}}",
                    ),
                ),
                "A new file is taken up by itself.",
            ),
            Panel(
                "Background work that failed",
                "none",
                (
                    (
                        "sum by (name) (increase(tcprepl_background_failed_total{%}[1h]))",
                        "{{name}}",
                    ),
                ),
                "In the last hour; the log has the reasons.",
            ),
        ),
    ),
)


def dashboard() -> str:
    """Return the dashboard as JSON that Grafana imports."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"h": 1, "w": GRID, "x": 0, "y": y}
        panels.append({"type": "row", "title": title, "gridPos": place, "collapsed": False})
        y += 1
        for number, panel in enumerate(row):
            line, column = divmod(number, GRID // WIDTH)
            place = {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": y + line * HEIGHT}
            panels.append(_drawn(panel, place))
        y += -(-len(row) // (GRID // WIDTH)) * HEIGHT
    for number, drawn in enumerate(panels, 1):
        drawn["id"] = number
    whole = {
        "uid": "tcprepl",
        "title": "tcprepl",
        "tags": ["tcprepl", "matrix"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Data source",
                },
                _variable("job", "label_values(tcprepl_stream_position, job)"),
                _variable(
                    "instance", 'label_values(tcprepl_stream_position{job=~"$job"}, instance)'
                ),
            ]
        },
        "panels": panels,
    }
    return json.dumps(whole, indent=1) + "\n"


def expressions() -> list[str]:
    """Return every query of the dashboard, with the chosen processes left out."""
    return [
        expr.replace("{%}", "").replace("{%,", "{")
        for _, row in ROWS
        for panel in row
        for expr, _ in panel.queries
    ]


def _drawn(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.warn is not None:
        steps.append({"color": "red", "value": panel.warn})
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": source,
                "expr": expr.replace("%", _SELECTED),
                "legendFormat": legend,
            }
            for number, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
