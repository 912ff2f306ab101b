"""Our server, real workers: Synapse's federation senders take `tcprepl serve` for their main."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.processes import wait_until
from tests.interop.servers import Postgres
from tests.interop.serving import RemoteServer, Serve
from tests.interop.synapse import SynapseMain, SynapseWorker
from tests.interop.wire import Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SENDER = "fed1"


@dataclass
class Stage:
    """A real sender, our server in its main's place, and a remote server.

    Attributes:
        main: The main that made the database; it does not run any longer.
        serve: Our server, under the main's name.
        sender: The federation sender, not yet started.
        remote: Where EDUs are to go.
    """

    main: SynapseMain
    serve: Serve
    sender: SynapseWorker
    remote: RemoteServer

    def edu(self, number: int) -> dict[str, Any]:
        """Return an EDU for the remote server."""
        return {
            "edu_type": "org.example.numbered",
            "content": {"number": number, "text": "caf\N{LATIN SMALL LETTER E WITH ACUTE} 100 %"},
            "origin": self.main.server_name,
            "destination": self.remote.server_name,
        }

    def queue(self, number: int) -> int:
        """Queue an EDU with us and return its token."""
        return self.serve.publish("federation", ["e", self.edu(number)])

    def delivered(self) -> list[int]:
        """Return the numbers that the remote server got, in order."""
        return [edu["content"]["number"] for edu in self.remote.edus()]

    def wait_delivered(self, number: int) -> None:
        """Wait until the EDU with that number has arrived."""
        wait_until(f"EDU {number} is delivered", lambda: number in self.delivered())

    def held(self, upto: int) -> list[int]:
        """Return the tokens of the federation rows that we still hold."""
        return [token for token, _ in self.serve.updates("federation", 0, upto)]

    def wait_trimmed(self, token: int) -> None:
        """Wait until the sender's FEDERATION_ACK has let go of the rows below *token*."""
        wait_until(f"rows below {token} are let go", lambda: self.held(token) == [token])


@pytest.fixture(params=["1.66.0", "1.12.4"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Yield a stage for each release; nothing but the remote server and ours runs yet."""
    release: str = request.param
    with RemoteServer(tmp_path) as remote:
        if release == "1.66.0":
            with Postgres.start() as postgres:
                yield from _stage(SynapseMain(release, postgres=postgres), remote, tmp_path)
        else:
            yield from _stage(SynapseMain(release), remote, tmp_path)


def _stage(main: SynapseMain, remote: RemoteServer, directory: Path) -> Iterator[Stage]:
    main.start()  # it makes the database that its workers need
    main.stop()
    with Serve(main.server_name, directory) as serve:
        sender = main.federation_sender(
            SENDER, replication_port=serve.port, http_port=serve.http_port
        )
        try:
            yield Stage(main, serve, sender, remote)
        finally:
            sender.stop()
            main.close()


def wait_connected(stage: Stage) -> Any:
    """Wait until the sender is a peer of ours, and return what is said of it."""

    def find() -> Any:
        peers = [peer for peer in stage.serve.status()["peers"] if peer["name"]]
        return peers[0] if peers else None

    return wait_until("the sender is connected", find)


def test_sender_delivers_what_is_queued_with_us_and_its_ack_trims_our_queue(stage: Stage) -> None:
    stage.sender.start()
    peer = wait_connected(stage)
    assert peer["dialect"] == ("1.22" if stage.main.release == "1.66.0" else "2017")
    tokens = [stage.queue(number) for number in range(1, 6)]
    stage.wait_delivered(5)
    assert stage.delivered() == [1, 2, 3, 4, 5]
    origins = {body["origin"] for _, body in stage.remote.transactions}
    assert origins == {stage.main.server_name}
    assert stage.remote.edus()[0]["content"] == stage.edu(1)["content"]
    stage.wait_trimmed(tokens[-1])


def test_sender_catches_up_with_what_was_queued_while_it_was_away(stage: Stage) -> None:
    before = [stage.queue(number) for number in (1, 2, 3)]
    stage.sender.start()
    stage.wait_delivered(3)
    stage.wait_trimmed(before[-1])
    stage.sender.stop()
    after = [stage.queue(number) for number in (4, 5)]
    stage.sender.start()
    stage.wait_delivered(5)
    stage.wait_trimmed(after[-1])
    # The row at the acknowledged token may come twice, others once and in order.
    assert list(dict.fromkeys(stage.delivered())) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_sender_goes_on_after_our_restart(stage: Stage, end: str) -> None:
    stage.sender.start()
    wait_connected(stage)
    stage.queue(1)
    stage.wait_delivered(1)
    if end == "stop":
        assert stage.serve.stop() == 0
    else:
        stage.serve.kill()
    stage.serve.start()
    wait_connected(stage)
    last = stage.queue(2)
    stage.wait_delivered(2)
    stage.wait_trimmed(last)
    assert stage.sender.child.running


def test_sender_killed_with_rows_on_their_way_loses_none(stage: Stage) -> None:
    stage.sender.start()
    wait_connected(stage)
    stage.queue(1)
    stage.wait_delivered(1)
    stage.sender.kill()
    last = [stage.queue(number) for number in (2, 3, 4)][-1]
    stage.sender.start()
    stage.wait_delivered(4)
    stage.wait_trimmed(last)
    assert set(stage.delivered()) == {1, 2, 3, 4}


def test_rows_of_every_stream_keep_the_real_worker_connected(stage: Stage) -> None:
    stage.sender.start()
    connected = wait_connected(stage)
    room, user = f"!r:{stage.main.server_name}", f"@a:{stage.main.server_name}"
    for number in range(50):
        stage.serve.publish("typing", [room, [user] if number % 2 else []])
        stage.serve.publish("receipts", [room, "m.read", user, f"$e{number}", {"ts": number}])
        stage.serve.publish("presence", [user, "online", 1, 1, 1, "x", True])
        stage.serve.publish("caches", ["cs_cache_fake", [room], number])
    stage.queue(1)
    stage.wait_delivered(1)
    assert wait_connected(stage)["conn_id"] == connected["conn_id"]


def test_row_beyond_the_line_limit_does_not_cost_the_worker_its_connection(stage: Stage) -> None:
    stage.sender.start()
    connected = wait_connected(stage)
    huge = stage.edu(1) | {"content": {"number": 1, "text": "x" * 20_000}}
    stage.serve.publish("federation", ["e", huge])
    last = stage.queue(2)
    stage.wait_delivered(2)
    stage.wait_trimmed(last)
    assert wait_connected(stage)["conn_id"] == connected["conn_id"]
    if stage.main.release == "1.66.0":
        # POSITION told it of the gap, and it fetched the row over HTTP.
        stage.wait_delivered(1)


def test_a_person_sees_what_the_worker_says(stage: Stage) -> None:
    stage.sender.start()
    wait_connected(stage)
    with Wire(stage.serve.port) as person:
        person.send("STATUS")
        # the worker is listed by the name it gave
        person.wait_for("INFO ")
        wait_until("the worker is listed", lambda: _listed(person))


def _listed(person: Wire) -> bool:
    name = SENDER.encode()
    lines = person.lines
    return any(name in line or b"federation_sender" in line for line in lines)
