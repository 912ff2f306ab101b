"""The writer's queue: onto the stream, trimmed by acknowledgement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl.errors import TokenTooOld
from tcprepl.federation.wire.edu import BadEdu, build_edu
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.streams.log import Log
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention
from tcprepl.streams.rows import PresenceRow


class World:
    """A queue on a log in memory."""

    def __init__(self, *senders: str) -> None:
        registry = Registry()
        self.log: Log = open_log(None, registry, Clock(), Retention())
        publisher = Publisher(self.log, registry, "master")
        self.now = 0.0
        self.queue = SendQueue(
            publisher.publish_json,
            self.log,
            "x.example",
            "master",
            senders,
            seconds=lambda: self.now,
        )

    def send(self, number: int, destination: str = "y.example", key: str | None = None) -> Any:
        return result(
            self.queue.build_and_send_edu(
                destination, "m.test", {"n": number}, None if key is None else (key,)
            )
        )

    def rows(self) -> list[tuple[int, bytes]]:
        floor = self.log.floor("federation", "master")
        return list(self.log.read("federation", "master", floor, self.queue.position).rows())

    def held(self) -> list[int]:
        return [token for token, _ in self.rows()]


def result(done: Deferred[Any]) -> Any:
    found: list[Any] = []
    done.addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World("fed1")
    yield made
    made.queue.close()


def test_edus_get_ascending_tokens(world: World) -> None:
    assert world.send(1).last == 1
    assert world.send(2).last == 2
    assert world.queue.position == 2


def test_the_row_is_the_edu_with_its_bytes(world: World) -> None:
    edu = build_edu("x.example", "y.example", "m.test", {"b": 1, "a": "é"})
    result(world.queue.send_edu(edu))
    result(world.queue.send_edu(edu, ("k",)))
    rows = world.rows()
    assert len(rows) == 2
    assert edu.content_bytes in rows[0][1]
    assert json.loads(rows[1][1])[1]["key"] == ["k"]


def test_edus_to_ourselves_are_dropped(world: World) -> None:
    assert world.send(1, "x.example") is None
    assert result(world.queue.send_to(["x.example", "y.example"], "m.x", {})).last == 1
    row = PresenceRow("@a:x", "online", 1, 2, 3, None, True)
    assert result(world.queue.send_presence(row, ["x.example"])) is None


def test_one_edu_for_many_is_encoded_once_and_sent_once_each(world: World) -> None:
    appended = result(
        world.queue.send_to(["y.example", "z.example", "y.example"], "m.x", {"a": 1}, ["k"])
    )
    assert (appended.first, appended.last) == (1, 2)


def test_what_is_no_edu_is_refused(world: World) -> None:
    for destination, content in (("not a name", {}), ("y.example", {"a": float("inf")})):
        with pytest.raises(BadEdu):
            result(world.queue.build_and_send_edu(destination, "m.x", content))
    assert world.queue.position == 0


def test_a_transaction_id_makes_it_safe_to_send_again(world: World) -> None:
    for _ in range(2):
        done = world.queue.build_and_send_edu("y.example", "m.x", {}, transaction_id="t")
        assert result(done).last == 1


def test_presence_is_one_row_for_all(world: World) -> None:
    row = PresenceRow("@a:x", "online", 1, 2, 3, "hi", 1)
    assert result(world.queue.send_presence(row, ["y.example", "z.example"])).last == 1
    ((_, found),) = world.rows()
    kind, presence = json.loads(found)
    assert kind == "pd"
    assert presence["dests"] == ["y.example", "z.example"]
    assert presence["state"]["currently_active"] is True


def test_an_acknowledgement_trims_strictly_below(world: World) -> None:
    for number in range(1, 6):
        world.send(number)
    world.queue.acknowledge("fed1", 3)
    assert world.held() == [3, 4, 5]
    with pytest.raises(TokenTooOld):
        world.log.read("federation", "master", 0, 5)
    world.queue.acknowledge("fed1", 2)
    assert world.held() == [3, 4, 5]


def test_the_slowest_configured_sender_holds_what_it_lacks() -> None:
    world = World("fed1", "fed2")
    for number in range(1, 6):
        world.send(number)
    world.queue.acknowledge("fed1", 5)
    assert world.held() == [1, 2, 3, 4, 5]
    world.queue.acknowledge("stranger", 5)
    assert world.held() == [1, 2, 3, 4, 5]
    world.queue.acknowledge("fed2", 4)
    assert world.held() == [4, 5]
    assert world.queue.acknowledged() == {"fed1": 5, "fed2": 4}
    world.queue.close()


def test_a_sender_that_is_named_later_holds_what_it_lacks() -> None:
    """As if it had been named from the start; those who stay have said what they have said."""
    world = World("fed1")
    for number in range(1, 6):
        world.send(number)
    assert world.queue.acknowledge("fed2", 5) is not None
    world.queue.senders = ("fed2", "fed1")
    assert world.queue.acknowledged() == {"fed2": 0, "fed1": 0}
    assert world.queue.acknowledge("fed1", 5) is None
    assert world.held() == [1, 2, 3, 4, 5]
    assert world.queue.acknowledge("fed2", 3) is None
    assert world.held() == [3, 4, 5]
    world.queue.senders = ("fed1", "fed2", "fed3")
    assert world.queue.acknowledged() == {"fed1": 5, "fed2": 3, "fed3": 0}
    world.queue.close()


@pytest.mark.parametrize(("left", "held"), [(("fed1",), [4]), (("fed2",), [2, 3, 4]), ((), [1])])
def test_a_sender_that_is_named_no_more_holds_nothing(left: tuple[str, ...], held: Any) -> None:
    """What only it had not acknowledged goes at once; without any name retention alone bounds."""
    world = World("fed1", "fed2", "fed3")
    for number in range(1, 5):
        world.send(number)
    world.queue.acknowledge("fed1", 4)
    world.queue.acknowledge("fed2", 2)
    assert world.held() == [1, 2, 3, 4]
    world.queue.senders = left
    assert world.held()[: len(held)] == held
    assert world.queue.acknowledge("fed3", 4) is not None
    assert world.queue.acknowledged() == {
        name: token for name, token in (("fed1", 4), ("fed2", 2)) if name in left
    }
    world.queue.close()


@pytest.mark.parametrize(("senders", "level"), [((), "info"), (("fed1",), "warning")])
def test_an_acknowledgement_in_vain_warns_where_senders_are_named(
    senders: tuple[str, ...], level: str
) -> None:
    """Without any, as the first steps have it, nobody's counts."""
    world = World(*senders)
    with structlog.testing.capture_logs() as logs:
        assert world.queue.acknowledge("other", 0) is not None
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("federation.ack.ignored", level)
    ]
    world.queue.close()


