"""SIGKILL of Redis, of the relay, of the writer, at random moments, while rows flow."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.harness import FULL, pause
from tests.interop.processes import wait_until
from tests.interop.relaying import Relay, StubbornRedis, by_pair, tokens_of
from tests.interop.serving import Serve
from tests.interop.synapse import ApiError, request
from tests.interop.wire import Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

ROUNDS = 12 if FULL else 4
STREAMS = ("receipts", "federation", "typing")


class Writer:
    """Publishes numbered rows all the time, each until it is answered."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.published: dict[str, list[int]] = {stream: [] for stream in STREAMS}

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Publish no more."""
        self._stopped.set()
        self._thread.join()

    def _write(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            stream = STREAMS[number % len(STREAMS)]
            while not self._stopped.is_set():
                with suppress(OSError, HTTPException, ApiError, ValueError):
                    self._serve.publish(stream, row(stream, number))
                    self.published[stream].append(number)
                    break
                pause(0.05)
            pause(0.002)


def row(stream: str, number: int) -> object:
    """Return a row of *stream* that carries *number*."""
    if stream == "receipts":
        return ["!r:x", "m.read", "@a:x", f"${number}", {"ts": number}]
    if stream == "federation":
        return ["e", {"edu_type": "x", "content": {"n": number}, "origin": "a", "destination": "b"}]
    return [f"!r{number}:x", ["@a:x"]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[StubbornRedis, Serve, Path]]:
    """Yield a Redis and a server of ours that writes over it."""
    with ExitStack() as stack:
        redis = stack.enter_context(StubbornRedis(tmp_path))
        url = f"redis://127.0.0.1:{redis.port}"
        serve = stack.enter_context(Serve("example.com", tmp_path, "--redis", url))
        yield redis, serve, tmp_path


def restart_redis(redis: StubbornRedis) -> None:
    """Kill Redis and start it again."""
    redis.kill()
    redis.start()


def restart_relay(relay: Relay) -> None:
    """Kill the relay and start it again."""
    relay.kill()
    relay.start()


def restart_serve(serve: Serve) -> None:
    """Kill the writer and start it again."""
    serve.kill()
    serve.start()


def rows_held(relay: Relay, pairs: list[tuple[str, str]]) -> list[bytes]:
    """Return every RDATA and POSITION line that a reader who begins at 0 gets."""
    with Wire(relay.port) as wire:
        wire.send(*(f"REPLICATE {stream} {instance} 0" for stream, instance in pairs))
        positions = relay.positions()

        def level() -> list[bytes] | None:
            lines = wire.lines
            ends = {
                tuple(line.decode().split(" ")[1:3]): int(line.split(b" ")[-1])
                for line in lines
                if line.startswith(b"POSITION ")
            }
            done = all(ends.get(pair, -1) >= positions[pair] for pair in pairs)
            return lines if done else None

        return wait_until("everything was told", level)


def rows_polled(relay: Relay, stream: str) -> list[bytes]:
    """Return what a long poll from 0 on tells, as the lines that would say the same."""
    lines: list[bytes] = []
    position: object = 0
    while True:
        path = f"/_synapse/replication?{stream}={position}&timeout=0&limit=50"
        try:
            table = request(relay.http_port, "GET", path).get(stream)
        except ApiError as refused:
            if refused.status != 410:
                raise
            held = refused.answer["held"]
            lines.append(f"POSITION {stream} master {held} {held}".encode())
            position = refused.answer["position"]
            continue
        if table is None:
            return lines
        lines += [f"RDATA {stream} master {token} []".encode() for token, *_ in table["rows"]]
        position = table["position"]
        lines.append(f"POSITION {stream} master 0 {position}".encode())


def wait_level(relay: Relay, serve: Serve) -> dict[str, list[tuple[int, object]]]:
    """Wait until the relay is where the writer is; return what the writer holds."""
    positions = {s["stream"]: s["position"] for s in serve.status()["streams"]}
    wait_until(
        "the relay is level",
        lambda: all(
            relay.positions().get((stream, "master"), 0) >= positions[stream] for stream in STREAMS
        ),
    )
    held = {}
    for stream in STREAMS:
        rows: list[tuple[int, object]] = []
        while True:
            after = rows[-1][0] if rows else 0
            page = serve.updates(stream, after, positions[stream])
            if not page:
                break
            rows += page
        held[stream] = rows
    return held


def test_with_catch_up_nothing_is_lost_and_nothing_comes_twice(
    world: tuple[StubbornRedis, Serve, Path],
) -> None:
    redis, serve, directory = world
    dice = random.Random(20_261_123)
    options = ["--instance", f"*=http://127.0.0.1:{serve.http_port}"]
    url = f"redis://127.0.0.1:{redis.port}"
    with Relay("example.com", directory, url, *options) as relay:
        relay.wait_up()
        serve.publish("receipts", row("receipts", 0))
        serve.publish("federation", row("federation", 0))
        serve.publish("typing", row("typing", 0))
        wait_until("every pair is known", lambda: len(relay.positions()) >= len(STREAMS))
        victims: list[Callable[[], None]] = [
            lambda: restart_redis(redis),
            lambda: restart_relay(relay),
            lambda: restart_serve(serve),
        ]
        with Writer(serve) as writer:
            for turn in range(ROUNDS):
                pause(dice.uniform(0.1, 0.8))
                victims[turn % 3]()
            relay.wait_up()
            pause(0.5)
            writer.stop()
        wait_until("the writer has Redis", lambda: serve.status()["links"][0]["up"])
        held = wait_level(relay, serve)
        pairs = [(stream, "master") for stream in STREAMS]
        found = by_pair(rows_held(relay, pairs))
        # The rows of typing die with the writer: what it can no longer tell is a gap or a jump.
        for stream in ("receipts", "federation"):
            lines = found[stream, "master"]
            tokens = tokens_of(lines)
            assert tokens == sorted(set(tokens))
            ours = [
                (int(line.split(b" ", 4)[3]), json.loads(line.split(b" ", 4)[4])) for line in lines
            ]
            expected = [one for one in held[stream] if one[0] >= ours[0][0]]
            assert ours == [(token, value) for token, value in expected]
            assert ours[0][0] <= 2
        typing = tokens_of(found["typing", "master"])
        assert typing == sorted(set(typing))


def test_without_catch_up_every_hole_is_announced(
    world: tuple[StubbornRedis, Serve, Path],
) -> None:
    redis, serve, directory = world
    dice = random.Random(7)
    url = f"redis://127.0.0.1:{redis.port}"
    with Relay("example.com", directory, url) as relay:
        relay.wait_up()
        for stream in STREAMS:
            serve.publish(stream, row(stream, 0))
        wait_until("every pair is known", lambda: len(relay.positions()) >= len(STREAMS))
        with Writer(serve) as writer:
            for turn in range(ROUNDS):
                pause(dice.uniform(0.1, 0.6))
                (restart_relay(relay) if turn % 2 else restart_redis(redis))
            relay.wait_up()
            pause(0.5)
            writer.stop()
        wait_until("the writer has Redis", lambda: serve.status()["links"][0]["up"])
        held = wait_level(relay, serve)
        for stream in STREAMS:
            lines = rows_held(relay, [(stream, "master")])
            polled = rows_polled(relay, stream)
            tokens = [token for token, _ in held[stream]]
            assert covered(lines, tokens) == covered(polled, tokens) == [], stream
            assert by_pair(polled).keys() == by_pair(lines).keys() == {(stream, "master")}
            shown, had = (by_pair(told)[stream, "master"] for told in (lines, polled))
            assert tokens_of(shown) == tokens_of(had)
        assert relay.link()["gaps"] > 0
        with Wire(relay.port) as person:
            person.send("STATUS")
            person.wait_for("INFO gap: ")


def covered(lines: list[bytes], tokens: list[int]) -> list[int]:
    """Return those of *tokens* that a reader at 0 neither got nor was told it had missed."""
    wanted = sorted(tokens)
    missed = []
    known = 0
    for line in lines:
        words = line.split(b" ", 4)
        if words[0] == b"RDATA":
            token = int(words[3])
            missed += [one for one in wanted if known < one < token]
            known = token
        elif words[0] == b"POSITION":
            prev, now = int(words[3]), int(words[4])
            if prev > known:
                known = prev  # a gap, announced
            missed += [one for one in wanted if known < one <= now]
            known = max(known, now)
    return missed
