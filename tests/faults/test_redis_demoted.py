"""A Redis that was made a replica hangs up on nobody, and what is said to it reaches nobody."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.processes import wait_until
from tests.interop.relaying import StubbornRedis
from tests.interop.serving import Serve
from tests.interop.wire import RedisWire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

RECEIPT = ["!r:example.com", "m.read", "@a:example.com", "$e", {}]


def test_link_to_a_demoted_redis_is_down_until_it_is_the_primary_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        old = stack.enter_context(StubbornRedis(tmp_path / "old"))
        new = stack.enter_context(StubbornRedis(tmp_path / "new"))
        url = f"redis://127.0.0.1:{old.port}"
        serve = stack.enter_context(Serve("example.com", tmp_path, "--redis", url))

        def link() -> Any:
            return serve.status()["links"][0]

        wait_until("the link is up", lambda: link()["up"])
        worker = stack.enter_context(RedisWire(new.port, "example.com"))
        assert old.command("REPLICAOF", "127.0.0.1", str(new.port)) == "OK"
        serve.publish("receipts", RECEIPT)  # the worker, at the new primary, does not hear of it
        wait_until("the link is down", lambda: not link()["up"])
        assert "is a replica" in link()["reason"]
        new.kill()
        assert old.command("REPLICAOF", "NO", "ONE") == "OK"
        wait_until("the link is up again", lambda: link()["up"])
        assert not [line for line in worker.lines if line.startswith(b"RDATA")]
        with RedisWire(old.port, "example.com") as again:
            serve.publish("receipts", RECEIPT)
            again.wait_for("RDATA receipts master 2")
