"""A real Synapse at a Unix socket where its Redis comes late, is killed, and comes again.

It lives twice, with redis-server and with the bus, and the same is done to both: so it is seen,
and not only said, which errors in Synapse's logs are there without a bus as well.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.interop.busing import Bus
from tests.interop.complaints import LOST, complaints, is_of_a_lost_connection
from tests.interop.environments import find_program
from tests.interop.processes import Child, Restartable, accepts, wait_until
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain, SynapseWorker, User
from tests.interop.traffic import Following
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


class RedisAtSocket(Restartable):
    """A redis-server at a Unix socket, and nowhere else."""

    def __init__(self, directory: Path, path: Path) -> None:
        super().__init__(directory / "redis.log")
        self._path = path

    def start(self) -> None:
        """Start it; who connects sees when it is there."""
        program = find_program("redis-server", "redis-server")
        command = [program, "--port", "0", "--unixsocket", str(self._path), "--save", ""]
        self._child = Child(command, self.log_path)


@dataclass(frozen=True)
class Life:
    """What a life left behind.

    Attributes:
        logs: Those of main and worker.
        status: Of the bus, while all were there.
    """

    logs: list[str]
    status: Any

    def errors(self) -> list[str]:
        """Return the entries that are errors."""
        return [entry for log in self.logs for entry in complaints(log)]

    def kinds(self) -> set[str]:
        """Return what kinds of errors there are: the exception, or who says it."""
        found: set[str] = set()
        for entry in self.errors():
            if is_of_a_lost_connection(entry):
                found.add(LOST)
                continue
            raised = re.findall(r"^([\w.]+)(?::.*)?$", entry.rstrip(), re.MULTILINE)
            found.add(raised[-1] if raised else " ".join(entry.split()[2:]))
        return found


class Homeserver:
    """A main, a worker that writes to-device messages, and two people in a room."""

    def __init__(self, postgres: Postgres, socket: Path) -> None:
        self.main = SynapseMain("newest", postgres=postgres)
        self._port = free_port()
        config = yaml.safe_load(self.main.config_path.read_text())
        config["instance_map"]["w1"] = {"host": "127.0.0.1", "port": self._port}
        config["stream_writers"] = {"to_device": ["w1"]}
        config["redis"] = {"enabled": True, "path": str(socket)}
        self.main.config_path.write_text(yaml.safe_dump(config))
        resources = [{"names": ["replication", "client"]}]
        listener = {"type": "http", "port": self._port, "resources": resources}
        listeners = [{**listener, "bind_addresses": ["127.0.0.1"]}]
        app = "synapse.app.generic_worker"
        self.worker = SynapseWorker(self.main, "w1", app, {"worker_listeners": listeners})
        self.ports = {"main": self.main.http_replication_port, "w1": self._port}
        self._people: tuple[User, User, str] | None = None
        self._said: set[str] = set()
        self._told: set[str] = set()

    def live(self, redis: Restartable) -> Life:
        """Start, and only then what is its Redis; that is killed and started until it is felt."""
        marks = {process: len(process.log()) for process in (self.main, self.worker)}
        self.main.start()
        self.worker.start()
        self.worker.child.wait_ready("w1 listens", lambda: accepts(self._port) or None)
        for process, mark in marks.items():
            self._await_failure(process, mark)
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(self._say)  # somebody asks while there is none: it is done later
            redis.start()
            said.result()
        self._await_all()
        self._say()
        self._await_all()
        while not any(LOST in process.log()[mark:] for process, mark in marks.items()):
            os.kill(redis.pid, signal.SIGSTOP)  # so that it ends with requests at it
            for _ in range(3):  # what the first makes the worker publish is there by the last
                self._tell()
            redis.kill()
            redis.start()
            self._say()
            self._await_all()
        status = redis.status() if isinstance(redis, Bus) else None
        self.worker.stop()
        self.main.stop()
        redis.stop()
        return Life([process.log()[mark:] for process, mark in marks.items()], status)

    def close(self) -> None:
        """Stop for good."""
        self.worker.close()
        self.main.close()

    def _await_failure(self, process: Restartable, after: int) -> None:
        """Wait until a process has seen that there is no Redis."""
        failed = re.compile("Connection to redis server .* failed")
        wait_until("it finds no Redis", lambda: failed.search(process.log(), after) is not None)

    def _meet(self) -> tuple[User, User, str]:
        """Return alice at the main, bob at the worker, and their room; make them once."""
        if self._people is None:
            alice, bob = self.main.register("alice"), self.main.register("bob")
            room = alice.create_room(preset="public_chat")
            bob.join(room)
            self._people = (alice, bob.at(self._port), room)
            self._following = (Following(alice), Following(bob.at(self._port)))
        return self._people

    def _say(self) -> None:
        """Let alice say something at the main, and bob tell her something at the worker."""
        alice, _, room = self._meet()
        text = f"number {len(self._said)}"
        alice.send(room, text)
        self._said.add(text)
        self._tell()

    def _tell(self) -> None:
        """Let bob tell alice something at the worker."""
        alice, bob, _ = self._meet()
        text = f"number {len(self._told)}"
        bob.send_to_device("x.told", alice, {"text": text})
        self._told.add(text)

    def _await_all(self) -> None:
        """Wait until each has got what the other said at the other process."""
        at_main, at_worker = self._following
        wait_until("bob got it", lambda: at_worker.look().messages >= self._said)
        wait_until("alice got it", lambda: at_main.look().told >= self._told)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Life, Life]]:
    """Yield the lives with redis-server, and with the bus."""
    directory = tmp_path_factory.mktemp("late")
    path = directory / "redis.sock"
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        homeserver = Homeserver(postgres, path)
        stack.callback(homeserver.close)
        redis = RedisAtSocket(directory, path)
        stack.callback(redis.close)
        bus = Bus(homeserver.main.server_name, directory)
        stack.callback(bus.close)
        bus.options += ["--listen-redis", f"unix:{path}:mode=666"]
        for name, port in homeserver.ports.items():
            bus.options += ["--instance", f"{name}=http://127.0.0.1:{port}"]
        with_redis = homeserver.live(redis)
        path.unlink(missing_ok=True)
        yield with_redis, homeserver.live(bus)


def test_it_does_not_matter_whether_synapse_or_the_bus_starts_first(
    lives: tuple[Life, Life],
) -> None:
    """What clients do reaches the other process: the lives were waited for. And it is the bus's."""
    _, with_bus = lives
    writers = {(stream["stream"], stream["instance"]) for stream in with_bus.status["streams"]}
    assert writers >= {("events", "master"), ("to_device", "w1")}
    peers = [peer for peer in with_bus.status["peers"] if peer["dialect"] == "redis"]
    assert [peer["address"] for peer in peers] == ["unix:", "unix:"]
    (link,) = with_bus.status["links"]
    assert link["gaps"] == 0


def test_errors_are_those_that_redis_causes_as_well(lives: tuple[Life, Life]) -> None:
    with_redis, with_bus = (life.kinds() for life in lives)
    assert LOST in with_redis
    assert with_bus <= with_redis
