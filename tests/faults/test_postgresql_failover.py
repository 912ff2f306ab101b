"""A primary that is killed, and its synchronous standby promoted: nothing acknowledged is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_world
from tests.faults.test_postgresql import STREAM, rows_at, serve
from tests.harness import Lines, pause, wait_until
from tests.interop.servers import Postgres

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(180)]


@pytest.fixture(params=postgres_world.RELEASES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Postgres, Postgres]]:
    """Return a primary, and a standby without which it answers no commit."""
    with (
        Postgres.start(newest=request.param == "newest") as primary,
        primary.standby() as standby,
    ):
        yield primary, standby


def test_a_promoted_standby_has_all_that_was_acknowledged(
    tmp_path: Path, pair: tuple[Postgres, Postgres]
) -> None:
    """Two servers go on by themselves, each as the process that it was.

    The epoch is one more where a commit was in doubt and is found not done.
    """
    primary, standby = pair
    one = postgres_world.fresh_url(primary)
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = one.replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
    acknowledged: list[tuple[int, str]] = []
    enough = threading.Event()
    with (
        serve(tmp_path / "a", url, "a") as a,
        serve(tmp_path / "b", url, "b") as b,
        Lines(b.port) as reader,
    ):
        reader.send(f"REPLICATE {STREAM} a 0\n")

        refusals: list[str] = []

        def publish() -> None:
            number = 0
            while not enough.is_set():
                row = [f"@{number}:x"]
                number += 1
                try:
                    (token,) = a.publish(STREAM, row)
                except AssertionError as error:
                    refusals.append(str(error))
                    pause(0.05)
                else:
                    acknowledged.append((token, json.dumps(row)))

        publisher = threading.Thread(target=publish)
        publisher.start()
        wait_until(lambda: len(acknowledged) > 20, "rows are taken")
        primary.kill()
        wait_until(lambda: a.process.stderr.count("postgresql.away"), "the server notices")
        before = len(acknowledged)
        standby.promote()
        wait_until(lambda: len(acknowledged) > before + 20, "rows are taken again", 60)
        enough.set()
        publisher.join(60)
        assert all(": 503 " in text for text in refusals)
        got: list[tuple[int, str]] = []
        while not got or got[-1][0] < acknowledged[-1][0]:
            words = reader.expect(f"RDATA {STREAM} a ").split(" ", 4)
            got.append((int(words[3]), words[4]))
        tokens = [token for token, _ in got]
        assert tokens == sorted(set(tokens))
        assert set(acknowledged) <= set(got)
        assert rows_at(a, "a", len(got)) == got
        assert b.publish(STREAM, ["@b:x"]) == [1]
        for name, server in (("a", a), ("b", b)):
            database = server.request("GET", "/_tcprepl/v1/status")["database"]
            assert database["epoch"] in {1, 2}
            holders = {one["instance"]: one["holder"] for one in database["holders"]}
            assert holders[name].endswith(f":{server.process.pid}")
            assert server.process.process.poll() is None
