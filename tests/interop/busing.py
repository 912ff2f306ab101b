"""Our own bus as a process, and a real Synapse of many processes that takes it for its Redis."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import yaml

from tests.interop.complaints import complaints
from tests.interop.environments import REPOSITORY
from tests.interop.processes import Child, Restartable, accepts
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain, SynapseWorker, User, request
from tests.ports import free_port


class Bus(Restartable):
    """``tcprepl bus`` in a directory of its own; started, stopped, killed any number of times.

    Attributes:
        host: Of the listener in Redis's place; loopback, unless changed.
        port: Its port.
        line_port: The replication listener.
        http_port: The HTTP listener.
    """

    def __init__(
        self, server_name: str, directory: Path, *options: str, data: str | None = None
    ) -> None:
        super().__init__(directory / "bus.log")
        self.server_name = server_name
        self.port = free_port()
        self.line_port = free_port()
        self.http_port = free_port()
        self.host = "127.0.0.1"
        self._data = data or str(directory / "bus")
        self.options = list(options)

    def start(self) -> None:
        """Start, with the data that an earlier start left, and wait until it listens."""
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "bus"]
        command += ["--server-name", self.server_name, "--data", self._data]
        command += ["--listen-redis", f"{self.host}:{self.port}"]
        command += ["--listen", f"127.0.0.1:{self.line_port}"]
        command += ["--http", f"127.0.0.1:{self.http_port}", *self.options]
        self._child = Child(command, self.log_path, cwd=REPOSITORY, starts_warm=True)
        self._child.wait_ready("the bus listens", lambda: accepts(self.port) or None)

    def status(self) -> Any:
        """Return the status document."""
        return request(self.http_port, "GET", "/_tcprepl/v1/status")


class BigFleet:
    """A Synapse on PostgreSQL: a main, four writers and readers, and a federation sender.

    Args:
        release: The release, of those whose processes talk over Redis alone.
        postgres: Its database.
        redis: What has the port of its Redis.
        through: For some processes another port that leads there.
        nameless: Processes that do not say a name to it.
    """

    def __init__(
        self,
        release: str,
        postgres: Postgres,
        redis: Any,
        through: Mapping[str, int] = MappingProxyType({}),
        nameless: Collection[str] = (),
    ) -> None:
        self._through = through
        self._nameless = nameless
        self.main = SynapseMain(release, postgres=postgres, redis=redis)
        names = ("ew1", "ew2", "tw", "gw", "fed1")
        self.ports = {name: free_port() for name in names}
        config = yaml.safe_load(self.main.config_path.read_text())
        for name in names:
            config["instance_map"][name] = {"host": "127.0.0.1", "port": self.ports[name]}
        config["stream_writers"] = {
            "events": ["ew1", "ew2"],
            "typing": ["tw"],
            "to_device": ["tw"],
            "presence": ["ew1"],
            "receipts": ["ew2"],
        }
        config["federation_sender_instances"] = ["fed1"]
        config["redis"] = {**config["redis"], "username": "main", "password": "any"}
        self.main.config_path.write_text(yaml.safe_dump(config))
        self.workers = {name: self._worker(name) for name in names}

    def _worker(self, name: str) -> SynapseWorker:
        listener = {
            "type": "http",
            "port": self.ports[name],
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["replication", "client"]}],
        }
        app = "synapse.app.generic_worker"
        redis = self.main.redis
        assert redis is not None
        port = self._through.get(name, redis.port)
        own = {"enabled": True, "host": "127.0.0.1", "port": port}
        said = {} if name in self._nameless else {"username": name, "password": "any"}
        config: dict[str, object] = {"worker_listeners": [listener], "redis": {**own, **said}}
        return SynapseWorker(self.main, name, app, config)

    def __enter__(self) -> Self:
        self.main.start()
        for worker in self.workers.values():
            worker.start()
        for name, worker in self.workers.items():
            port = self.ports[name]
            worker.child.wait_ready(f"{name} listens", lambda port=port: accepts(port))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.stop()
        self.main.close()

    def at(self, name: str, user: User) -> User:
        """Return *user*, calling the worker *name*."""
        return user.at(self.ports[name])

    def complaints(self) -> list[str]:
        """Return what the processes logged as errors, without what is special to one run."""
        found: list[str] = []
        for process in (self.main, *self.workers.values()):
            found += complaints(process.log())
        return found
