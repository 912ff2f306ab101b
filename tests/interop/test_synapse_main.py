"""A real main, our worker: every row, through cut wires, restarts and kill -9.

What is true is what the main says over its database and, where it has one, over its HTTP
catch-up; the followers are real processes.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.interop.activity import People
from tests.interop.environments import REPOSITORY
from tests.interop.follower import Follower, wait_for_row
from tests.interop.processes import Child, wait_until
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain
from tests.interop.wire import Cutter

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

RELEASES_2017 = ("1.12.4", "1.0.0")
RELEASES = ("1.66.0", *RELEASES_2017)


@dataclass(frozen=True)
class Truth:
    """What the database says of a stream.

    Attributes:
        query: Gives the token and what identifies the row, one row each.
        facts: Gives the same from a row of the wire; None for a row of another kind.
        complete: Whether the table keeps every row, rather than the newest of each key.
    """

    query: str
    facts: Callable[[Any], tuple[str, ...] | None]
    complete: bool = False


TRUTHS = {
    "events": Truth(
        "SELECT stream_ordering, event_id, type FROM events",
        lambda row: (row[1][0], row[1][2]) if row[0] == "ev" else None,
        complete=True,
    ),
    "receipts": Truth(
        "SELECT stream_id, user_id, event_id FROM receipts_linearized",
        lambda row: (row[2], row[3]),
    ),
    "presence": Truth(
        "SELECT stream_id, user_id, state FROM presence_stream",
        lambda row: (row[0], row[1]),
    ),
    "account_data": Truth(
        "SELECT stream_id, user_id, account_data_type FROM account_data",
        lambda row: (row[0], row[2]),
    ),
    "tag_account_data": Truth(
        "SELECT stream_id, user_id, room_id FROM room_tags_revisions",
        lambda row: (row[0], row[1]),
    ),
    "to_device": Truth(
        # Catching up tells the newest of each user: a row says no more than "there is mail".
        "SELECT max(stream_id), user_id FROM device_inbox GROUP BY user_id",
        lambda row: (row[0],),
    ),
    "device_lists": Truth(
        "SELECT stream_id, user_id FROM device_lists_stream",
        lambda row: (row[0],),
    ),
    "push_rules": Truth(
        "SELECT stream_id, user_id FROM push_rules_stream",
        lambda row: (row[0],),
        complete=True,
    ),
    "pushers": Truth(
        "SELECT id, user_name, app_id FROM pushers",
        lambda row: (row[0], row[1]),
    ),
}
#: Streams whose rows live in the main's memory, besides those of the database.
EPHEMERAL = ("typing",)
#: Streams over HTTP that keep every row, so that both sides have to agree in full.
COMPLETE_OVER_HTTP = ("events", "caches", "push_rules")


@pytest.fixture(scope="module", params=RELEASES)
def main(request: pytest.FixtureRequest) -> Iterator[SynapseMain]:
    """Yield a running main of each release."""
    release: str = request.param
    if release in RELEASES_2017:
        with SynapseMain(release) as started:
            yield started
    else:
        with Postgres.start() as postgres, SynapseMain(release, postgres=postgres) as started:
            yield started


def follow(main: SynapseMain, directory: Path, port: int) -> Follower:
    """Start a follower of every stream that is compared."""
    http_port = None if main.release in RELEASES_2017 else main.http_replication_port
    streams = () if http_port else (*TRUTHS, *EPHEMERAL)
    return Follower(directory, port, streams, http_port=http_port)


def act_and_wait(people: People, follower: Follower) -> None:
    """Let people act and wait until the last thing that they did has been delivered."""
    before = len(follower.rows("device_lists"))
    people.act()
    # The renamed device comes last, but streams are not ordered among each other.
    wait_until("the last act", lambda: len(follower.rows("device_lists")) > before)
    marker = people.say(people.bob, "that was all")
    wait_for_row(follower, "events", marker)
    wait_settled(people.main, follower)


def wait_settled(main: SynapseMain, follower: Follower) -> None:
    """Wait until the follower has every row that the database has."""
    for stream in TRUTHS:
        wait_until(f"every row of {stream}", partial(_has_all, main, follower, stream))


def _has_all(main: SynapseMain, follower: Follower, stream: str) -> bool:
    return not missing(main, follower, stream)


def told(main: SynapseMain, stream: str) -> set[tuple[str, ...]]:
    """Return (token, facts...) of every row that the database has."""
    # A fresh database has a row or two of its own making below the first token of the wire.
    return {tuple(row) for row in main.sql(TRUTHS[stream].query)}


def seen(follower: Follower, stream: str) -> list[tuple[str, ...]]:
    """Return (token, facts...) of every row that was delivered, in order."""
    found = [(token, TRUTHS[stream].facts(row)) for token, row in follower.rows(stream)]
    return [(str(token), *facts) for token, facts in found if facts is not None]


def missing(main: SynapseMain, follower: Follower, stream: str) -> set[tuple[str, ...]]:
    """Return the rows of the database that were not delivered."""
    return told(main, stream) - set(seen(follower, stream))


def check(main: SynapseMain, follower: Follower, people: People) -> None:
    """Check that every stream is what the main says it is."""
    for stream, truth in TRUTHS.items():
        assert not missing(main, follower, stream), stream
        if truth.complete:
            assert set(seen(follower, stream)) == told(main, stream), stream
    if main.release not in RELEASES_2017:
        for stream in COMPLETE_OVER_HTTP:
            position = follower.position(stream)
            assert position is not None
            by_http = [(token, row) for token, row in main.updates(stream, 0, position)]
            assert sorted(map(json.dumps, unique(follower.rows(stream)))) == sorted(
                map(json.dumps, by_http)
            ), stream
    assert normal(follower.typing()) == normal(people.told.typing)


def unique(rows: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Return *rows* without repetitions, in order."""
    return [json.loads(text) for text in dict.fromkeys(map(json.dumps, rows))]


