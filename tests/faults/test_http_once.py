"""An id of a request counts within its scope, and for as long as the disk promises."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
import yaml
from signedjson.key import read_signing_keys

from tcprepl.federation.wire.edu import build_edu
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.wire.transaction import build_body
from tests.federation_servers import Homeserver, rows_of
from tests.interop.processes import Child, accepts, wait_until
from tests.ports import free_port

import subprocess  # isort: skip
import sys  # isort: skip


class Served:
    """``tcprepl serve`` with tokens of every kind, on a disk that stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.config = directory / "config.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "server_name": "hs.example",
                    "data_directory": str(directory / "data"),
                    "replication": {"listen": f"127.0.0.1:{free_port()}"},
                    "streams": {"extra": ["jobs"]},
                    "http": {
                        "listen": f"127.0.0.1:{self.port}",
                        "token": "one-token",
                        "replication_secret": "another-secret",
                        "client_tokens": [{"token": "proxy", "user_id": None}],
                    },
                }
            )
        )
        self.child: Child | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "tcprepl", "serve", "--config", str(self.config)]
        self.child = Child(command, self.directory / "log", starts_warm=True)
        self.child.wait_ready("it listens", lambda: accepts(self.port) or None)

    def kill(self) -> None:
        """SIGKILL, and start again."""
        assert self.child is not None
        self.child.kill()
        self.start()

    def ask(self, method: str, path: str, body: object, token: str = "one-token") -> Any:
        """Make a request; a refusal is (status, answer)."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def rows(self, stream: str) -> list[Any]:
        """Return the rows of a stream."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/_synapse/replication?{stream}=-1&timeout=0&limit=1000",
            headers={"Authorization": "Bearer one-token"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            found = json.loads(answer.read())
        return [row[1] for row in found[stream]["rows"]] if stream in found else []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A running server."""
    made = Served(tmp_path)
    made.start()
    yield made
    assert made.child is not None
    made.child.stop()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_two_devices_of_one_user_do_not_swallow_each_other(served: Served) -> None:
    """Each counts its transactions for itself; a repetition counts once, also after a kill."""
    tokens = [
        served.ask(
            "POST",
            "/_matrix/client/v3/login",
            {
                "type": "m.login.token",
                "token": "proxy",
                "identifier": {"type": "m.id.user", "user": "alice"},
                "device_id": device,
            },
        )["access_token"]
        for device in ("D1", "D2")
    ]
    for round_ in range(2):
        for number, token in enumerate(tokens):
            messages = {"@bob:hs.example": {"PHONE": {"from": number}}}
            served.ask(
                "PUT", "/_matrix/client/v3/sendToDevice/m.test/1", {"messages": messages}, token
            )
        if not round_:
            served.kill()
    rows = served.rows("to_device_messages")
    assert [row["content"]["from"] for row in rows] == [0, 1]
    assert len({row["message_id"] for row in rows}) == 2


def test_publishers_do_not_swallow_each_other(served: Served) -> None:
    """An id of one token, one instance and one path is not that of another."""
    path = "/_tcprepl/v1/streams/jobs/rows?txn_id=1"
    for _ in range(2):
        served.ask("POST", path, ["token"])
        served.ask("POST", path, ["secret"], "another-secret")
        served.ask("POST", f"{path}&instance=w1", ["w1"])
        served.ask("POST", f"{path}&instance=w2", ["w2"])
        served.kill()
    assert sorted(served.rows("jobs")) == ["secret", "token", "w1", "w2"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Homeserver, Homeserver]]:
    """A homeserver that listens, and one whose name and key we use."""
    authority = trustme.CA()
    ours = Homeserver(tmp_path, "ours.example", authority)
    theirs = Homeserver(tmp_path, "theirs.example", authority)
    ours.place(theirs)
    try:
        ours.start_writer()
        theirs.start_writer()
        yield ours, theirs
    finally:
        ours.stop()
        theirs.stop()


def test_a_message_that_comes_in_two_transactions_is_one(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    """Sender and message id name it, over a kill and over transactions."""
    ours, theirs = pair
    with (theirs.data / "signing.key").open(encoding="ascii") as stream:
        signer = Signer("theirs.example", read_signing_keys(stream)[0])

    def send(transaction_id: str, *messages: tuple[str, str]) -> None:
        edus = [
            build_edu(
                "theirs.example",
                "ours.example",
                "m.direct_to_device",
                {
                    "sender": f"@{sender}:theirs.example",
                    "type": "m.test",
                    "message_id": message_id,
                    "messages": {"@bob:ours.example": {"D": {"of": sender}}},
                },
            )
            for sender, message_id in messages
        ]
        body = build_body("theirs.example", 1, edus)
        uri = f"/_matrix/federation/v1/send/{quote(transaction_id)}"
        header = signer.authorization("ours.example", "PUT", uri, body).decode()
        done = subprocess.run(
            [
                "curl",
                "-sS",
                "--fail-with-body",
                "--cacert",
                str(ours.directory / "ca.pem"),
                "-X",
                "PUT",
                "-H",
                f"Authorization: {header}",
                "-H",
                "Content-Type: application/json",
                "--data-binary",
                "@-",
                f"https://127.0.0.1:{ours.http_port}{uri}",
            ],
            input=body,
            capture_output=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (0, b'{"pdus":{}}'), done.stderr

    send("100", ("a", "m1"))
    send("101", ("a", "m1"), ("a", "m1"), ("b", "m1"))
    assert ours.writer is not None
    ours.writer.kill()
    ours.start_writer()
    send("102", ("a", "m1"), ("b", "m1"), ("a", "m2"))
    tail = ours.tail("to_device_messages", "to_device")
    wait_until("the last", lambda: len(rows_of(tail, "to_device_messages")) >= 3 or None)
    found = [(row["sender"], row["message_id"]) for row in rows_of(tail, "to_device_messages")]
    assert found == [
        ("@a:theirs.example", "m1"),
        ("@b:theirs.example", "m1"),
        ("@a:theirs.example", "m2"),
    ]
