"""A database that is killed, or behind a network that falls silent: whoever stands on it goes on.

Nobody ends, nobody is disconnected; what cannot be taken is refused with the reason or kept, and
everything goes on by itself once the database is there again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import postgres_world
from tests.harness import FULL, Lines, Running, Server, wait_until
from tests.interop.servers import Postgres
from tests.interop.wire import Cutter, RedisWire
from tests.ports import free_port

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(180)]

STREAM = "push_rules"
ROUNDS = 2 if FULL else 1


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Return a server of these tests' own; a kill of its processes needs no fsync."""
    with Postgres.start() as started:
        yield started


class Outage(NamedTuple):
    """A database, and how it goes away and comes back.

    Attributes:
        url: Where it is.
        begin: Lets it be away.
        end: Lets it be there.
    """

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]


@pytest.fixture(params=["killed", "silent"])
def outage(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Outage]:
    """Return an empty database that can be away."""
    direct = postgres_world.fresh_url(postgres)
    if request.param == "killed":
        yield Outage(direct, postgres.kill, postgres.start_again)
        return
    with Cutter(postgres.port) as wire:
        url = direct.replace(f":{postgres.port}/", f":{wire.port}/")
        yield Outage(url, wire.freeze, wire.mend)


class Keeper:
    """A ``relay`` or a ``bus`` over a database.

    Attributes:
        port: Of the line protocol.
        http_port: Of HTTP.
    """

    def __init__(self, where: Path, url: str, command: str, *args: str) -> None:
        self.port = free_port()
        self.http_port = free_port()
        where.mkdir(exist_ok=True)
        config = where / "tcprepl.yaml"
        config.write_text("lease: 1s\n")
        argv = [sys.executable, "-m", "tests.faults.hurried", command, "--config", str(config)]
        argv += ["--server-name", "example.com", "--listen", f"127.0.0.1:{self.port}"]
        argv += ["--http", f"127.0.0.1:{self.http_port}", "--data", url, *args]
        self.process = Running(argv, where, command)
        self.process.wait_for_output(rf"{command}\.ready")

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def health(self) -> tuple[int, str]:
        """Return what /health says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def status(self) -> Any:
        """Return the status document."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/_tcprepl/v1/status")
            return json.loads(connection.getresponse().read())

    def is_away(self) -> bool:
        """Return whether it says so."""
        code, text = self.health()
        return code == 503 and "the database is away" in text


def test_a_relay_lives_through_it(tmp_path: Path, outage: Outage) -> None:
    """What comes from upstream meanwhile is kept, and served in order to who never left."""
    with (
        Server(tmp_path / "upstream") as upstream,
        Keeper(tmp_path / "relay", outage.url, "relay", "--upstream", upstream.address) as relay,
        Lines(relay.port) as reader,
    ):
        reader.send(f"REPLICATE {STREAM} master 0\n")
        sent = 0
        for _ in range(ROUNDS):
            sent = send_and_expect(upstream, reader, sent)
            outage.begin()
            for number in range(sent, sent + 5):
                upstream.publish(STREAM, [f"@{number}:x"])
            wait_until(relay.is_away, "it says that the database is away")
            with Lines(relay.port) as person:
                person.send("STATUS\n")
                assert person.expect("INFO database postgresql://").count(" away for ")
            assert relay.status()["database"]["away_seconds"] > 0
            outage.end()
            for number in range(sent, sent + 5):
                want = f'RDATA {STREAM} master {number + 1} ["@{number}:x"]'
                assert reader.expect("RDATA ") == want
            sent = send_and_expect(upstream, reader, sent + 5)
            wait_until(lambda: relay.health()[0] == 200, "it is well again")
        assert relay.process.stop() == 0


def send_and_expect(upstream: Server, reader: Lines, first: int) -> int:
    """Publish rows and wait for them at the relay; return how many there are now."""
    for number in range(first, first + 5):
        upstream.publish(STREAM, [f"@{number}:x"])
        assert reader.expect("RDATA ") == f'RDATA {STREAM} master {number + 1} ["@{number}:x"]'
    return first + 5


def test_a_bus_lives_through_it(tmp_path: Path, outage: Outage) -> None:
    port = free_port()
    args = ("--listen-redis", f"127.0.0.1:{port}")
    with (
        Keeper(tmp_path / "bus", outage.url, "bus", *args) as bus,
        RedisWire(port, "example.com") as wire,
        Lines(bus.port) as reader,
    ):
        reader.send(f"REPLICATE {STREAM} w1 0\n")
        rows = [f'RDATA {STREAM} w1 {number} ["@{number}:x"]' for number in range(1, 16)]
        for row in rows[:5]:
            wire.publish(row)
            assert reader.expect("RDATA ") == row
        outage.begin()
        for row in rows[5:10]:
            wire.publish(row)
            wire.publish("REMOTE_SERVER_UP after." + row.split()[3])
        wait_until(bus.is_away, "it says that the database is away")
        with RedisInfo(port) as info:
            assert "aof_last_write_status:err" in info.ask()
        outage.end()
        for row in rows[10:]:
            wire.publish(row)
        for row in rows[5:]:
            assert reader.expect("RDATA ") == row
        wire.wait_for(rows[-1])
        heard = [line.decode() for line in wire.lines]
        assert [line for line in heard if line.startswith("RDATA")] == rows
        for number in range(6, 11):  # what stood behind a row has stayed behind it
            at = heard.index(f"REMOTE_SERVER_UP after.{number}")
            assert heard[at - 1].startswith(f"RDATA {STREAM} w1 {number} ")
        wait_until(lambda: bus.health()[0] == 200, "it is well again")
        assert bus.process.stop() == 0


class RedisInfo(Lines):
    """A connection that asks INFO."""

    def ask(self) -> str:
        """Return what it says."""
        self.send("INFO persistence\r\n")
        size = int(self.readline()[1:])
        said = ""
        while len(said.encode()) < size:
            said += self.readline() + "\n"
        return said


@pytest.mark.parametrize("outage", ["silent"], indirect=True)
def test_a_relay_that_is_told_to_end_meanwhile_ends(tmp_path: Path, outage: Outage) -> None:
    """With a row that nobody can take any more."""
    with (
        Server(tmp_path / "upstream") as upstream,
        Keeper(tmp_path / "relay", outage.url, "relay", "--upstream", upstream.address) as relay,
        Lines(relay.port) as reader,
    ):
        reader.send(f"REPLICATE {STREAM} master 0\n")
        send_and_expect(upstream, reader, 0)
        outage.begin()
        upstream.publish(STREAM, ["@late:x"])
        wait_until(relay.is_away, "it says that the database is away")
        assert relay.process.stop() == 0