def normal(rooms: dict[str, list[str]]) -> dict[str, set[str]]:
    """Return who types where, in no order."""
    return {room: set(users) for room, users in rooms.items() if users}


def test_client_follows_every_stream_through_cuts_and_restarts_of_the_main(
    main: SynapseMain, tmp_path: Path
) -> None:
    people = People(main)
    with Cutter(main.replication_port) as wire:
        follower = follow(main, tmp_path, wire.port)
        try:
            act_and_wait(people, follower)
            check(main, follower, people)

            wire.cut()
            people.act()
            wire.mend()
            act_and_wait(people, follower)
            check(main, follower, people)

            main.stop()
            people.told.typing.clear()  # it lived in the main's memory
            main.start()
            wait_until("typing was forgotten", lambda: not follower.typing())
            act_and_wait(people, follower)
            check(main, follower, people)
            assert follower.running
        finally:
            follower.stop()
    assert "quarantined" not in follower.output()
    assert "Traceback" not in follower.output()


def test_client_killed_at_any_moment_misses_nothing_durable(
    main: SynapseMain, tmp_path: Path
) -> None:
    people = People(main)
    follower = follow(main, tmp_path, main.replication_port)
    try:
        wait_for_row(follower, "device_lists", people.bob.user_id)
        for _ in range(3):
            people.act()
            follower.kill()
            people.say(people.alice, "while nobody listened")
            follower = follow(main, tmp_path, main.replication_port)
        act_and_wait(people, follower)
        for stream in TRUTHS:
            assert not missing(main, follower, stream), stream
    finally:
        follower.stop()


def test_tail_prints_every_row_that_the_main_writes(main: SynapseMain, tmp_path: Path) -> None:
    people = People(main)
    log = tmp_path / "tail.log"
    printed = tmp_path / "rows"
    tail_command = f"tail --from 127.0.0.1:{main.replication_port} --json"
    command = f"exec {sys.executable} -m tcprepl {tail_command} > {printed}"
    tail = Child(["sh", "-c", command], log, cwd=REPOSITORY, stop_signal=signal.SIGINT)
    try:
        first = wait_until("tail prints", lambda: _poke(people, printed))
        people.act()
        marker = people.say(people.bob, "that was all")
        wait_until("the last row", lambda: marker in printed.read_text())
        rows = [json.loads(line) for line in printed.read_text().splitlines()]
    finally:
        code = tail.stop()
    assert code == 0
    events = [row for row in rows if row["stream"] == "events" and row["row"][0] == "ev"]
    truth = main.sql("SELECT stream_ordering, event_id FROM events ORDER BY stream_ordering")
    wanted = [(int(token), event_id) for token, event_id in truth]
    wanted = wanted[[event_id for _, event_id in wanted].index(first) :]
    found = [(row["token"], row["row"][1][0]) for row in events]
    assert found[found.index(wanted[0]) :] == wanted
    typed = [row["row"] for row in rows if row["stream"] == "typing"]
    assert normal(dict(typed)) == normal(people.told.typing)


def _poke(people: People, printed: Path) -> str | None:
    """Say something; return its event id if tail has printed it, as it does once it listens."""
    event_id = people.say(people.alice, "is somebody there?")
    try:
        wait_until("an echo", lambda: event_id in printed.read_text(), timeout_s=2.0)
    except TimeoutError:
        return None
    return event_id
