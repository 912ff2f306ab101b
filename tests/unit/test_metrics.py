"""Metrics: asked for at scrape time, added up over sources, one name once."""

from __future__ import annotations

import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from tcprepl import metrics
from tcprepl.metrics import Live


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_gauge_is_asked_at_each_scrape(registry: CollectorRegistry) -> None:
    rooms = {"a": 1}
    gauge = Live("rooms", "Rooms held", registry=registry)
    gauge.add_source(lambda: [((), len(rooms))])
    assert registry.get_sample_value("rooms") == 1
    rooms["b"] = 2
    assert registry.get_sample_value("rooms") == 2
    assert b"# TYPE rooms gauge" in generate_latest(registry)


def test_samples_with_equal_labels_add_up(registry: CollectorRegistry) -> None:
    gauge = Live("users", "Users", labels=["state"], registry=registry)
    gauge.add_source(lambda: [(["online"], 3), (["offline"], 1)])
    gauge.add_source(lambda: [(("online",), 4)])
    assert gauge.samples() == {("online",): 7, ("offline",): 1}
    assert generate_latest(registry).count(b'users{state="online"}') == 1


def test_removed_source_of_a_gauge_is_gone(registry: CollectorRegistry) -> None:
    gauge = Live("users", "Users", registry=registry)
    source = gauge.add_source(lambda: [((), 3)])
    gauge.remove_source(source)
    gauge.remove_source(source)
    assert registry.get_sample_value("users") is None


def test_counter_does_not_go_back_when_a_source_leaves(registry: CollectorRegistry) -> None:
    counter = Live("rows", "Rows", kind="counter", registry=registry)
    gone = counter.add_source(lambda: [((), 5)])
    counter.add_source(lambda: [((), 2)])
    counter.remove_source(gone)
    assert registry.get_sample_value("rows_total") == 7
    assert b"# TYPE rows_total counter" in generate_latest(registry)


def test_failing_source_does_not_hide_the_others(registry: CollectorRegistry) -> None:
    def broken() -> list[tuple[tuple[str, ...], float]]:
        raise RuntimeError("closed")

    gauge = Live("users", "Users", registry=registry)
    gauge.add_source(broken)
    gauge.add_source(lambda: [((), 3)])
    with structlog.testing.capture_logs() as logs:
        assert registry.get_sample_value("users") == 3
    assert [(entry["event"], entry["metric"]) for entry in logs] == [
        ("metrics.source_failed", "users")
    ]


def test_name_is_given_once(registry: CollectorRegistry) -> None:
    Live("rooms", "Rooms", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Live("rooms", "Rooms", registry=registry)


def test_metric_may_stay_unregistered() -> None:
    gauge = Live("nowhere", "Not exposed", registry=None)
    gauge.add_source(lambda: [((), 1)])
    assert gauge.samples() == {(): 1}
    assert metrics.REGISTRY.get_sample_value("nowhere") is None


def test_render_has_the_names_that_dashboards_ask_for() -> None:
    metrics.CLOSE_REASON.labels("peer_closed").inc(0)
    text = metrics.render().decode()
    for name in (
        "synapse_replication_tcp_protocol_inbound_commands_total counter",
        "synapse_replication_tcp_protocol_close_reason_total counter",
        "synapse_replication_tcp_resource_total_connections gauge",
        "synapse_federation_client_sent_edus_total counter",
        "synapse_federation_send_queue_edus_size gauge",
        "synapse_background_process_start_count_total counter",
        "tcprepl_peer_behind_rows gauge",
        "tcprepl_peer_paused_seconds_total counter",
        "tcprepl_link_up gauge",
        "tcprepl_link_rows_total counter",
        "tcprepl_dropped_total counter",
        "tcprepl_gaps_total counter",
        "tcprepl_outbox_oldest_seconds gauge",
        "tcprepl_typing_users gauge",
        "tcprepl_ephemeral_changes_total counter",
    ):
        assert f"# TYPE {name}" in text
    assert metrics.CONTENT_TYPE.startswith("text/plain")
