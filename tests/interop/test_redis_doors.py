"""The ways into a real Redis: password, Unix socket, TLS; and one that stops answering."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tcprepl.app.doctor import services
from tests.doctor_kit import FAULT, GOOD, config
from tests.interop.environments import find_program
from tests.interop.processes import Child, accepts, wait_until
from tests.interop.relaying import Relay, StubbornRedis
from tests.interop.serving import Serve
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PASSWORD = "s3cr&t p@ss"
QUOTED = "s3cr%26t%20p%40ss"


@pytest.fixture
def locked_redis(tmp_path: Path, socket_directory: Path) -> Iterator[dict[str, str]]:
    """Yield the URLs of a Redis with a password, by the way in."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    plain, tls = free_port(), free_port()
    command = [find_program("redis-server", "redis-server"), "--save", "", "--bind", "127.0.0.1"]
    command += ["--port", str(plain), "--requirepass", PASSWORD, "--dir", str(tmp_path)]
    command += ["--unixsocket", str(socket_directory / "r.sock"), "--tls-port", str(tls)]
    command += ["--tls-cert-file", str(tmp_path / "cert.pem")]
    command += ["--tls-key-file", str(tmp_path / "key.pem")]
    command += ["--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no"]
    child = Child(command, tmp_path / "redis.log")
    child.wait_ready("Redis accepts connections", lambda: accepts(plain) and accepts(tls))
    yield {
        "password": f"redis://:{QUOTED}@127.0.0.1:{plain}/0",
        "file": f"redis://127.0.0.1:{plain}?password_file={tmp_path}/password",
        "unix": f"unix:{socket_directory}/r.sock?password={QUOTED}",
        "tls": f"rediss://:{QUOTED}@127.0.0.1:{tls}?ca={tmp_path}/ca.pem",
        "wrong": f"redis://:wrong@127.0.0.1:{plain}",
        "distrusted": f"rediss://:{QUOTED}@127.0.0.1:{tls}",
    }
    child.stop()


@pytest.mark.parametrize("way", ["password", "file", "unix", "tls"])
def test_every_way_in(way: str, locked_redis: dict[str, str], tmp_path: Path) -> None:
    url = locked_redis[way]
    with (
        Serve("example.com", tmp_path, "--redis", url) as serve,
        Relay("example.com", tmp_path, url) as relay,
    ):
        relay.wait_up()
        wait_until("the writer has Redis", lambda: serve.status()["links"][0]["up"])
        token = serve.publish("receipts", ["!r:x", "m.read", "@a:x", "$e", {"ts": 1}])
        wait_until(
            "the row is relayed", lambda: relay.positions().get(("receipts", "master")) == token
        )
        shown = f"{relay.log()}{serve.log()}{relay.status()}{serve.status()}"
        assert "s3cr" not in shown


@pytest.mark.parametrize("way", ["password", "file", "unix", "tls"])
def test_doctor_looks_in_by_every_way(way: str, locked_redis: dict[str, str]) -> None:
    there, *others = services.redis(config(redis={"url": locked_redis[way]}))
    assert there.verdict is GOOD
    assert " is there, " in there.text
    assert FAULT not in [found.verdict for found in others]


@pytest.mark.parametrize("way", ["wrong", "distrusted"])
def test_closed_doors_are_told_and_tried_again(
    way: str, locked_redis: dict[str, str], tmp_path: Path
) -> None:
    with Relay("example.com", tmp_path, locked_redis[way]) as relay:
        reason = wait_until("the reason is told", lambda: relay.link()["reason"])
        assert ("WRONGPASS" if way == "wrong" else "certificate") in reason
        assert not relay.link()["up"]
        assert relay.child.running


def test_redis_that_hangs_is_noticed_within_30_seconds(tmp_path: Path) -> None:
    with StubbornRedis(tmp_path) as redis:
        url = f"redis://127.0.0.1:{redis.port}"
        with (
            Serve("example.com", tmp_path, "--redis", url) as serve,
            Relay("example.com", tmp_path, url) as relay,
        ):
            relay.wait_up()
            wait_until("the writer has Redis", lambda: serve.status()["links"][0]["up"])
            started = time.monotonic()
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                wait_until("the relay notices", lambda: not relay.link()["up"])
                wait_until("the writer notices", lambda: not serve.status()["links"][0]["up"])
                assert time.monotonic() - started < 30
                assert "no sign of life" in relay.link()["reason"]
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            relay.wait_up()
