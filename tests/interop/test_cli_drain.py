"""Kick and drain of a real server: nobody loses a row, everybody hears why, the process ends."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Lines, Server, start, tcprepl, wait_until

#: More than kernels keep of them on the way.
ROWS = 2_000


def peers(server: Server) -> list[Any]:
    """Return who is connected."""
    found: list[Any] = server.request("GET", "/_tcprepl/v1/status")["peers"]
    return found


def test_a_drained_server_gives_every_row_first_and_ends(tmp_path: Path) -> None:
    """One that has everything goes at once, one that reads nothing once it has read."""
    with Server(tmp_path / "a") as server, Server(tmp_path / "b") as other:
        row = ["get_user", ["x" * 4_000], None]
        for _ in range(4):
            server.publish("caches", *[row] * (ROWS // 4))
        other.publish("caches", row)
        # follows both, as servers over one database are followed
        tail = start(tmp_path, "tail", "caches", "--from", server.address, "--from", other.address)
        with tail, Lines(server.port) as slow:
            # Less than it is sent fits on the way, so that the rest stays in the log.
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            slow.send("REPLICATE caches * 0\n")
            wait_until(
                lambda: sorted(peer["state"] for peer in peers(server)) == ["behind", "head"],
                "a reader that is behind, and one that is not",
            )
            command = ("drain", "--to", server.url, "--elsewhere", other.address)
            draining = start(tmp_path, *command, "--within", "60")
            with draining:
                draining.wait_for_output("draining: 1 peer left")
                with pytest.raises(AssertionError, match=f"503.*drained; go to {other.address}"):
                    server.publish("caches", row)
                with pytest.raises(AssertionError, match="503"):
                    server.request("GET", "/health")
                lines = [line for line in slow.until_closed() if not line.startswith("PING")]
                assert sum(line.startswith("RDATA") for line in lines) == ROWS
                assert lines[-1] == f"ERROR the server is being drained; go to {other.address}"
                slow.socket.close()
                assert draining.wait() == 0, draining.stderr
                assert draining.lines == ["drained: everybody has everything"]
            assert server.process.wait() == 0
            # Who followed has gone where it was told, and hears what is new there.
            wait_until(
                lambda: [peer["name"] for peer in peers(other)] == ["tcprepl-tail"],
                f"a tail at the other server\n{tail.stderr}",
            )
        server.start()
        assert server.publish("caches", row) == [ROWS + 1]


def test_at_the_end_of_the_time_the_rest_is_closed(tmp_path: Path) -> None:
    """And the exit code says so; a kick reaches one that is behind as well."""
    with Server(tmp_path) as server, Lines(server.port) as sender, Lines(server.port) as evil:
        evil.send("NAME evil\nREPLICATE\n")
        evil.expect("POSITION")
        kicked = tcprepl("kick", "evil", "--why", "go", "--to", server.url)
        assert kicked.stdout.startswith("evil (127.0.0.1:"), kicked.stderr
        assert list(evil.until_closed())[-1] == "ERROR disconnected by an operator: go"
        server.request(
            "POST",
            "/_tcprepl/v1/edus",
            {"destination": "example.org", "edu_type": "m.test", "content": {}},
        )
        sender.send("NAME fed1\nREPLICATE federation * 0\nFEDERATION_ACK fed1 0\n")
        sender.expect("RDATA federation")
        done = tcprepl("drain", "--to", server.url, "--within", "0.3")
        assert (done.returncode, done.stdout) == (1, "")
        assert "drained: 1 peer was closed without everything" in done.stderr
        assert list(sender.until_closed())[-1].endswith("not everything was sent in time")
        assert server.process.wait() == 0
