"""Our server, real workers: Synapse's federation senders take `tcprepl serve` for their main."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.interop.complaints import complaints
from tests.interop.processes import accepts, wait_until
from tests.interop.servers import Postgres
from tests.interop.serving import RemoteServer, Serve
from tests.interop.synapse import SynapseMain, SynapseWorker
from tests.interop.wire import Wire
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SENDER = "fed1"
#: Streams of ours that no Synapse has.
EXTRA = ["received_edus", "to_device_messages", "my_stream"]


@dataclass
class Stage:
    """A real sender, our server in its main's place, and a remote server.

    Attributes:
        main: The main that made the database; it does not run any longer.
        serve: Our server, under the main's name.
        sender: The federation sender; each test starts it, and finds it stopped.
        remote: Where EDUs are to go.
        queued: How many EDUs have been queued; each has its number.
        logged: How much the sender had logged before its present start.
    """

    main: SynapseMain
    serve: Serve
    sender: SynapseWorker
    remote: RemoteServer
    queued: int = 0
    logged: int = 0

    def complaints(self) -> list[str]:
        """Return what the sender's log says is wrong, since its present start."""
        return complaints(self.sender.log()[self.logged :])

    def edu(self, number: int) -> dict[str, Any]:
        """Return an EDU for the remote server."""
        return {
            "edu_type": "org.example.numbered",
            "content": {"number": number, "text": "caf\N{LATIN SMALL LETTER E WITH ACUTE} 100 %"},
            "origin": self.main.server_name,
            "destination": self.remote.server_name,
        }

    def queue(self, *, padding: str = "") -> tuple[int, int]:
        """Queue an EDU with us and return its number and its token."""
        self.queued += 1
        edu = self.edu(self.queued)
        if padding:
            edu["content"]["padding"] = padding
        return self.queued, self.serve.publish("federation", ["e", edu])

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


