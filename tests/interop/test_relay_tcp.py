"""A relay of real mains over TCP: what a plain connection shows, the relay shows, and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.interop.activity import People
from tests.interop.processes import wait_until
from tests.interop.relaying import Relay
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain
from tests.interop.wire import Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

#: Streams that every main moves while people act, and that no HTTP and no SQLite thins out.
STREAMS = ("device_lists", "events", "push_rules", "receipts", "to_device", "typing")


@dataclass
class Stage:
    """A main and a relay of it."""

    main: SynapseMain
    relay: Relay


@pytest.fixture(params=["1.66.0", "1.12.4", "1.0.0"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield a main of each era with a relay of it."""
    release: str = request.param
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start()) if release == "1.66.0" else None
        main = stack.enter_context(SynapseMain(release, postgres=postgres))
        options = []
        if release == "1.66.0":
            options = ["--instance", f"main=http://127.0.0.1:{main.http_replication_port}"]
        upstream = f"127.0.0.1:{main.replication_port}"
        directory = tmp_path_factory.mktemp("relay")
        relay = stack.enter_context(Relay(main.server_name, directory, upstream, *options))
        relay.wait_up()
        yield Stage(main, relay)


def rows(lines: list[bytes], *, instance: bool) -> dict[str, list[bytes]]:
    """Return token and row of each RDATA line, by stream."""
    found: dict[str, list[bytes]] = {}
    for line in lines:
        if line.startswith(b"RDATA "):
            words = line.split(b" ", 4 if instance else 3)
            found.setdefault(words[1].decode(), []).append(words[-2] + b" " + words[-1])
    return found


def test_relay_shows_what_its_main_shows_and_goes_on_after_a_restart(stage: Stage) -> None:
    newer = stage.main.release == "1.66.0"
    with Wire(stage.main.replication_port) as plain, Wire(stage.relay.port) as wire:
        plain.send("NAME plain", "PING 1", "REPLICATE" if newer else "REPLICATE ALL NOW")
        plain.wait_for("POSITION to_device ")
        wire.send("REPLICATE")
        wire.wait_for("POSITION to_device master ")
        People(stage.main).act()

        def same() -> bool:
            theirs, ours = rows(plain.lines, instance=newer), rows(wire.lines, instance=True)
            return all(theirs.get(s) and theirs[s] == ours.get(s) for s in STREAMS)

        wait_until("the reader has what the main said", same)
        before = len(wire.lines)
        stage.main.stop()
        wait_until("the relay notices", lambda: not stage.relay.link()["up"])
        stage.main.start()
        stage.relay.wait_up()
        People(stage.main).act()
        wait_until(
            "every stream moves again",
            lambda: rows(wire.lines[before:], instance=True).keys() >= set(STREAMS),
        )
        for line in wire.lines:
            assert not line.startswith(b"ERROR")
        for stream, shown in rows(wire.lines, instance=True).items():
            tokens = [int(one.split()[0]) for one in shown if not one.startswith(b"batch")]
            assert tokens == sorted(set(tokens)), stream
