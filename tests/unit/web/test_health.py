"""Health and metrics."""

from __future__ import annotations

from tcprepl.errors import LogUnavailable
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tests.web_site import Stage


def test_healthy() -> None:
    """Live and ready."""
    stage = Stage(ready=lambda: None)
    stage.publish("audit", 1)
    answer = stage.get("/health")
    assert (answer.status, answer.json) == (200, {"live": True, "ready": True})
    stage.close()


def test_not_ready_says_why() -> None:
    """It lives, and a load balancer looks elsewhere."""
    stage = Stage(ready=lambda: "the outbox is being read")
    answer = stage.get("/health")
    assert answer.status == 503
    assert answer.json == {"live": True, "ready": False, "reason": "the outbox is being read"}
    stage.close()


def test_a_log_that_fails_is_a_reason() -> None:
    """Positions have to be known."""

    class Gone(MemoryLog):
        def pairs(self) -> list[tuple[str, str]]:
            raise LogUnavailable("the log is closed")

    stage = Stage(log=Gone(Registry(), lambda: 0))
    assert stage.get("/health").json["reason"] == "the log is closed"
    stage.close()


def test_damage_on_the_disk_degrades_and_does_not_end_service() -> None:
    """A load balancer goes on sending here; whoever looks sees it."""
    stage = Stage()
    stage.publish("audit", 1, 2, 3)
    stage.log.gaps.add(("audit", "master"), Gap(0, 2, Cause.DAMAGE, "its checksum is wrong"))
    words = "stream audit of master: rows in (0, 2] cannot be read: its checksum is wrong"
    answer = stage.get("/health")
    assert (answer.status, answer.json) == (
        200,
        {"live": True, "ready": True, "degraded": [words]},
    )
    assert stage.get("/_tcprepl/v1/status").json["damage"] == [words]
    stage.close()


def test_of_much_damage_the_first_ranges_are_named_and_how_many_more_there_are() -> None:
    """A disk that fails has thousands: health, status and page are read by people."""
    stage = Stage()
    for token in range(0, 6_000, 2):
        stage.gaps.add(("audit", "master"), Gap(token, token + 1, Cause.DAMAGE, "x" * 250))
    degraded = stage.get("/health").json["degraded"]
    assert len(degraded) == 21
    assert degraded[0].startswith("stream audit of master: rows in (0, 1] cannot be read: ")
    assert degraded[-1] == "and 2980 more damaged ranges"
    assert stage.get("/_tcprepl/v1/status").json["damage"] == degraded
    shown = stage.get("/").body
    assert b"and 2980 more damaged ranges" in shown
    assert b"and 2990 more" in shown  # of all gaps
    assert len(shown) < 60_000
    stage.close()


def test_a_link_that_is_away_degrades_and_does_not_end_service() -> None:
    """What is held is served: a load balancer goes on sending here, and whoever looks sees it."""

    class Server:
        up = False

        def link_states(self) -> list[LinkStatus]:
            """Return one that is there, and one that may be."""
            away = LinkStatus("h:9092", "upstream", self.up, 12.3, "refused\u202e", 0, 0)
            return [LinkStatus("redis://r", "redis", True, 5, None, 0, 0), away]

    server = Server()
    stage = Stage(replication_server=server)
    answer = stage.get("/health")
    assert (answer.status, answer.json) == (
        200,
        {
            "live": True,
            "ready": True,
            "degraded": ["upstream h:9092: away for 12 s (refused\\u202e)"],
        },
    )
    stage.gaps.add(("audit", "master"), Gap(0, 2, Cause.DAMAGE, "its checksum is wrong"))
    assert len(stage.get("/health").json["degraded"]) == 2
    server.up = True
    stage.log.gaps.keep(("audit", "master"), 2, 2)
    assert stage.get("/health").json == {"live": True, "ready": True}
    stage.close()


def test_metrics_are_prometheus_text() -> None:
    """Among them our own."""
    stage = Stage()
    stage.get("/health")
    answer = stage.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert b'tcprepl_http_requests_total{method="GET",route="/health",status="200"}' in answer.body
    stage.close()
