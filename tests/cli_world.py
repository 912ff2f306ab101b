"""A server and the reading commands on a fake clock: what their unit tests share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl.addresses import Address
from tcprepl.cli import following, watch
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tests.wire import Network, run_until

ADDRESS = Address("test:1", "test", 1)


class CliWorld:
    """A network whose only server has a memory log; commands run in it to their end.

    Attributes:
        network: The network, and its clock.
        log: The server's log.
        publisher: Writes to it.
        server: The line protocol.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network = Network()
        registry = Registry()
        self.log = MemoryLog(registry, lambda: 0)
        for stream in ("typing", "device_lists", "caches"):
            self.log.ensure(stream, "master")
        self.publisher = Publisher(self.log, registry, "master")
        self.server = ReplicationServer(self.network.clock, self.log, registry, "example.com")
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._monkeypatch = monkeypatch
        listening = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))
        assert listening.called
        for module in (following, watch):
            monkeypatch.setattr(
                module,
                "client_endpoint",
                lambda reactor, address: self.network.client_endpoint("x"),
            )

    def publish(self, stream: str, *rows: Any, batch: bool = False) -> None:
        """Publish rows."""
        appended = self.publisher.publish(stream, list(rows), batch=batch)
        assert appended.called

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call *function* when a command has run for so long."""
        self._later.append((seconds, function))

    def run(self, main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run ``main(reactor)`` to its end, as the runner does, and return its result."""
        task = Deferred.fromCoroutine(main(self.network.clock))
        for seconds, function in self._later:
            self.network.clock.callLater(seconds, function)
        self._later = []
        run_until(self.network, lambda: task.called)
        results: list[Any] = []
        failures: list[Any] = []
        _ = task.addCallbacks(results.append, failures.append)
        if failures:
            failures[0].raiseException()
        self.network.settle()
        return results[0]

    def adopt(self, command_module: Any) -> None:
        """Make a command's module run its work here, without touching the process's logs."""
        self._monkeypatch.setattr(command_module, "run_until_done", self.run)
        self._monkeypatch.setattr(command_module.logs, "configure", lambda *_: None)
        self._monkeypatch.setattr(command_module.logs, "only_warnings", lambda: None)