@pytest.fixture(scope="module", params=["1.66.0", "1.12.4", "1.0.0"])
def theatre(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield the stage of a release; its sender and our server keep what they know between tests."""
    release: str = request.param
    directory = tmp_path_factory.mktemp("worker")
    with ExitStack() as stack:
        remote = stack.enter_context(RemoteServer(directory))
        postgres = stack.enter_context(Postgres.start()) if release == "1.66.0" else None
        main = SynapseMain(release, postgres=postgres)
        stack.callback(main.close)
        main.start()  # it makes the database that its workers need
        main.stop()
        settings = directory / "serve.yaml"
        settings.write_text(
            yaml.safe_dump({"streams": {"extra": EXTRA}, "federation": {"senders": [SENDER]}})
        )
        serve = stack.enter_context(Serve(main.server_name, directory, "--config", str(settings)))
        ports = {"replication_port": serve.port, "http_port": serve.http_port}
        yield Stage(main, serve, main.federation_sender(SENDER, **ports), remote)


@pytest.fixture
def stage(theatre: Stage) -> Iterator[Stage]:
    """Yield the stage with its sender connected; stop the sender afterwards."""
    theatre.logged = len(theatre.sender.log())
    theatre.sender.start()
    wait_connected(theatre)
    yield theatre
    theatre.sender.stop()


def wait_connected(stage: Stage) -> Any:
    """Wait until the sender is a peer of ours, and return what is said of it."""

    def find() -> Any:
        peers = [peer for peer in stage.serve.status()["peers"] if peer["name"]]
        return peers[0] if peers else None

    return wait_until("the sender is connected", find)


def test_worker_above_an_empty_server_finds_nothing_wrong(stage: Stage) -> None:
    """It asks from tokens that its own main gave out, and is answered by POSITION alone."""
    number, _ = stage.queue()
    stage.wait_delivered(number)
    assert stage.complaints() == []


def test_worker_never_hears_of_what_its_release_lacks(stage: Stage) -> None:
    connected = wait_connected(stage)
    for stream in EXTRA:
        stage.serve.publish(stream, {"some": "thing"})
    stage.serve.publish("profile_updates", [f"@a:{stage.main.server_name}", "left_room", None])
    with Wire(stage.serve.port) as person:
        person.send("REMOTE_SERVER_UP far.example.com", "STATUS")
        person.wait_for("INFO")
    number, _ = stage.queue()
    stage.wait_delivered(number)
    assert stage.complaints() == []
    assert wait_connected(stage)["conn_id"] == connected["conn_id"]


def test_sender_delivers_what_is_queued_with_us_and_its_ack_trims_our_queue(stage: Stage) -> None:
    expected = "1.22" if stage.main.release == "1.66.0" else "2017"
    assert wait_connected(stage)["dialect"] == expected
    queued = [stage.queue() for _ in range(5)]
    stage.wait_delivered(queued[-1][0])
    assert stage.delivered()[-5:] == [number for number, _ in queued]
    assert {body["origin"] for _, body in stage.remote.transactions} == {stage.main.server_name}
    assert stage.remote.edus()[-1]["content"] == stage.edu(queued[-1][0])["content"]
    stage.wait_trimmed(queued[-1][1])


def test_sender_catches_up_with_what_was_queued_while_it_was_away(stage: Stage) -> None:
    number, token = stage.queue()
    stage.wait_delivered(number)
    stage.wait_trimmed(token)
    stage.sender.stop()
    later = [stage.queue() for _ in range(3)]
    stage.sender.start()
    stage.wait_delivered(later[-1][0])
    stage.wait_trimmed(later[-1][1])
    # The row at the acknowledged token may come twice; the others come once and in order.
    fresh = [one for one in stage.delivered() if one > number]
    assert fresh == [one for one, _ in later]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_sender_goes_on_after_our_restart(stage: Stage, end: str) -> None:
    number, _ = stage.queue()
    stage.wait_delivered(number)
    if end == "stop":
        assert stage.serve.stop() == 0
    else:
        stage.serve.kill()
    stage.serve.start()
    wait_connected(stage)
    number, token = stage.queue()
    stage.wait_delivered(number)
    stage.wait_trimmed(token)
    assert stage.sender.child.running


def test_sender_killed_with_rows_on_their_way_loses_none(stage: Stage) -> None:
    first, _ = stage.queue()
    stage.wait_delivered(first)
    more = [stage.queue() for _ in range(3)]
    stage.sender.kill()
    more += [stage.queue() for _ in range(3)]
    stage.sender.start()
    stage.wait_delivered(more[-1][0])
    stage.wait_trimmed(more[-1][1])
    # A sender acks what it has handed to its own queues in memory: of what it had when it
    # was killed some may be gone, of what it had not acked nothing is.
    assert {number for number, _ in more[3:]} <= set(stage.delivered())


def test_rows_of_every_stream_keep_the_real_worker_connected(stage: Stage) -> None:
    connected = wait_connected(stage)
    room, user = f"!r:{stage.main.server_name}", f"@a:{stage.main.server_name}"
    for number in range(50):
        stage.serve.publish("typing", [room, [user] if number % 2 else []])
        stage.serve.publish("receipts", [room, "m.read", user, f"$e{number}", {"ts": number}])
        stage.serve.publish("presence", [user, "online", 1, 1, 1, "x", True])
        stage.serve.publish("caches", ["cs_cache_fake", [room], number])
    number, _ = stage.queue()
    stage.wait_delivered(number)
    assert wait_connected(stage)["conn_id"] == connected["conn_id"]


def test_row_beyond_the_line_limit_does_not_cost_the_worker_its_connection(stage: Stage) -> None:
    connected = wait_connected(stage)
    huge, _ = stage.queue(padding="x" * 20_000)
    number, token = stage.queue()
    stage.wait_delivered(number)
    stage.wait_trimmed(token)
    assert wait_connected(stage)["conn_id"] == connected["conn_id"]
    if stage.main.release == "1.66.0":
        # POSITION told it of the gap, and it fetched the row over HTTP.
        stage.wait_delivered(huge)


def test_a_person_sees_the_worker_by_its_name(stage: Stage) -> None:
    name = wait_connected(stage)["name"].encode()
    with Wire(stage.serve.port) as person:
        person.send("STATUS")
        wait_until("the worker is listed", lambda: any(name in line for line in person.lines))


def test_client_that_syncs_at_a_real_worker_sees_who_types_with_us(tmp_path: Path) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        main = stack.enter_context(SynapseMain("1.66.0", postgres=postgres))
        alice, bob = main.register("alice"), main.register("bob")
        room = alice.create_room(preset="public_chat")
        bob.join(room)
        main.stop()
        serve = stack.enter_context(Serve(main.server_name, tmp_path))
        port = free_port()
        address = {"type": "http", "port": port, "bind_addresses": ["127.0.0.1"]}
        worker = main.worker(
            "sync1",
            replication_port=serve.port,
            http_port=serve.http_port,
            worker_listeners=[{**address, "resources": [{"names": ["client"]}]}],
        )
        stack.enter_context(worker)
        worker.child.wait_ready("the worker listens", lambda: accepts(port))
        client = alice.at(port)
        since = client.call("GET", "/sync", timeout="0", set_presence="offline")["next_batch"]
        for typists in ([bob.user_id], []):
            serve.publish("typing", [room, typists])
            news = client.call("GET", "/sync", timeout="30000", set_presence="offline", since=since)
            since = news["next_batch"]
            (typing,) = news["rooms"]["join"][room]["ephemeral"]["events"]
            assert typing == {"type": "m.typing", "content": {"user_ids": typists}}
