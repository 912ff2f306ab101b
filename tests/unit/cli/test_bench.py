"""``tcprepl bench``, run on a fake clock against a server in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl.cli import bench, benching, run
from tests.cli_world import CliWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CliWorld:
    """A server that takes rows."""
    made = CliWorld(monkeypatch)
    made.log.ensure("push_rules", "master")
    made.server.door.publisher = made.publisher
    made.adopt(bench)
    monkeypatch.setattr(
        benching, "client_endpoint", lambda reactor, address: made.network.client_endpoint("y")
    )
    return made


def found(capsysbinary: pytest.CaptureFixture[bytes], *args: str) -> Any:
    """Run it and return the object that it prints."""
    assert run(["bench", *args, "--json"]) == 0
    return json.loads(capsysbinary.readouterr().out)


def test_publish(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each row is answered and counted; they are of an instance that nobody has."""
    got = found(capsysbinary, "publish", "--rows", "500", "--size", "50", "--clients", "3")
    assert (got["bench"], got["rows"], got["bytes"]) == ("publish", 500, 25_000)
    assert got["ms"]["answer"].keys() == {"p50", "p90", "p99", "p99.9", "min", "max"}
    (pair,) = [pair for pair in world.log.pairs() if pair[1].startswith("bench-")]
    assert world.log.position(*pair) == 500
    assert got["left"] == f"500 rows of push_rules by {pair[1]}, until retention lets them go"


def test_latency(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Rows of others are not counted."""
    world.later(0.5, lambda: world.publish("push_rules", ["@other:x"]))
    got = found(capsysbinary, "latency", "--for", "2", "--rate", "10", "--yes")
    assert got["rows"] == 20
    assert got["ms"]["answer"]
    assert got["ms"]["delivery"]


def test_follow(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """All that is held, by each client; nothing where nothing is."""
    assert found(capsysbinary, "follow")["rows"] == 0
    world.publish("device_lists", ["@1:a"], ["@2:a"])
    world.publish("typing", ["!r:a", []])
    assert found(capsysbinary, "follow")["rows"] == 3
    assert found(capsysbinary, "follow", "device_lists", "--clients", "2")["rows"] == 4
    assert "left" not in found(capsysbinary, "follow")


def test_words(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["bench", "latency", "--for", "1", "--rate", "5"]) == 0
    first, answer, delivery, left = capsysbinary.readouterr().out.decode().splitlines()
    assert first.startswith("latency   5 rows, 500 B, in ")
    assert answer.startswith("answer    p50 ")
    assert delivery.endswith("  ms")
    assert left.startswith("left      5 rows of push_rules by bench-")


def test_where_rows_are_nothing_is_written_without_asking(
    world: CliWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.publish("typing", ["!r:a", []])
    world.publish("device_lists", ["@1:a"])
    assert run(["bench", "publish"]) == 2
    told = capsys.readouterr()
    assert "has rows of device_lists, typing, and all who follow it" in told.err
    assert "--yes says that this is meant" in told.err
    assert not told.out
    assert not [pair for pair in world.log.pairs() if pair[1].startswith("bench-")]
    for stream in ("events", "backfill", "receipts", "to_device", "groups", "pushers"):
        _ = world.log.advance(stream, "master", 1)
    assert run(["bench", "latency"]) == 2
    assert "and 3 more" in capsys.readouterr().err


def test_what_does_not_fit_is_told(world: CliWorld, capsys: pytest.CaptureFixture[str]) -> None:
    """With what was done by then, if anything was."""
    assert run(["bench", "publish", "--stream", "typing"]) == 2
    assert "--stream typing needs a --row" in capsys.readouterr().err
    for what in ("publish", "latency"):
        assert run(["bench", what, "--stream", "typing", "--row", "[1]"]) == 1
        told = capsys.readouterr()
        assert "typing: refused (row)" in told.err
        assert not told.out
    assert run(["bench", "publish", "--row", "[1"]) == 2
    assert "--row: not JSON" in capsys.readouterr().err
    for rate in ("nan", "0", "inf"):
        assert run(["bench", "latency", "--rate", rate]) == 2
        assert "Invalid value for '--rate'" in capsys.readouterr().err


def test_nobody_answers(world: CliWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.network.factory = None
    assert run(["bench", "publish", "--yes"]) == 1
    assert "tcprepl:" in capsys.readouterr().err


def test_who_is_interrupted_hears_what_was_measured(
    world: CliWorld, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def interrupted(main: Any) -> int:
        task = Deferred.fromCoroutine(main(world.network.clock))
        world.network.run(1.0, 0.1)
        task.cancel()
        world.network.run(3.0)
        _ = task.addErrback(lambda _: None)
        return 0

    monkeypatch.setattr(bench, "run_until_done", interrupted)
    got = found(capsysbinary, "latency", "--rate", "10", "--for", "60", "--yes")
    assert 5 <= got["rows"] <= 15


def test_a_row_that_is_not_json_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("publish", "latency"):
        assert run(["bench", which, "--row", "xx"]) == 2
        assert "--row: not JSON at column 1" in capsys.readouterr().err
