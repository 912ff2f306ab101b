"""A real Synapse of six processes moves from its Redis to the bus, back, and in again.

It runs all the while, and people talk: nothing that was acknowledged to them is missing, and one
log has all of it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Running
from tests.interop.busing import BigFleet
from tests.interop.complaints import is_of_a_lost_connection
from tests.interop.moving import commands, users_of_redis
from tests.interop.processes import wait_until
from tests.interop.relaying import StubbornRedis, by_pair, row_of, tokens_of
from tests.interop.servers import Postgres
from tests.interop.synapse import User, request
from tests.interop.traffic import Following, Traffic
from tests.interop.wire import Wire
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

#: Processes that say no name, so that the bus gives them nothing again.
NAMELESS = ("ew1", "gw")
#: Who writes what is looked for here.
WRITERS = {
    ("events", "ew1"),
    ("events", "ew2"),
    ("to_device", "tw"),
    ("receipts", "ew2"),
    ("account_data", "master"),
    ("device_lists", "master"),
    ("typing", "tw"),
    ("presence", "ew1"),
}
#: Where a Synapse has the rows of which it keeps each, or of each thing the newest.
TABLES = {
    "events": "SELECT instance_name, stream_ordering FROM events",
    "receipts": "SELECT instance_name, stream_id FROM receipts_linearized",
    "account_data": "SELECT instance_name, stream_id FROM account_data",
}
#: Where it has those of which it tells, to who was away, the newest of each user.
USERS = {
    # what was delivered is no longer in the table; all of it was for bob
    "to_device": "SELECT 'tw', last_value, '{bob}' FROM device_inbox_sequence",
    "device_lists": "SELECT instance_name, max(stream_id), user_id FROM device_lists_stream"
    " GROUP BY instance_name, user_id",
}
_numbers = count(100)

#: A stream, and who writes it.
Pair = tuple[str, str]


def shown_to(user: User) -> Any:
    """Return what a process shows a user beside messages."""
    # With a number that was not said before, or Synapse may answer what it answered then.
    shown = f'{{"room":{{"timeline":{{"limit":{next(_numbers)}}}}}}}'
    answer = user.call("GET", "/sync", timeout="0", filter=shown)
    rooms = answer["rooms"]["join"]
    return {
        "receipts and typing": {room: rooms[room]["ephemeral"]["events"] for room in rooms},
        "account data": answer.get("account_data", {}).get("events", []),
        "presence": {
            event["sender"]: (event["content"]["presence"], event["content"].get("status_msg"))
            for event in answer.get("presence", {}).get("events", [])
        },
    }


class Mover:
    """A homeserver, and what is at the address of its Redis."""

    def __init__(self, fleet: BigFleet, redis: StubbornRedis, directory: Path) -> None:
        self.fleet = fleet
        self.redis = redis
        self.alice = fleet.main.register("alice")
        self.bob = fleet.main.register("bob")
        self.rooms = [self.alice.create_room(preset="public_chat") for _ in range(4)]
        for room in self.rooms:
            self.bob.join(room)
        self.following = Following(fleet.at("gw", self.bob))
        self.traffic = Traffic(self.alice, self.rooms, self.bob, fleet.at)
        self._line_port, self._http_port = free_port(), free_port()
        self._directory = directory

    @contextmanager
    def running(self, command: str, *, fetching: bool = True) -> Iterator[None]:
        """Run relay or bus as the page shows it, but for addresses.

        Args:
            command: The command.
            fetching: Whether it is told where to fetch rows that were written while it was away.
        """
        for shown, ours in {
            "/var/lib/tcprepl-bus": str(self._directory / "data"),
            "redis://127.0.0.1:6379": f"redis://127.0.0.1:{self.redis.port}",
            "example.com": self.fleet.main.server_name,
        }.items():
            command = command.replace(shown, ours)
        words = shlex.split(command)
        kind = words[1]
        words += ["--listen", f"127.0.0.1:{self._line_port}"]
        words += ["--http", f"127.0.0.1:{self._http_port}"]
        if kind == "bus":
            words += ["--listen-redis", f"127.0.0.1:{self.redis.port}"]
        if fetching:
            for name, port in self._replication_ports().items():
                words += ["--instance", f"{name}=http://127.0.0.1:{port}"]
        with Running([sys.executable, "-m", *words], self._directory, kind) as process:
            process.wait_for_output("bus.ready" if kind == "bus" else "redis.up", 60.0)
            # of who is new it is first known that he writes, and then where he is
            wait_until(
                "it is known where every writer is",
                lambda: all(self.positions().get(pair) for pair in WRITERS),
            )
            yield
            assert process.stop(timeout_s=60.0) == 0

    def go_on(self) -> None:
        """Wait until something of everything was done, and has come to the worker."""
        said, told = len(self.traffic.sent), len(self.traffic.told)
        wait_until(
            "they go on",
            lambda: len(self.traffic.sent) > said + 5 and len(self.traffic.told) > told + 5,
        )
        self.following.kinds.clear()
        sent, wanted = set(self.traffic.sent), {"m.typing", "m.presence", "m.receipt", "x.told"}
        wait_until(
            "all of it is in a sync",
            lambda: self.following.look().messages >= sent and self.following.kinds >= wanted,
        )

    def positions(self) -> dict[Pair, int]:
        """Return where each stream is that relay or bus know."""
        status = request(self._http_port, "GET", "/_tcprepl/v1/status")
        return {(one["stream"], one["instance"]): one["position"] for one in status["streams"]}

    def log(self) -> list[bytes]:
        """Return the lines of all that has come to the log by now."""
        ends = self.positions()
        with Wire(self._line_port) as wire:
            wire.send("REPLICATE * * 0")
            wait_until(
                "the end of the log",
                lambda: _reached({pair: end for pair, _, end in _told(wire.lines)}, ends),
            )
            return wire.lines

    def rows(self, statement: str) -> list[tuple[str, int, str]]:
        """Return rows of the database: writer, token, and whose it is."""
        found = self.fleet.main.sql(statement.format(bob=self.bob.user_id))
        return [(row[0] or "master", int(row[1]), row[-1]) for row in found]

    def complaints(self) -> list[str]:
        """Return the errors in all logs, but for those of a lost connection to Redis.

        These are there, too, when it is redis-server that ends: test_bus_late.py does that.
        """
        return [one for one in self.fleet.complaints() if not is_of_a_lost_connection(one)]

    def _replication_ports(self) -> dict[str, int]:
        return {"main": self.fleet.main.http_replication_port, **self.fleet.ports}


def _reached(positions: Mapping[Pair, int], ends: Mapping[Pair, int]) -> bool:
    """Return whether all has come that far."""
    return all(positions.get(pair, -1) >= end for pair, end in ends.items())


def _told(lines: list[bytes]) -> Iterator[tuple[Pair, int, int]]:
    """Yield of which stream lines tell, up to where they tell of no row, and where it is then."""
    for line in lines:
        words = line.decode().split(" ", 4)
        if words[0] == "POSITION":
            yield (words[1], words[2]), int(words[3]), int(words[4])
        elif words[0] == "RDATA" and words[3] != "batch":
            yield (words[1], words[2]), 0, int(words[3])


def missing_of(lines: list[bytes]) -> dict[Pair, set[int]]:
    """Return the tokens of which a log says that it may not have them."""
    ends: dict[Pair, int] = {}
    missing: dict[Pair, set[int]] = {}
    for pair, before, token in _told(lines):
        missing.setdefault(pair, set()).update(range(ends.get(pair, 0) + 1, before + 1))
        ends[pair] = max(token, ends.get(pair, 0))
    return missing


@dataclass(frozen=True)
class Moved:
    """A homeserver that has moved, is on the bus, and where nobody speaks any more.

    Attributes:
        mover: The homeserver.
        since: Where each stream was when the log began.
        back: Where each was in the log when it began to be told where it can fetch rows.
    """

    mover: Mover
    since: Mapping[Pair, int]
    back: Mapping[Pair, int]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    """Yield it."""
    directory = tmp_path_factory.mktemp("moving")
    relay, bus = commands()
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        redis = StubbornRedis(directory)
        stack.callback(redis.close)
        fleet = BigFleet("newest", postgres, redis, nameless=NAMELESS)
        named = users_of_redis({"main", *fleet.ports} - set(NAMELESS))
        redis.start(*named)
        stack.enter_context(fleet)
        mover = Mover(fleet, redis, directory)
        with mover.traffic:
            with mover.running(relay, fetching=False):
                since = mover.positions()
            with mover.running(relay, fetching=False):  # from here on it counts `typing` itself
                mover.go_on()
            redis.stop()
            with mover.running(bus, fetching=False):
                mover.go_on()
            redis.start(*named)
            with mover.running(relay):
                back = mover.positions()
                mover.go_on()
            redis.stop()
            stack.enter_context(mover.running(bus))
            mover.go_on()
        yield Moved(mover, since, back)


def test_nothing_that_was_acknowledged_is_missing_at_a_worker(moved: Moved) -> None:
    mover = moved.mover
    following, traffic = mover.following, mover.traffic
    wait_until(
        "everything acknowledged is in a sync",
        lambda: following.look().messages >= traffic.sent and following.told >= traffic.told,
    )
    for room in mover.rooms:
        mover.fleet.at("tw", mover.alice).set_typing(room, typing=False)
    for user in (mover.alice, mover.bob):
        worker = mover.fleet.at("gw", user)
        wait_until(
            "the worker shows what the main does",
            lambda user=user, worker=worker: shown_to(worker) == shown_to(user),
        )


def test_the_log_has_every_row_once_and_in_order_or_says_what_it_lacks(moved: Moved) -> None:
    mover = moved.mover
    kept = [(stream, *row) for stream, asked in TABLES.items() for row in mover.rows(asked)]
    of_users = [(stream, *row) for stream, asked in USERS.items() for row in mover.rows(asked)]
    ends = {(stream, instance): token for stream, instance, token, _ in sorted([*kept, *of_users])}
    wait_until("the log is where the writers are", lambda: _reached(mover.positions(), ends))
    lines = mover.log()
    rows, missing = by_pair(lines), missing_of(lines)
    tokens = {pair: tokens_of(found) for pair, found in rows.items()}
    for pair, found in tokens.items():
        assert found == sorted(set(found)), pair
    for stream, instance, token, _ in kept:
        pair = (stream, instance)
        if token > moved.since[pair] and token not in tokens[pair]:
            assert token <= moved.back[pair], (pair, token)
            assert token in missing[pair], (pair, token)
    for stream, instance, token, user in of_users:
        pair = (stream, instance)
        if token > moved.since[pair]:
            newest = [line for line in rows[pair] if row_of(line)[0] == user][-1:]
            assert max(tokens_of(newest), default=0) >= token, (pair, user)


def test_no_error_is_logged_but_of_connections_that_were_lost(moved: Moved) -> None:
    assert moved.mover.complaints() == []
