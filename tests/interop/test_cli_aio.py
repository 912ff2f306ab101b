"""asyncio's client and writer against a real server: TLS, Unix sockets, HTTP, and no reactor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

import tcprepl
from tcprepl import aio
from tests.harness import Running, Server, environment, start, wait_until
from tests.ports import free_port

ROWS = [b'["@alice:example.com"]', b'["@bob:example.com"]']


async def to_and_fro(where: str, tls: ssl.SSLContext | None = None) -> list[str]:
    """Publish rows, and return what comes back: by a handler, then by a loop."""
    seen: list[str] = []
    both = asyncio.Event()

    async def handler(stream: str, instance: str, token: int, rows: aio.Rows) -> None:
        await asyncio.sleep(0)
        seen.extend(row.user_id for row in rows)
        if len(seen) == 2:
            both.set()

    async with asyncio.timeout(30):
        async with (
            aio.ReplicationWriter(where, tls=tls) as writer,
            aio.ReplicationClient(where, ["push_rules"], handler, tls=tls, since="start"),
        ):
            await asyncio.gather(*(writer.publish("push_rules", [row]) for row in ROWS))
            await both.wait()
        async with aio.follow(where, ["push_rules"], tls=tls, since="start") as batches:
            async for batch in batches:
                seen.extend(row.user_id for row in batch.rows)
                if len(seen) == 4:
                    break
    return seen


def test_over_a_unix_socket(socket_directory: Path) -> None:
    path = socket_directory / "s"
    with start(
        *(socket_directory, "serve", "--server-name", "example.com", "--data", "none"),
        *("--listen", f"unix:{path}", "--http", f"127.0.0.1:{free_port()}"),
    ) as server:
        server.wait_for_output("serve.ready")
        seen = asyncio.run(to_and_fro(f"unix:{path}"))
    assert seen == ["@alice:example.com", "@bob:example.com"] * 2


def test_over_tls_with_a_certificate_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not without it, nor with a server that nobody vouches for; what is wrong is said."""
    authority = trustme.CA()
    for name in ("localhost", "worker.example"):
        issued = authority.issue_cert(name)
        issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    port = free_port()
    pem = f"{tmp_path}/localhost.pem"
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        "server_name: example.com\ndata_directory: null\n"
        f'replication: {{listen: "127.0.0.1:{port}", publish: true, tls: '
        f"{{certificate: {pem}, private_key: {pem}, client_ca: {tmp_path}/ca.pem}}}}\n"
        f'http: {{listen: "127.0.0.1:{free_port()}"}}\n'
    )
    ours = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    ours.load_cert_chain(tmp_path / "worker.example.pem")

    async def fails(where: str) -> str:
        follower = aio.follow(where, None)
        async with follower:
            async with asyncio.timeout(30):
                while not follower.client.reconnects:
                    await asyncio.sleep(0.01)
            assert follower.client.last_error is not None
            assert not follower.client.connected
            return follower.client.last_error

    with start(tmp_path, "serve", "--config", str(config)) as server:
        server.wait_for_output("serve.ready")
        seen = asyncio.run(to_and_fro(f"localhost:{port}", ours))
        untrusted = asyncio.run(fails(f"tls:localhost:{port}"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        asyncio.run(fails(f"tls:localhost:{port}"))  # trusted, but not known there
    assert seen == ["@alice:example.com", "@bob:example.com"] * 2
    assert f"tls:localhost:{port} does not answer: its certificate is not trusted" in untrusted


def test_a_dialect_that_cannot_resume_is_caught_up_over_http(tmp_path: Path) -> None:
    """What was published while nobody followed is fetched from the instance that wrote it."""
    with Server(tmp_path / "server") as server:
        positions = aio.MemoryPositionStore()
        for number in range(3):
            server.publish("push_rules", [f"@{number}:example.com"])
        options: aio.FollowOptions = {
            "positions": positions,
            "since": "start",
            "dialect": "1.22",
            "catch_up": aio.HttpCatchUp({"*": server.url}),
        }
        seen: list[str] = []

        async def take(count: int) -> None:
            async with asyncio.timeout(30):
                async with aio.follow(server.address, ["push_rules"], **options) as batches:
                    async for batch in batches:
                        seen.extend(row.user_id for row in batch.rows)
                        if len(seen) == count:
                            return

        asyncio.run(take(2))
        asyncio.run(take(3))
        server.publish("push_rules", ["@3:example.com"])
        asyncio.run(take(4))
        assert seen == [f"@{number}:example.com" for number in range(4)]
        assert positions.load() == {("push_rules", "master"): 4}


NO_REACTOR = """
import asyncio, sys
import tcprepl
from tcprepl import aio

async def main(where):
    async with aio.ReplicationWriter(where) as writer:
        await writer.publish("push_rules", [b'["@alice:example.com"]'])
    async with aio.follow(where, ["push_rules"], since="start") as batches:
        async for batch in batches:
            break
    done = asyncio.Event()
    handler = lambda *_: done.set()
    async with aio.ReplicationClient(where, ["push_rules"], handler, since="start"):
        await done.wait()

asyncio.run(main(sys.argv[1]))
for batch in tcprepl.follow(sys.argv[1], ["push_rules"], since="start"):
    break
print([name for name in sys.modules if name.endswith("reactor") or name.startswith("twisted.web")])
"""


def test_there_is_no_reactor(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", NO_REACTOR, server.address],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
    assert "Warning" not in done.stderr


SCRIPT = """
import sys, tcprepl
for batch in tcprepl.follow(sys.argv[1], ["push_rules"], since="start"):
    print(batch.token, flush=True)
"""


def test_a_script_ends_with_ctrl_c(tmp_path: Path) -> None:
    """While it waits, and the server hears of it."""
    with Server(tmp_path / "server") as server:
        server.publish("push_rules", ["@alice:example.com"])
        with Running([sys.executable, "-c", SCRIPT, server.address], tmp_path, "script") as script:
            script.wait_for_lines(1)
            assert script.stop(signal.SIGINT) == -signal.SIGINT
            assert "KeyboardInterrupt" in script.stderr
        wait_until(lambda: not peers(server), "the server has no peer")


def peers(server: Server) -> list[Any]:
    """Return who is connected."""
    status: Any = server.request("GET", "/_tcprepl/v1/status")
    return list(status["peers"])


def test_a_script_that_takes_its_time_goes_on_where_it_was(tmp_path: Path) -> None:
    """The server was killed and started meanwhile."""
    with Server(tmp_path / "server") as server:
        for number in range(2):
            server.publish("push_rules", [f"@{number}:example.com"])
        tokens = []
        with tcprepl.follow(server.address, ["push_rules"], since="start") as batches:
            for batch in batches:
                tokens.append(batch.token)
                if batch.token == 1:
                    os.kill(server.process.pid, signal.SIGKILL)
                    server.process.wait()
                    server.start()
                    server.publish("push_rules", ["@2:example.com"])
                if batch.token == 3:
                    break
            assert batches.client.reconnects >= 1
        assert tokens == [1, 2, 3]
        assert json.loads(batch.rows.raw[0]) == ["@2:example.com"]
