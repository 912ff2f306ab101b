"""What went wrong behind a relay once: real processes, a real Redis, a writer that is a script.

Whatever happens, a row is held or its absence is told; nothing that is published on the channel
stops later rows, or the relay.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.harness import tcprepl
from tests.interop.processes import wait_until
from tests.interop.relaying import Relay, StubbornRedis
from tests.interop.wire import Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

NAME = "example.com"
POISON = 2**63 - 1


class Writer:
    """An instance of Synapse, as far as a relay sees one: a channel, and pages over HTTP.

    Attributes:
        rows: (stream, instance) to [(token, row)]: what it can still tell.
    """

    def __init__(self, redis: StubbornRedis, port: int) -> None:
        self.rows: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        self.url = f"http://127.0.0.1:{port}"
        self._redis = redis

    def say(self, *lines: str) -> None:
        """Publish *lines*."""
        for line in lines:
            self._redis.command("PUBLISH", NAME, line)

    def page(self, stream: str, instance: str, after: int, upto: int) -> dict[str, Any]:
        """Return the rows in ``(after, upto]`` as the catch-up answers."""
        held = self.rows.get((stream, instance), [])
        found = [[token, row] for token, row in held if after < token <= upto]
        return {"updates": found, "upto_token": upto, "limited": False}


@contextmanager
def writing(redis: StubbornRedis) -> Iterator[Writer]:
    """Run a writer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            stream = asked.path.split("/")[-2]
            query = {name: values[0] for name, values in parse_qs(asked.query).items()}
            page = writer.page(stream, "master", int(query["from_token"]), int(query["upto_token"]))
            body = json.dumps(page, separators=(",", ":")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    writer = Writer(redis, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubbornRedis]:
    """Run Redis."""
    with StubbornRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def writer(redis: StubbornRedis) -> Iterator[Writer]:
    """Run a writer."""
    with writing(redis) as made:
        yield made


@contextmanager
def relaying(redis: StubbornRedis, directory: Path, *options: str) -> Iterator[Relay]:
    """Run a relay that hears the channel."""
    with Relay(NAME, directory, f"redis://127.0.0.1:{redis.port}", *options) as relay:
        relay.wait_up()
        yield relay


def wait_position(relay: Relay, stream: str, token: int, instance: str = "master") -> None:
    """Wait until the relay is at *token*."""
    wait_until(
        f"{stream} is at {token}", lambda: relay.positions().get((stream, instance)) == token
    )


def held(relay: Relay, stream: str, rows: int, after: int = 0) -> list[bytes]:
    """Return the rows that a reader of the relay gets from *after* on."""
    with Wire(relay.port) as wire:
        wire.send(f"REPLICATE {stream} * {after}")
        wait_until(
            f"{rows} rows of {stream}",
            lambda: sum(line.startswith(b"RDATA ") for line in wire.lines) >= rows,
        )
        return [line.split(b" ", 4)[4] for line in wire.lines if line.startswith(b"RDATA ")]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("fetched", [True, False])
def test_a_pair_known_at_0_misses_nothing_while_the_relay_is_away(
    redis: StubbornRedis, writer: Writer, tmp_path: Path, killed: bool, fetched: bool
) -> None:
    options = ["--instance", f"master={writer.url}"] if fetched else []
    with relaying(redis, tmp_path, *options) as relay:
        writer.say("POSITION device_lists master 0 0")
        wait_position(relay, "device_lists", 0)
        relay.kill() if killed else relay.stop()
        writer.rows["device_lists", "master"] = [(n, [f"@{n}:x"]) for n in (1, 2, 3)]
        relay.start()
        relay.wait_up()
        writer.say("POSITION device_lists master 3 3")
        wait_position(relay, "device_lists", 3)
        if fetched:
            assert held(relay, "device_lists", 3) == [b'["@1:x"]', b'["@2:x"]', b'["@3:x"]']
            assert relay.link()["gaps"] == 0
        else:
            assert relay.link()["gaps"] == 1


@pytest.mark.parametrize("anew", [False, True])
def test_a_token_that_no_writer_could_have_costs_its_line_alone(
    redis: StubbornRedis, writer: Writer, tmp_path: Path, anew: bool
) -> None:
    """*anew*: the stream began anew before, so that tokens are shifted here."""
    with relaying(redis, tmp_path) as relay:
        writer.say("POSITION device_lists master 5 5", "POSITION typing master 5 5")
        wait_position(relay, "typing", 5)
        if anew:
            writer.say("POSITION typing master 0 0")
            wait_position(relay, "typing", 6)
        writer.say(
            f'RDATA device_lists master {POISON} ["@poison:x"]',
            f"POSITION device_lists master {POISON} {POISON}",
            f'RDATA typing master {POISON} ["!poison:x",["@a:x"]]',
            f"POSITION typing master {POISON} {POISON}",
            f"POSITION caches master {POISON} {POISON}",
            'RDATA device_lists master 6 ["@good:x"]',
            f'RDATA typing master {1 if anew else 6} ["!good:x",["@a:x"]]',
        )
        wait_position(relay, "device_lists", 6)
        wait_position(relay, "typing", 7 if anew else 6)
        assert held(relay, "device_lists", 1) == [b'["@good:x"]']
        assert relay.link()["up"]
        assert relay.link()["gaps"] == 0
        assert "redis.line.unreadable" in relay.log()
        writer.say("POSITION device_lists master 2 2")
        relay.stop()
        assert "OverflowError" not in relay.log()


def test_instances_that_share_a_sequence_lose_nothing_when_others_wrote(
    redis: StubbornRedis, writer: Writer, tmp_path: Path
) -> None:
    with relaying(redis, tmp_path) as relay:
        writer.say("POSITION caches w1 3 3", "POSITION caches master 3 3")
        writer.say('RDATA caches w1 4 ["f",["a"],1]', 'RDATA caches w1 5 ["f",["a"],1]')
        wait_position(relay, "caches", 5, "w1")
        relay.stop()
        relay.start()
        relay.wait_up()
        # master has written nothing: it stands where the sequence stands
        writer.say("POSITION caches master 5 5", "POSITION caches w1 5 5")
        wait_position(relay, "caches", 5, "master")
        assert relay.link()["gaps"] == 0
        relay.stop()
        relay.start()
        relay.wait_up()
        # and now somebody has
        writer.say("POSITION caches w1 9 9", "POSITION caches master 9 9")
        wait_position(relay, "caches", 9, "master")
        assert relay.link()["gaps"] == 2


def test_a_typing_writer_that_began_anew_and_passed_its_counter_is_noticed(
    redis: StubbornRedis, writer: Writer, tmp_path: Path
) -> None:
    with relaying(redis, tmp_path, "--instance", f"master={writer.url}") as relay:
        writer.say("POSITION typing master 0 0")
        writer.say(*(f'RDATA typing master {n} ["!{n}:x",["@a:x"]]' for n in (1, 2, 3)))
        wait_position(relay, "typing", 3)
        with Wire(relay.port) as reader:
            reader.send("REPLICATE typing * 0")
            reader.wait_for("RDATA typing master 3")
        relay.stop()
        # its process is another one now, in which one room types
        writer.rows["typing", "master"] = [(5, ["!new:x", ["@b:x"]])]
        relay.start()
        relay.wait_up()
        with Wire(relay.port) as reader:
            reader.send("REPLICATE typing master 3")
            writer.say("POSITION typing master 5 5")
            reader.wait_for("RDATA typing")
            lines = [line for line in reader.lines if line[:5] in (b"POSIT", b"RDATA")]
        # the reader is told that rows may be missing before the new ones come
        assert lines[-1].endswith(b'["!new:x",["@b:x"]]')
        assert relay.positions()["typing", "master"] > 5
        watched = tcprepl(*("watch", "typing", "--count", "1", "--from", f"127.0.0.1:{relay.port}"))
        assert watched.stdout == "!new:x @b:x\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["RDATA 6 5 4 3 2", "POSITION 2 6"],
        ["RDATA 4 3 2", "POSITION 2 4", "RDATA 6 5", "POSITION 5 6"],
        ["RDATA 4", "RDATA 3", "RDATA 2", "POSITION 2 4", "RDATA 5", "RDATA 6"],
        ["RDATA 6 5 4 3 2"],
        ["RDATA 2 3", "RDATA 6 5 4", "POSITION 4 6"],
        ["RDATA 6 4 5 3 2", "POSITION 2 6"],
    ],
)
def test_rows_that_come_from_the_newest_to_the_oldest_are_kept(
    redis: StubbornRedis, writer: Writer, tmp_path: Path, lines: list[str]
) -> None:
    """As a remote join has it: `backfill` counts down within what is written together."""
    with relaying(redis, tmp_path) as relay:
        writer.say("POSITION backfill master 1 1", "POSITION device_lists master 1 1")
        wait_position(relay, "backfill", 1)
        for line in lines:
            word, *tokens = line.split()
            if word == "POSITION":
                writer.say(f"POSITION backfill master {tokens[0]} {tokens[1]}")
            for token in tokens if word == "RDATA" else []:
                writer.say(
                    f'RDATA backfill master {token} ["${token}","!r:x","m.x",null,null,null]'
                )
                writer.say('RDATA device_lists master 2 ["@between:x"]')
        rows = [json.loads(row)[0] for row in held(relay, "backfill", 5)]
        assert sorted(rows) == ["$2", "$3", "$4", "$5", "$6"]
        assert relay.link()["gaps"] == 0


def test_a_false_token_that_could_be_costs_no_row_behind_it(
    redis: StubbornRedis, writer: Writer, tmp_path: Path
) -> None:
    """Over Redis, and for a relay of that relay."""
    first_directory, second_directory = tmp_path / "first", tmp_path / "second"
    first_directory.mkdir()
    second_directory.mkdir()
    with relaying(redis, first_directory) as first:
        writer.say("POSITION device_lists master 0 0")
        wait_position(first, "device_lists", 0)
        with Relay(NAME, second_directory, f"127.0.0.1:{first.port}") as second:
            second.wait_up()
            writer.say(*(f'RDATA device_lists master {token} ["@{token}:x"]' for token in (1, 2)))
            writer.say(f'RDATA device_lists master {10**9} ["@false:x"]')
            writer.say(*(f'RDATA device_lists master {token} ["@{token}:x"]' for token in (3, 4)))
            rows = [b'["@%b:x"]' % name for name in (b"1", b"2", b"false", b"3", b"4")]
            assert held(first, "device_lists", 5) == rows
            assert held(second, "device_lists", 5) == rows