def test_who_has_not_acknowledged_the_newest_row_is_lacking() -> None:
    world = World("fed1", "fed2")
    assert world.queue.lacking() == []  # there is nothing to be had
    world.send(1)
    assert world.queue.lacking() == ["fed1", "fed2"]
    assert world.queue.acknowledge("fed1", 1) is None
    assert world.queue.lacking() == ["fed2"]
    assert world.queue.acknowledge("fed2", 1) is None
    assert world.queue.lacking() == []
    world.send(2)
    assert world.queue.lacking() == ["fed1", "fed2"]
    world.queue.close()


def test_an_acknowledgement_of_what_was_never_written_does_nothing(world: World) -> None:
    world.send(1)
    world.send(2)
    reason = world.queue.acknowledge("fed1", 10)
    assert reason == "token 10 is above the position, 2"
    assert world.held() == [1, 2]
    assert world.queue.acknowledged() == {"fed1": 0}
    assert world.queue.acknowledge("fed1", 2) is None
    assert world.queue.acknowledged() == {"fed1": 2}


def test_an_acknowledgement_that_goes_back_does_not_replace_a_newer(world: World) -> None:
    for number in range(1, 6):
        world.send(number)
    for token in (4, 2, 0):
        assert world.queue.acknowledge("fed1", token) is None
    assert world.queue.acknowledged() == {"fed1": 4}
    assert world.held() == [4, 5]


@pytest.mark.parametrize("senders", [(), ("fed1",), ("fed1", "fed2")])
def test_a_stranger_lets_go_of_nothing_and_holds_nothing(senders: tuple[str, ...]) -> None:
    """However many there are: what is kept and what an acknowledgement costs stays the same."""
    world = World(*senders)
    for number in range(1, 11):
        world.send(number)
    with structlog.testing.capture_logs() as logs:
        for stranger in (None, "", "evil", *(f"n{number}" for number in range(10_000))):
            reason = world.queue.acknowledge(stranger, 10)
            assert reason is not None
            assert "federation.senders" in reason
    assert len(world.held()) == 10
    assert world.queue.acknowledged() == dict.fromkeys(senders, 0)
    assert world.queue.ignored == 10_003
    assert len(logs) == 1
    world.now += 60
    with structlog.testing.capture_logs() as logs:
        world.queue.acknowledge("evil", 10)
    assert [(entry["event"], entry["ignored"]) for entry in logs] == [
        ("federation.ack.ignored", 10_004)
    ]
    for sender in senders:
        assert world.queue.acknowledge(sender, 10) is None
    assert len(world.held()) == (1 if senders else 10)
    world.queue.close()


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "fed1", "fed2", "evil"]), st.integers(-1, 12)), max_size=20
    )
)
def test_what_is_held_is_what_a_configured_sender_may_lack(
    acknowledgements: list[tuple[str | None, int]],
) -> None:
    world = World("fed1", "fed2")
    for number in range(1, 11):
        world.send(number)
    newest = {"fed1": 0, "fed2": 0}
    with structlog.testing.capture_logs():
        for name, token in acknowledgements:
            world.queue.acknowledge(name, token)
            if name in newest and token <= 10:
                newest[name] = max(newest[name], token)
            assert world.held() == list(range(max(1, min(newest.values())), 11))
    world.queue.close()
