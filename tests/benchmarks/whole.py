"""A whole server in a process of its own, that can be told what to do and watched meanwhile.

`Whole` is the driver's side of ``peers/whole_peer.py``: everything that ``tcprepl serve`` is,
and a control connection on which the peer does what it is asked, one thing at a time.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.driver import PEERS, System
from tests.interop.environments import REPOSITORY
from tests.interop.processes import Child
from tests.ports import free_port

#: How long the peer may take for one thing.
PATIENCE_S = 600.0


class Whole(System):
    """A server with everything on, as ``tcprepl serve`` has it.

    Args:
        settings: Sections of its configuration, beyond names and places.
        wrap: What clients wrap their connections in, when it speaks TLS.

    Attributes:
        http_port: Where it speaks HTTP.
        data: Its data directory.
    """

    name = "tcprepl"
    hello = b"NAME bench\nREPLICATE\n"
    welcome = b"POSITION events "

    def __init__(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        wrap: ssl.SSLContext | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        self.wrap = wrap
        self.data = where / "data"
        self.port, self.http_port, control_port = free_port(), free_port(), free_port()
        config: dict[str, Any] = {"server_name": "example.com", "data_directory": str(self.data)}
        config |= {key: dict(section) for key, section in (settings or {}).items()}
        config.setdefault("replication", {})["listen"] = f"127.0.0.1:{self.port}"
        config.setdefault("http", {})["listen"] = f"127.0.0.1:{self.http_port}"
        command = [sys.executable, PEERS / "whole_peer.py", str(control_port), json.dumps(config)]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        self._child = Child(command, where / "log", cwd=where, env=environment)
        self._child.wait_ready("READY", lambda: "READY" in self._child.output())
        self._control = socket.create_connection(("127.0.0.1", control_port), PATIENCE_S)
        self._answers = self._control.makefile("rb")

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._child.pid

    def ask(self, what: str, **arguments: object) -> Any:
        """Have the peer do something, and return its answer.

        Raises:
            RuntimeError: it failed; the text says how.
        """
        self.begin(what, **arguments)
        return self.end()

    def begin(self, what: str, **arguments: object) -> None:
        """Have the peer begin with something; `end` waits for the answer."""
        self._control.sendall(json.dumps([what, arguments]).encode() + b"\n")

    def end(self) -> Any:
        """Return the answer to what was begun first."""
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the server ended:\n{self._child.output()[-3000:]}")
        answer, failure = json.loads(line)
        if failure is not None:
            raise RuntimeError(failure)
        return answer

    def publish(self, turns: int, size: int, kind: str = "batch") -> None:
        """Have *turns* times *size* rows published."""
        self.ask("publish", turns=turns, size=size, kind=kind)

    def publish_stamped(self, size: int = 1) -> None:
        """Do nothing: latency is not measured here."""

    def stop(self) -> None:
        """Stop the process."""
        self._answers.close()
        self._control.close()
        self._child.stop()
        self._directory.cleanup()
