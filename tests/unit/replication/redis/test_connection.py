"""One connection: replies go to who asked, in order; what is wrong ends it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory

from tcprepl.errors import ConnectionFailed
from tcprepl.replication.redis.connection import RedisConnection
from tests.redis_world import FakeRedis


class World:
    """A connection to a fake Redis."""

    def __init__(self) -> None:
        self.redis = FakeRedis()
        self.network = self.redis.network
        self.taken: list[list[bytes]] = []
        self.connection = RedisConnection(self.network.clock, b"c", self.taken.append, lambda: None)
        assert self.redis.connect(Factory.forProtocol(lambda: self.connection))

    def ask(self, *words: bytes) -> Deferred[Any]:
        """Ask, and let it be answered."""
        answer = Deferred.fromCoroutine(self.connection.ask(*words))
        self.network.settle()
        return answer


def failure(answer: Deferred[Any]) -> ConnectionFailed:
    """Return how *answer* failed."""
    caught: list[Any] = []
    answer.addErrback(lambda reason: caught.append(reason.value))
    (error,) = caught
    assert isinstance(error, ConnectionFailed)
    return error


def test_replies_go_to_who_asked_in_order() -> None:
    world = World()
    first = Deferred.fromCoroutine(world.connection.ask(b"PING"))
    second = Deferred.fromCoroutine(world.connection.ask(b"ROLE"))
    world.network.settle()
    assert (first.result, second.result) == (b"PONG", [b"master", 0, []])  # type: ignore[attr-defined]


def test_messages_are_taken_whenever_they_come() -> None:
    world = World()
    assert world.ask(b"SUBSCRIBE", b"c").result == [b"subscribe", b"c", 1]  # type: ignore[attr-defined]
    world.redis.say("one", channel=b"c")
    assert world.taken == [[b"one"]]


def test_a_refusal_is_for_good_and_the_end_is_not() -> None:
    world = World()
    world.redis.password = b"right"
    refused = failure(world.ask(b"AUTH", b"wrong"))
    assert not refused.transient
    assert "WRONGPASS" in str(refused)
    world.redis.mute = True
    waiting = world.ask(b"PING")
    world.redis.cut()
    for gone in (
        waiting,
        world.ask(b"PING"),
        Deferred.fromCoroutine(world.connection.check_role()),
    ):
        error = failure(gone)
        assert error.transient
        assert "connection_lost" in str(error)


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"*0\r\n", b"*1\r\n$3\r\nnew\r\n"])
def test_a_role_that_is_none_is_no_reason_to_end(answer: bytes) -> None:
    world = World()
    world.redis.mute = True
    checked = Deferred.fromCoroutine(world.connection.check_role())
    world.network.settle()
    world.redis.connections[0].transport.write(answer)
    world.network.settle()
    assert checked.called
    assert world.connection.asks_role
    world.redis.connections[0].transport.write(answer)
    world.network.settle()
    assert world.connection.ended is None
