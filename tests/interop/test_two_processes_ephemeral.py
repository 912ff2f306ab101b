"""A writer and a worker as processes: typing and presence, through kill -9 of either."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import Running, Server, start, tcprepl, wait_until

ROOM = "!room:example.com"
OTHER = "!other:example.com"
ALICE = "@alice:example.com"
BOB = "@bob:example.com"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server with data of its own."""
    with Server(tmp_path / "server") as running:
        yield running


def say(server: Server, *words: str) -> None:
    """Run a command that the server takes without a word."""
    done = tcprepl(*words, "--to", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def newest_peer(server: Server) -> int:
    """Return the number of the newest connection; 0 without any."""
    peers = server.request("GET", "/_tcprepl/v1/status")["peers"]
    return max((peer["conn_id"] for peer in peers), default=0)


@contextmanager
def watch(server: Server, where: Path, what: str, *words: str) -> Iterator[Running]:
    """Run a worker that prints what it follows; it is connected when the block begins."""
    before = newest_peer(server)
    with start(where, "watch", what, *words, "--from", server.address) as running:
        wait_until(lambda: newest_peer(server) > before, "the worker is connected")
        yield running


def test_worker_prints_what_the_writer_was_told(server: Server, tmp_path: Path) -> None:
    with (
        watch(server, tmp_path, "typing") as everything,
        watch(server, tmp_path, "typing", OTHER) as one_room,
        watch(server, tmp_path, "presence") as presence,
        watch(server, tmp_path, "presence", BOB, "--json") as bob,
    ):
        say(server, "typing", "start", ROOM, ALICE)
        say(server, "typing", "start", ROOM, BOB, "--timeout", "120000")
        say(server, "typing", "start", OTHER, ALICE)
        say(server, "typing", "stop", ROOM, ALICE)
        assert everything.wait_for_lines(4) == [
            f"{ROOM} {ALICE}",
            f"{ROOM} {ALICE} {BOB}",
            f"{OTHER} {ALICE}",
            f"{ROOM} {BOB}",
        ]
        assert one_room.wait_for_lines(1) == [f"{OTHER} {ALICE}"]
        say(server, "presence", "set", ALICE, "online", "--status-msg", "back\nat last")
        say(server, "presence", "set", BOB, "busy")
        say(server, "presence", "set", ALICE, "unavailable")
        assert presence.wait_for_lines(3) == [
            f"{ALICE} online (back\\u000aat last)",
            f"{BOB} busy",
            f"{ALICE} unavailable",
        ]
        assert '"state": "busy"' in bob.wait_for_lines(1)[0]
        late = tcprepl("watch", "typing", "--count", "2", "--from", server.address)
        assert (late.returncode, late.stdout) == (0, f"{OTHER} {ALICE}\n{ROOM} {BOB}\n")
        assert presence.stop(signal.SIGINT) == 0


def test_who_falls_silent_is_taken_off(server: Server, tmp_path: Path) -> None:
    with watch(server, tmp_path, "typing") as worker:
        say(server, "typing", "start", ROOM, ALICE, "--timeout", "0")
        assert worker.wait_for_lines(2) == [f"{ROOM} {ALICE}", f"{ROOM} -"]


def test_killed_writer_forgets_and_the_worker_with_it(server: Server, tmp_path: Path) -> None:
    with (
        watch(server, tmp_path, "typing") as typing,
        watch(server, tmp_path, "presence") as presence,
    ):
        for _ in range(2):
            seen = len(typing.lines)
            say(server, "typing", "start", ROOM, ALICE, "--timeout", "120000")
            say(server, "presence", "set", BOB, "busy")
            assert typing.wait_for_lines(seen + 1)[-1] == f"{ROOM} {ALICE}"
            assert presence.wait_for_lines(seen + 1)[-1] == f"{BOB} busy"
            server.process.kill()
            server.start()
            assert typing.wait_for_lines(seen + 2)[-1] == f"{ROOM} -"
            assert presence.wait_for_lines(seen + 2)[-1] == f"{BOB} offline"
        say(server, "typing", "start", ROOM, BOB)
        assert typing.wait_for_lines(5)[-1] == f"{ROOM} {BOB}"
    assert "Traceback" not in typing.stderr + presence.stderr


def test_killed_worker_knows_everything_again(server: Server, tmp_path: Path) -> None:
    say(server, "typing", "start", ROOM, ALICE, "--timeout", "120000")
    say(server, "typing", "start", OTHER, ALICE, "--timeout", "120000")
    say(server, "typing", "stop", OTHER, ALICE)
    say(server, "presence", "set", BOB, "busy")
    for number in range(3):
        with (
            watch(server, tmp_path, "typing") as typing,
            watch(server, tmp_path, "presence") as presence,
        ):
            users = " ".join([ALICE, *(f"@u{n}:example.com" for n in range(number))])
            typing.wait_for_output(re.escape(f"{ROOM} {users}\n"))
            assert presence.wait_for_lines(1) == [f"{BOB} busy"]
            assert all(not line.startswith(OTHER) or line.endswith(" -") for line in typing.lines)
            typing.kill()
            presence.kill()
        say(server, "typing", "start", ROOM, f"@u{number}:example.com", "--timeout", "120000")


def test_a_change_is_seen_at_once(server: Server, tmp_path: Path) -> None:
    with watch(server, tmp_path, "typing") as worker:
        say(server, "typing", "start", ROOM, ALICE)
        worker.wait_for_lines(1)
        path = f"/_matrix/client/v3/rooms/{ROOM}/typing/{BOB}?user_id={BOB}"
        started = time.monotonic()
        server.request("PUT", path, {"typing": True, "timeout": 30_000})
        worker.wait_for_lines(2)
        assert time.monotonic() - started < 1.0


def test_refusals_are_words(server: Server) -> None:
    done = tcprepl("typing", "start", ROOM, "@eve:elsewhere.example", "--to", server.url)
    assert done.returncode == 1
    assert "elsewhere.example" in done.stderr or "user" in done.stderr
    assert "Traceback" not in done.stderr
    done = tcprepl("presence", "set", ALICE, "asleep", "--to", server.url)
    assert done.returncode == 2
    assert "asleep" in done.stderr
