"""Kick and drain of a real server: nobody loses a row, everybody hears why, the process ends."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Lines, Server, start, tcprepl, wait_until

#: More than kernels keep of them on the way.
ROWS = 1_500


def peers(server: Server) -> list[Any]:
    """Return who is connected."""
    found: list[Any] = server.request("GET", "/_tcprepl/v1/status")["peers"]
    return found


def test_a_drained_server_gives_every_row_first_and_ends(tmp_path: Path) -> None:
    """One that has everything goes at once, one that reads nothing once it has read."""
    with Server(tmp_path) as server, Lines(server.port) as quick, Lines(server.port) as slow:
        row = ["get_user", ["x" * 4_000], None]
        for _ in range(3):
            server.publish("caches", *[row] * (ROWS // 3))
        quick.send("REPLICATE caches * NOW\n")
        quick.expect("POSITION")
        # Less than it is sent fits on the way, so that the rest stays in the log.
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.send("REPLICATE caches * 0\n")
        wait_until(
            lambda: sorted(peer["state"] for peer in peers(server)) == ["behind", "head"],
            "a reader that is behind, and one that is not",
        )
        command = ("drain", "--to", server.url, "--elsewhere", "there:1", "--within", "100")
        with start(tmp_path, *command) as draining:
            last = "ERROR the server is being drained; go to there:1"
            assert list(quick.until_closed())[-1] == last
            with pytest.raises(AssertionError, match=r"503.*drained; go to there:1"):
                server.publish("caches", row)
            with pytest.raises(AssertionError, match="503"):
                server.request("GET", "/health")
            with pytest.raises(ConnectionRefusedError):
                Lines(server.port)
            lines = [line for line in slow.until_closed() if not line.startswith("PING")]
            assert sum(line.startswith("RDATA") for line in lines) == ROWS
            assert lines[-1] == last
            slow.socket.close()
            quick.socket.close()
            assert draining.wait() == 0, draining.stderr
            assert draining.lines == ["drained: everybody has everything"]
        assert server.process.wait() == 0


def test_at_the_end_of_the_time_the_rest_is_closed(tmp_path: Path) -> None:
    """And a kick reaches its peer, who hears why."""
    with Server(tmp_path) as server, Lines(server.port) as sender, Lines(server.port) as evil:
        evil.send("NAME evil\nREPLICATE\n")
        evil.expect("POSITION")
        kicked = tcprepl("kick", "evil", "--why", "go", "--to", server.url)
        assert kicked.stdout.startswith("evil (127.0.0.1:"), kicked.stderr
        assert list(evil.until_closed())[-1] == "ERROR disconnected by an operator: go"
        edu = {"destination": "example.org", "edu_type": "m.test", "content": {}}
        server.request("POST", "/_tcprepl/v1/edus", edu)
        sender.send("NAME fed1\nREPLICATE federation * 0\nFEDERATION_ACK fed1 0\n")
        sender.expect("RDATA federation")
        state = server.request("POST", "/_tcprepl/v1/drain", {"within_seconds": 0.1})
        assert (state["over"], state["unserved"]) == (True, 1)
        assert list(sender.until_closed())[-1].endswith("not everything was sent in time")
        sender.socket.close()
        evil.socket.close()
        assert server.process.wait() == 0


def test_a_sender_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Else what it has not read is trimmed, or passed over by whoever takes its place."""
    config = tmp_path / "tcprepl.yaml"
    config.write_text("federation: {senders: [fed1, fed2]}\n", encoding="utf-8")
    with Server(tmp_path, "--config", str(config)) as server, Lines(server.port) as sender:
        edu = {"destination": "example.org", "edu_type": "m.test", "content": {}}
        server.request("POST", "/_tcprepl/v1/edus", edu)
        sender.send("NAME fed2\nREPLICATE federation * 0\n")
        sender.expect("RDATA federation")
        sender.send("FEDERATION_ACK fed2 1\n")
        drained = tcprepl("drain", "--to", server.url, "--within", "1s")
        assert drained.returncode == 1
        assert "drained: fed1 has not acknowledged everything" in drained.stderr
        sender.socket.close()
        assert server.process.wait() == 0
    with server, Lines(server.port) as second, Lines(server.port) as first:
        for name, lines in (("fed2", second), ("fed1", first)):
            lines.send(f"NAME {name}\nREPLICATE federation * 0\n")
            lines.expect("RDATA federation")
            lines.send(f"FEDERATION_ACK {name} 1\n")
        with start(tmp_path, "drain", "--to", server.url, "--within", "30s") as draining:
            for lines in (first, second):
                assert list(lines.until_closed())[-1] == "ERROR the server is being drained"
                lines.socket.close()
            assert draining.wait() == 0, draining.stderr
            assert draining.lines == ["drained: everybody has everything"]
        assert server.process.wait() == 0
