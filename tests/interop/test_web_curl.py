"""By hand: real curl against a real server."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Running, Server, program, start, tcprepl, wait_until
from tests.interop.web_tools import relay_with_a_gap

ROW = ["!room:example.com", ["@alice:example.com"]]
TYPING = {
    "position": 1,
    "field_names": ["position", "room_id", "typing"],
    "rows": [[1, "!room:example.com", '["@alice:example.com"]']],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with nothing in it."""
    with Server(tmp_path / "server") as running:
        yield running


class Curl:
    """A person with curl."""

    def __init__(self, server: Server, where: Path) -> None:
        self.server = server
        self.where = where

    def start(self, path: str, *arguments: str) -> Running:
        """Begin a request."""
        return Running(
            [program("curl"), "-sS", *arguments, self.server.url + path], self.where, "curl"
        )

    def get(self, path: str, *arguments: str) -> Any:
        """Make a request and return its JSON."""
        running = self.start(path, *arguments)
        assert running.wait() == 0, running.stderr
        return json.loads(running.stdout)


@pytest.fixture
def curl(server: Server, tmp_path: Path) -> Curl:
    """curl, pointed at the server."""
    return Curl(server, tmp_path / "curl")


def test_following_typing_by_hand_in_both_shapes(server: Server, curl: Curl) -> None:
    """From ``streams=-1`` on, as a person would."""
    table = curl.get("/_synapse/replication?streams=-1")["streams"]
    position = dict(table["rows"])["typing"]
    server.publish("typing", ROW)
    changed = curl.get(f"/_synapse/replication?streams={table['position']}")["streams"]
    assert changed["rows"] == [["typing", 1]]
    assert curl.get(f"/_synapse/replication?typing={position}") == {"typing": TYPING}
    assert curl.get(f"/_synapse/replication?typing={position}&format=table") == [
        ["typing", 1, 1, 3, *TYPING["field_names"]],
        TYPING["rows"][0],
    ]
    assert curl.get("/_synapse/replication?typing=1&timeout=100") == {}


def test_a_blocked_poll_returns_within_50_ms_of_the_row(server: Server) -> None:
    """After ten seconds as after one: from before the row is posted to the last byte.

    The machine may be busy with something else: the best of three rounds counts.
    """
    took = []
    for position, blocked_s in enumerate((10.0, 1.0, 1.0)):
        with socket.create_connection(("127.0.0.1", server.http_port)) as polling:
            polling.sendall(
                b"GET /_synapse/replication?typing=%d&timeout=60000 HTTP/1.1\r\n"
                b"Host: localhost\r\nConnection: close\r\n\r\n" % position
            )
            assert select.select([polling], [], [], blocked_s)[0] == []
            begun = time.monotonic()
            server.publish("typing", ROW)
            answer = b"".join(iter(lambda: polling.recv(65_536), b""))
            took.append(time.monotonic() - begun)
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["typing"]["position"] == position + 1
    assert min(took) < 0.05, took


def test_a_server_that_stops_answers_who_waits(server: Server, curl: Curl) -> None:
    """With nothing, rather than with a broken connection."""
    polling = curl.start("/_synapse/replication?typing=0&timeout=60000")
    waiting = "tcprepl_http_polls_waiting 1.0"
    wait_until(lambda: waiting in server.request("GET", "/metrics"), "the poll waits")
    assert server.process.stop() == 0
    assert polling.wait() == 0, polling.stderr
    assert json.loads(polling.stdout) == {}


def test_poll_follows_from_the_command_line_over_a_restart(server: Server, tmp_path: Path) -> None:
    """A server that is away is waited for, and nothing is printed twice."""
    row = '["!room:example.com","m.read","@a:example.com","$e","{\\"ts\\":1}",null]'
    receipt = ["!room:example.com", "m.read", "@a:example.com", "$e", {"ts": 1}]
    server.publish("receipts", receipt)
    arguments = ("receipts", "--url", server.url, "--since", "start", "--count", "2")
    with start(tmp_path / "poll", "poll", *arguments) as polling:
        assert polling.wait_for_lines(1) == [f"receipts 1 {row}"]
        server.process.kill()
        server.start()
        server.publish("receipts", receipt)
        assert polling.wait() == 0
        assert polling.lines == [f"receipts 1 {row}", f"receipts 2 {row}"]


def test_readers_of_a_relay_are_told_of_a_gap_over_http(tmp_path: Path) -> None:
    """By 410, by ``missing``, and by ``tcprepl poll``, which goes on behind it."""
    with relay_with_a_gap(tmp_path) as relay:
        assert relay.link()["gaps"] == 1
        curl = Curl(relay, tmp_path / "curl")
        before = curl.get("/_synapse/replication?push_rules=0")["push_rules"]
        assert before["position"] == 1
        told = tmp_path / "told"
        refused = curl.get("/_synapse/replication?push_rules=1", "--dump-header", str(told))
        assert told.read_text().startswith("HTTP/1.1 410 ")
        assert refused["errcode"] == "TCPREPL_ROWS_MISSING"
        assert (refused["held"], refused["position"]) == (5, 5)
        for position in (5, -1):
            behind = curl.get(f"/_synapse/replication?push_rules={position}")["push_rules"]
            assert [token for token, _ in behind["rows"]] == [6, 7]
        path = "/_synapse/replication/get_repl_stream_updates/push_rules/x"
        page = curl.get(f"{path}?from_token=1&upto_token=7")
        assert (page["missing"], [token for token, _ in page["updates"]]) == ([1, 5], [6, 7])
        done = tcprepl("poll", "push_rules", "--since", "0", "--until-head", "--url", relay.url)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [
            f'push_rules {number} ["@{number}:example.com"]' for number in (1, 6, 7)
        ]
        (line,) = done.stderr.splitlines()
        assert "push_rules of master: rows in (1, 5] may be missing" in line
        assert line.endswith("poll goes on from 5")


def test_a_request_is_safe_to_repeat_after_a_crash(server: Server, curl: Curl) -> None:
    """The transaction id is on the disk with the rows."""
    path = "/_tcprepl/v1/streams/receipts/rows?txn_id=once"
    body = '[["!room:example.com","m.read","@a:example.com","$e",{"ts":1}]]'
    first = curl.get(path, "-d", body)
    server.process.kill()
    server.start()
    assert curl.get(path, "-d", body) == first
    assert curl.get(path.replace("once", "again"), "-d", body)["first"] == first["last"] + 1


def test_a_secret_is_asked_for(tmp_path: Path) -> None:
    """With curl's own way to send it, and a refusal that says what is missing."""
    config = tmp_path / "config.yaml"
    config.write_text("http:\n  token: hush\n")
    with Server(tmp_path / "guarded", "--config", str(config)) as server:
        curl = Curl(server, tmp_path / "curl")
        refused = curl.get("/_synapse/replication?streams=-1")
        assert refused["errcode"] == "M_UNKNOWN_TOKEN"
        guarded = curl.get("/_synapse/replication?streams=-1", "--oauth2-bearer", "hush")
        assert "streams" in guarded
        assert curl.get("/_tcprepl/v1/status", "-u", "me:hush")["ready"] is True
        assert "hush" not in server.process.stdout + server.process.stderr
