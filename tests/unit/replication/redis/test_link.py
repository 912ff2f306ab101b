"""The link: up only when subscribed, down with a reason, up again, never half dead."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred

from tcprepl.errors import LogUnavailable
from tcprepl.replication.redis.connection import DEAD_AFTER_S, PING_AFTER_S
from tcprepl.replication.redis.link import RedisLink
from tcprepl.replication.redis.resp import encode_publish
from tests.redis_world import FakeRedis
from tests.wire import run_until


class User:
    """Who uses a link, and notes what it is told."""

    def __init__(self, **options: Any) -> None:
        self.redis = FakeRedis()
        self.network = self.redis.network
        self.told: list[Any] = []
        self.link = RedisLink(
            self.network.clock,
            self.redis.endpoint(),
            "example.com",
            on_lines=self.told.append,
            on_up=lambda: self.told.append("up"),
            on_down=lambda reason: self.told.append(("down", reason)),
            on_drained=lambda: self.told.append("drained"),
            **options,
        )

    def start(self) -> User:
        """Start the link and let it come up."""
        self.link.start()
        self.network.settle()
        return self

    def publish(self, *payloads: bytes) -> bool:
        """Publish over the link."""
        assert self.link.outlet is not None
        return self.link.outlet.write(encode_publish(b"example.com", payloads))

    def stop(self) -> None:
        """Stop the link."""
        done = Deferred.fromCoroutine(self.link.stop())
        self.network.settle()
        assert done.called


def test_up_lines_down_and_up_again() -> None:
    user = User().start()
    assert user.told == ["up"]
    assert user.link.up
    user.redis.say("one", "two")
    assert user.told[1:] == [[b"one", b"two"]]
    user.publish(b"three")
    user.network.settle()
    assert user.told[2:] == [[b"three"]]
    user.redis.cut()
    user.network.turn()
    assert user.told[3][0] == "down"
    assert "connection_lost" in user.told[3][1]
    assert user.link.outlet is None
    assert not user.redis.connections
    run_until(user.network, lambda: user.link.up)
    assert user.told[4] == "up"
    assert user.link.reconnects == 1
    user.stop()
    assert user.told[-1][0] == "down"
    user.stop()


@pytest.mark.parametrize("error", [LogUnavailable("full"), ZeroDivisionError("a bug")])
def test_a_link_that_nobody_takes_up_is_made_anew(error: Exception) -> None:
    user = User()
    refusals = [error]

    def refuse() -> None:
        if refusals:
            raise refusals.pop()
        user.told.append("up")

    user.link._on_up = refuse
    with structlog.testing.capture_logs() as logs:
        user.start()
        user.redis.say("lost")
        run_until(user.network, lambda: user.told and user.link.up)
    (line,) = [line for line in logs if line["event"] == "redis.not_taken_up"]
    assert ("exc_info" in line) is not isinstance(error, LogUnavailable)
    assert [told for told in user.told if told[0] != "down"] == ["up"]
    user.redis.say("one")
    assert user.told[-1] == [b"one"]
    user.redis.cut()
    run_until(user.network, lambda: user.told.count("up") == 2)
    user.stop()


def test_when_one_connection_is_lost_both_are_made_anew() -> None:
    user = User().start()
    for wire in list(user.network.wires.values())[1:]:
        wire.cut()
    user.network.settle()
    assert user.told[1] == ("down", user.link.last_error)
    assert str(user.link.last_error).startswith("publishing: ")
    run_until(user.network, lambda: user.link.up)
    assert len(user.redis.connections) == 2


def test_passive_has_one_connection() -> None:
    user = User(publishes=False).start()
    assert user.link.up
    assert user.link.outlet is None
    assert len(user.redis.connections) == 1


def test_subscribes_before_it_is_up_and_keeps_what_comes_between() -> None:
    user = User(also=["example.com/USER_IP"])
    user.link.start()
    user.redis.network.clock.advance(0)
    for _ in range(3):
        for wire in list(user.network.wires.values()):
            wire.server.arrive()
        user.redis.deliver(b"example.com", b"early")
        for wire in list(user.network.wires.values()):
            wire.client.arrive()
    assert user.told[0] == "up"
    assert user.told[1][0] == b"early"
    user.redis.say("USER_IP x", channel=b"example.com/USER_IP")
    assert user.told[-1] == [b"USER_IP x"]


def test_wrong_password_is_tried_again_and_shown() -> None:
    user = User(user="u", password="secret")
    user.redis.password = b"other"
    user.start()
    assert not user.link.up
    assert "WRONGPASS" in str(user.link.last_error)
    assert "secret" not in str(user.link.last_error)
    user.redis.password = b"secret"
    run_until(user.network, lambda: user.link.up)
    assert [b"AUTH", b"u", b"secret"] in user.redis.commands


def test_nobody_there() -> None:
    user = User()
    user.redis.kill()
    user.start()
    user.network.run(20)
    assert not user.link.up
    assert user.link.last_error
    user.redis.start()
    run_until(user.network, lambda: user.link.up)


def test_redis_that_never_answers_the_subscription() -> None:
    user = User()
    user.redis.mute = True
    user.start()
    user.network.run(16)
    assert "no answer within" in str(user.link.last_error)
    user.redis.mute = False
    run_until(user.network, lambda: user.link.up)


def test_half_dead_connections_are_noticed() -> None:
    user = User().start()
    user.network.run(120)
    assert user.told == ["up"]  # PING keeps it alive
    assert [b"PING"] in user.redis.commands
    user.redis.mute = True
    user.network.run(DEAD_AFTER_S + PING_AFTER_S)
    assert user.told[1][0] == "down"
    assert "no sign of life" in user.told[1][1]


def test_a_paused_reader_is_not_dead() -> None:
    user = User().start()
    user.link.pause()
    user.link.pause()
    user.redis.say("kept")
    user.network.run(DEAD_AFTER_S * 2)
    assert user.told == ["up"]
    user.link.resume()
    user.link.resume()
    user.network.settle()
    assert user.told[1] == [b"kept"]


def test_what_is_not_redis_ends_the_connection() -> None:
    user = User().start()
    user.redis.connections[0].transport.write(b"HTTP/1.1 400\r\n")
    user.network.settle()
    assert "is this Redis" in user.told[1][1]


def test_refused_publishing_ends_the_link() -> None:
    user = User().start()
    user.redis.connections[1].transport.write(b"-NOPERM no\r\n")
    user.network.settle()
    assert "Redis refuses: NOPERM no" in user.told[1][1]


def test_a_full_socket_drains() -> None:
    user = User().start()
    assert not user.publish(b"x" * 5_000)
    user.network.settle()
    assert user.told == ["up", "drained", [b"x" * 5_000]] or "drained" in user.told


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_stopping_while_connecting(after: int) -> None:
    user = User()
    user.link.start()
    for _ in range(after):
        for wire in list(user.network.wires.values()):
            for end in wire.ends:
                end.arrive()
    with structlog.testing.capture_logs() as logs:
        user.stop()
        user.network.run(10)
    assert not user.link.up
    assert not user.redis.connections
    assert [entry for entry in logs if entry["event"] == "redis.unreachable"] == []


@pytest.mark.parametrize("password", [None, "secret"])
def test_lost_before_it_was_up(password: str | None) -> None:
    user = User(password=password)
    user.redis.mute = True
    user.start()
    user.redis.cut()
    user.network.turn()
    assert str(user.link.last_error).startswith("connection_lost: ")
    assert user.told == []


# -- being heard -----------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "says"), [(b"slave", "a replica"), (b"sentinel", "a Sentinel")])
def test_who_publishes_for_others_takes_only_the_primary(role: bytes, says: str) -> None:
    user = User(to_others=True)
    user.redis.role = role
    user.start()
    assert not user.link.up
    assert says in str(user.link.last_error)
    user.redis.role = b"master"
    run_until(user.network, lambda: user.link.up)
    user.network.run(60)
    assert user.told == ["up"]
    user.redis.role = role  # and hangs up on nobody
    user.network.run(PING_AFTER_S + 4)
    assert user.told[1][0] == "down"
    assert says in user.told[1][1]


def test_who_only_listens_takes_a_replica() -> None:
    user = User()
    user.redis.role = b"slave"
    user.start()
    assert user.link.up
    assert [b"ROLE"] not in user.redis.commands


def test_a_role_that_may_not_be_asked_is_not_asked_again() -> None:
    user = User(to_others=True)
    user.redis.role = b""
    user.start()
    user.network.run(60)
    assert user.told == ["up"]
    assert user.redis.commands.count([b"ROLE"]) == 1


def test_lines_that_do_not_come_back_end_the_link() -> None:
    user = User(to_others=True).start()
    assert user.link.publish([b"one", b"two"])
    user.network.run(DEAD_AFTER_S * 2)
    assert user.told == ["up", [b"one", b"two"]] or "down" not in str(user.told)
    user.redis.deaf = True
    user.link.publish([b"three"])
    user.network.run(DEAD_AFTER_S + 4)
    assert "has not come back for" in str(user.link.last_error)
    assert user.link.reconnects == 1


def test_who_is_paused_or_full_waits_for_nothing() -> None:
    user = User(to_others=True).start()
    user.link.pause()
    user.link.publish([b"one"])
    user.network.run(DEAD_AFTER_S * 2)
    user.link.resume()
    user.network.settle()
    user.link.publish([b"x" * 5_000])
    assert user.link.outlet is not None
    assert user.link.outlet.busy
    user.link._sweep()
    user.network.settle()
    assert "down" not in str(user.told)


def test_without_redis_nothing_is_published() -> None:
    assert not User().link.publish([b"x"])
