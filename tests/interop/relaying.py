"""Our own relay as a process, a real Synapse with a worker over Redis, and rows by pair."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.interop.environments import REPOSITORY, find_program
from tests.interop.processes import Child, Restartable, accepts, wait_until
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain, SynapseWorker, request
from tests.ports import free_port

#: Lines by (stream, instance).
ByPair = dict[tuple[str, str], list[bytes]]


class Relay(Restartable):
    """``tcprepl relay`` in a directory of its own; started and stopped any number of times.

    Attributes:
        port: The replication listener.
        http_port: The HTTP listener.
    """

    def __init__(
        self, server_name: str, directory: Path, upstream: str, *options: str, name: str = "relay"
    ) -> None:
        super().__init__(directory / f"{name}.log")
        self.server_name = server_name
        self.upstream = upstream
        self.port = free_port()
        self.http_port = free_port()
        self._data = directory / name
        self._options = options

    def start(self) -> None:
        """Start, with the data that an earlier start left, and wait until it listens."""
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "relay"]
        command += ["--upstream", self.upstream, "--server-name", self.server_name]
        command += ["--data", self._data, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--http", f"127.0.0.1:{self.http_port}", *self._options]
        self._child = Child(command, self.log_path, cwd=REPOSITORY, starts_warm=True)
        self._child.wait_ready(
            "the relay listens", lambda: accepts(self.port) and accepts(self.http_port)
        )

    def status(self) -> Any:
        """Return the status document."""
        return request(self.http_port, "GET", "/_tcprepl/v1/status")

    def link(self) -> Any:
        """Return what the status says of the upstream."""
        return self.status()["links"][0]

    def positions(self) -> dict[tuple[str, str], int]:
        """Return the position of each (stream, instance)."""
        streams = self.status()["streams"]
        return {(one["stream"], one["instance"]): one["position"] for one in streams}

    def wait_up(self) -> None:
        """Wait until the upstream is there."""
        wait_until("the upstream is there", lambda: self.link()["up"])


class StubbornRedis(Restartable):
    """A Redis server that can be killed and started again on its port."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "redis.log")
        self.port = free_port()
        self._directory = directory

    def start(self, *options: str) -> None:
        """Start it and wait until it answers."""
        program = find_program("redis-server", "redis-server")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        self._child = Child([*command, "--dir", str(self._directory)], self.log_path)
        self._child.wait_ready("Redis accepts connections", lambda: accepts(self.port) or None)

    def command(self, *words: str) -> str:
        """Run one command with redis-cli and return what it printed."""
        program = find_program("redis-cli", "redis-tools")
        ran = subprocess.run(
            [program, "-p", str(self.port), *words], capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()


class Fleet:
    """A Synapse on PostgreSQL and Redis: a main, and a worker that writes streams."""

    def __init__(
        self, release: str, postgres: Postgres, redis: StubbornRedis, worker_name: str = "w1"
    ) -> None:
        as_server: Any = redis  # it has the port, which is all that is asked of it
        self.main = SynapseMain(release, postgres=postgres, redis=as_server)
        self.worker_http_port = free_port()
        config = yaml.safe_load(self.main.config_path.read_text())
        config["instance_map"][worker_name] = {"host": "127.0.0.1", "port": self.worker_http_port}
        config["stream_writers"] = {"account_data": [worker_name], "presence": [worker_name]}
        self.main.config_path.write_text(yaml.safe_dump(config))
        listener = {
            "type": "http",
            "port": self.worker_http_port,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["replication"]}],
        }
        self.worker = SynapseWorker(
            self.main, worker_name, "synapse.app.generic_worker", {"worker_listeners": [listener]}
        )

    def __enter__(self) -> Self:
        self.main.start()
        self.start_worker()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.worker.stop()
        self.main.close()

    def start_worker(self) -> None:
        """Start the worker and wait until it answers."""
        self.worker.start()
        self.worker.child.wait_ready("the worker listens", lambda: accepts(self.worker_http_port))

    def relay_options(self) -> list[str]:
        """Return the options that tell a relay where missed rows are."""
        return [
            "--instance",
            f"main=http://127.0.0.1:{self.main.http_replication_port}",
            "--instance",
            f"{self.worker.name}=http://127.0.0.1:{self.worker_http_port}",
        ]


def by_pair(lines: Iterable[bytes]) -> ByPair:
    """Return the RDATA lines of *lines* by (stream, instance), in order."""
    found: ByPair = {}
    for line in lines:
        if line.startswith(b"RDATA "):
            _, stream, instance, _ = line.split(b" ", 3)
            found.setdefault((stream.decode(), instance.decode()), []).append(line)
    return found


def tokens_of(lines: Iterable[bytes]) -> list[int]:
    """Return the tokens of RDATA lines, ``batch`` left out."""
    tokens = (line.split(b" ", 4)[3] for line in lines)
    return [int(token) for token in tokens if token != b"batch"]


def row_of(line: bytes) -> Any:
    """Return the row of an RDATA line."""
    return json.loads(line.split(b" ", 4)[4])
