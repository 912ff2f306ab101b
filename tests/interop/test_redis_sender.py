"""The newest Synapse's own federation sender takes our streams over Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.interop.complaints import complaints
from tests.interop.processes import wait_until
from tests.interop.relaying import StubbornRedis
from tests.interop.servers import Postgres
from tests.interop.serving import RemoteServer, Serve
from tests.interop.synapse import SynapseMain, SynapseWorker
from tests.interop.wire import RedisWire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SENDER = "fed1"
#: Streams of ours that no Synapse has.
EXTRA = ["received_edus", "to_device_messages", "my_stream"]


@dataclass
class Stage:
    """A real sender, our server in its main's place, Redis between, and a remote server."""

    main: SynapseMain
    redis: StubbornRedis
    serve: Serve
    sender: SynapseWorker
    remote: RemoteServer
    queued: int = 0

    def queue(self) -> tuple[int, int]:
        """Queue an EDU with us and return its number and its token."""
        self.queued += 1
        edu = {
            "edu_type": "org.example.numbered",
            "content": {"number": self.queued},
            "origin": self.main.server_name,
            "destination": self.remote.server_name,
        }
        return self.queued, self.serve.publish("federation", ["e", edu])

    def delivered(self) -> list[int]:
        """Return the numbers that the remote server got, in order."""
        return [edu["content"]["number"] for edu in self.remote.edus()]

    def wait_delivered(self, number: int) -> None:
        """Wait until the EDU with that number has arrived."""
        wait_until(f"EDU {number} is delivered", lambda: number in self.delivered())

    def wait_trimmed(self, token: int) -> None:
        """Wait until the sender's FEDERATION_ACK has let go of the rows below *token*."""
        wait_until(
            f"rows below {token} are let go",
            lambda: [t for t, _ in self.serve.updates("federation", 0, token)] == [token],
        )


@pytest.fixture(scope="module", params=["newest"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield the stage with its sender running."""
    directory = tmp_path_factory.mktemp("sender")
    with ExitStack() as stack:
        remote = stack.enter_context(RemoteServer(directory))
        postgres = stack.enter_context(Postgres.start())
        redis = stack.enter_context(StubbornRedis(directory))
        as_server: Any = redis  # it has the port, which is all that is asked of it
        main = SynapseMain(request.param, postgres=postgres, redis=as_server)
        stack.callback(main.close)
        main.start()  # it makes the database that its workers need
        main.stop()
        url = f"redis://127.0.0.1:{redis.port}"
        settings = directory / "serve.yaml"
        settings.write_text(
            yaml.safe_dump({"streams": {"extra": EXTRA}, "federation": {"senders": [SENDER]}})
        )
        options = ["--redis", url, "--config", str(settings)]
        serve = stack.enter_context(Serve(main.server_name, directory, *options))
        config = yaml.safe_load(main.config_path.read_text())
        config["instance_map"]["main"]["port"] = serve.http_port
        main.config_path.write_text(yaml.safe_dump(config))
        sender = SynapseWorker(main, SENDER, "synapse.app.generic_worker", {})
        with RedisWire(redis.port, main.server_name) as wire:
            sender.start()
            stack.callback(sender.stop)
            wire.wait_for("REPLICATE")
        yield Stage(main, redis, serve, sender, remote)


def test_sender_is_never_told_of_a_stream_that_its_release_lacks(stage: Stage) -> None:
    room, user = f"!r:{stage.main.server_name}", f"@a:{stage.main.server_name}"
    stage.serve.publish("typing", [room, [user]])
    for stream in EXTRA:
        stage.serve.publish(stream, {"some": "thing"})
    stage.serve.publish("user_signature", [user])  # gone since 1.76
    stage.serve.publish("profile_updates", [user, "left_room", None])
    number, token = stage.queue()
    stage.wait_delivered(number)
    stage.wait_trimmed(token)
    assert complaints(stage.sender.log()) == []


def test_sender_delivers_what_we_publish_and_its_ack_trims_our_queue(stage: Stage) -> None:
    queued = [stage.queue() for _ in range(5)]
    stage.wait_delivered(queued[-1][0])
    assert stage.delivered()[-5:] == [number for number, _ in queued]
    stage.wait_trimmed(queued[-1][1])
    assert "Traceback" not in stage.sender.log()


@pytest.mark.parametrize("victim", ["redis", "serve", "sender"])
def test_sender_goes_on_after_a_kill(stage: Stage, victim: str) -> None:
    number, token = stage.queue()
    stage.wait_delivered(number)
    stage.wait_trimmed(token)
    if victim == "redis":
        stage.redis.kill()
        between = [stage.queue() for _ in range(3)]  # nobody hears of these
        stage.redis.start()
    elif victim == "serve":
        stage.serve.kill()
        stage.serve.start()
        between = [stage.queue() for _ in range(3)]
    else:
        stage.sender.kill()
        between = [stage.queue() for _ in range(3)]
        stage.sender.start()
    last = between[-1]
    stage.wait_delivered(last[0])
    stage.wait_trimmed(last[1])
    assert [n for n in stage.delivered() if n > number] == [n for n, _ in between]
