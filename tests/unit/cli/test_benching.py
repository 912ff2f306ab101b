"""What ``tcprepl bench`` measures; the whole is in ``test_bench``."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tcprepl.cli import benching
from tcprepl.cli.benching import Timings, all_of, first_answer, row_of
from tcprepl.errors import ConnectionFailed, LogUnavailable
from tcprepl.replication.following.writer import ReplicationWriter
from tests.cli_world import ADDRESS
from tests.wire import Network


def test_rows_of_a_size() -> None:
    assert len(row_of(None, 200)) == 200
    assert row_of(None, 20) == b'["@xx:bench.invalid"]'[:1] + b'"@' + b"x:bench.invalid" + b'"]'
    assert row_of("[1]", 99) == b"[1]"


def test_percentiles() -> None:
    timings = Timings()
    assert timings.ms() == {}
    timings.seconds = [n / 1000 for n in range(1, 1001)]
    assert timings.ms() == {
        "p50": 500.0,
        "p90": 900.0,
        "p99": 990.0,
        "p99.9": 999.0,
        "min": 1.0,
        "max": 1000.0,
    }


def test_a_server_that_does_not_answer() -> None:
    """It is told apart from one that refuses."""
    network = Network()
    writer = ReplicationWriter(network.clock, network.client_endpoint("w"))
    waiting = Deferred.fromCoroutine(first_answer(network.clock, writer, ADDRESS))
    network.clock.advance(benching.GREETING_S)
    failed: list[Any] = []
    _ = waiting.addErrback(failed.append)
    assert isinstance(failed[0].value, ConnectionFailed)
    assert "no answer within 10 s" in str(failed[0].value)


def test_the_first_that_fails_ends_the_others() -> None:
    other: Deferred[None] = Deferred()
    waiting = Deferred.fromCoroutine(all_of([other, fail(LogUnavailable("no"))]))
    found: list[Any] = []
    _ = waiting.addErrback(found.append)
    assert isinstance(found[0].value, LogUnavailable)
    assert other.called
    assert not Clock().getDelayedCalls()
