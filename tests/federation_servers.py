"""Homeservers made of real processes: ``tcprepl serve`` with TLS, and its federation sender."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme
import yaml

from tests.interop.processes import Child, accepts, wait_until
from tests.ports import free_port

ROOM = "!room:a.example"


class Homeserver:
    """A writer, and a federation sender beside it; both can be killed and started again.

    Attributes:
        name: The server name.
        http_port: HTTPS: federation, and the paths for our own processes.
        replication_port: The line protocol.
        directory: Where everything is.
    """

    def __init__(
        self, directory: Path, name: str, authority: trustme.CA, *, http_port: int | None = None
    ) -> None:
        self.directory = directory / name.replace(":", "_")
        self.directory.mkdir()
        self.name = name
        self.http_port = http_port or free_port()
        self.replication_port = free_port()
        self.resolve: dict[str, str] = {}
        self.trusted = b"".join([authority.cert_pem.bytes()])
        issued = authority.issue_cert(name.rpartition(":")[0] or name, "127.0.0.1")
        self.key = self.directory / "tls.key"
        self.certificate = self.directory / "tls.crt"
        issued.private_key_pem.write_to_path(str(self.key))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(self.certificate), append=True)
        self.data = self.directory / "data"
        self.sender_data = self.directory / "sender"
        self.senders: tuple[str, ...] = ()
        self.extra_options: tuple[str, ...] = ()
        self.writer: Child | None = None
        self.sender: Child | None = None
        self._tails: list[Child] = []

    def trust(self, pem: bytes) -> None:
        """Trust further certificates."""
        self.trusted += pem

    def place(self, other: Homeserver) -> None:
        """Say where another server is."""
        self.resolve[other.name] = f"127.0.0.1:{other.http_port}"

    # -- processes ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start both processes."""
        self.start_writer()
        self.start_sender()

    def start_writer(self) -> None:
        """Start the writer, and wait until it listens."""
        (self.directory / "ca.pem").write_bytes(self.trusted)
        config = {
            "server_name": self.name,
            "data_directory": str(self.data),
            "replication": {"listen": f"127.0.0.1:{self.replication_port}"},
            "http": {
                "listen": f"127.0.0.1:{self.http_port}",
                "tls": {"certificate": str(self.certificate), "private_key": str(self.key)},
            },
            "federation": {
                "ca": str(self.directory / "ca.pem"),
                "resolve": self.resolve,
                "allow_private_addresses": True,
                "senders": list(self.senders),
            },
        }
        path = self.directory / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "tcprepl", "serve", "--config", path]
        self.writer = Child(command, self.directory / "writer.log", starts_warm=True)
        self.writer.wait_ready("it listens", lambda: accepts(self.http_port) or None)

    def start_sender(self, name: str = "fed1", data: Path | None = None) -> None:
        """Start the sender; it need not have connected when this returns."""
        self.sender = self.spawn_sender(name, data or self.sender_data)

    def spawn_sender(self, name: str, data: Path | str, *options: str, log: str = "") -> Child:
        """Start a sender, and wait until it runs; or until it waits, as a standby."""
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "federation-sender"]
        command += ["--from", f"127.0.0.1:{self.replication_port}", "--data", data]
        command += ["--name", name, "--signing-key", self.data / "signing.key"]
        command += ["--ca", self.directory / "ca.pem", "--allow-private"]
        command += ["--server-name", self.name, "--retry-first", "0.3", "--retry-cap", "1"]
        for placed, where in self.resolve.items():
            command += ["--resolve", f"{placed}={where}"]
        if self.senders:
            command += ["--senders", ",".join(self.senders)]
        command += [*self.extra_options, *options]
        child = Child(command, self.directory / f"{log or name}.log", starts_warm=True)
        if "--standby" in options:
            return child
        said = child.output().count("tcprepl sends")
        child.wait_ready("it runs", lambda: child.output().count("tcprepl sends") > said or None)
        return child

    def stop(self) -> None:
        """Stop everything."""
        for child in (*self._tails, self.sender, self.writer):
            if child is not None and child.running:
                child.stop()

    # -- what people do -----------------------------------------------------------------------

    def request(self, method: str, path: str, body: object | None = None) -> Any:
        """Make a request as one of our own processes."""
        data = None if body is None else json.dumps(body).encode()
        url = f"https://127.0.0.1:{self.http_port}{path}"
        asked = urllib.request.Request(url, data, method=method)
        context = ssl.create_default_context(cadata=self.trusted.decode())
        with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
            return json.loads(answer.read())

    def send_edu(self, **edu: object) -> Any:
        """Queue an EDU by HTTP, again until the writer has taken it."""

        def attempt() -> Any:
            try:
                return self.request("POST", "/_tcprepl/v1/edus", edu)
            except (OSError, urllib.error.HTTPError):
                return None

        return wait_until("the EDU is taken", attempt)

    def put_hosts(self, room_id: str, *hosts: str) -> None:
        """Say which servers are in a room."""
        path = f"/_tcprepl/v1/rooms/{quote(room_id)}/hosts"
        self.request("PUT", path, {"hosts": list(hosts)})

    def tail(self, *streams: str) -> Child:
        """Follow streams by ``tcprepl tail --json``, from the start."""
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "tail", *streams]
        command += ["--from", f"127.0.0.1:{self.replication_port}", "--since", "start", "--json"]
        child = Child(command, self.directory / f"tail{len(self._tails)}.log", starts_warm=True)
        self._tails.append(child)
        return child

    def fed(self, *words: str) -> Any:
        """Run ``tcprepl fed --json`` and return what it says."""
        command = [sys.executable, "-m", "tcprepl", "fed", "--json", "--data", self.sender_data]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def rows_of(tail: Child, stream: str | None = None) -> list[Any]:
    """Return the rows that a tail has printed."""
    found = []
    for line in tail.output().splitlines():
        if line.startswith("{"):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the end of the file, half written
            if stream in (None, row["stream"]):
                found.append(row["row"])
    return found


def wait_for_row(tail: Child, stream: str, wanted: object) -> float:
    """Wait until a tail has printed *wanted*; returns how many seconds that took."""
    began = time.monotonic()
    wait_until(f"{wanted} on {stream}", lambda: wanted in rows_of(tail, stream) or None)
    return time.monotonic() - began


def typing_edu(to: Mapping[str, object] | str, user: str, *, typing: bool) -> dict[str, object]:
    """Return the arguments of a typing EDU for `Homeserver.send_edu`."""
    content = {"room_id": ROOM, "user_id": user, "typing": typing}
    return {
        "destination": to,
        "edu_type": "m.typing",
        "content": content,
        "key": [ROOM, user],
    }
