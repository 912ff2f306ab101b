"""The writer's half of federation, put together on a log in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tcprepl.errors import BadRow
from tcprepl.federation.receiving.receiver import ReceivedEdu
from tcprepl.federation.service import (
    OWN_STREAMS,
    RECEIVED_EDUS,
    SIGNING_KEY_FILE,
    TO_DEVICE_MESSAGES,
    CanonicalPublisher,
    FederationWriter,
)
from tcprepl.federation.writing.server_acl import ServerAcl
from tcprepl.http.security import Gate
from tcprepl.streams.opening import open_log
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Retention


class World:
    """A writer, and its log."""

    def __init__(self, directory: Path | None = None) -> None:
        registry = Registry(map(StreamDef, OWN_STREAMS))
        self.log = open_log(None, registry, Clock(), Retention())
        self.publisher = CanonicalPublisher(self.log, registry, "master")
        self.writer = FederationWriter(
            MemoryReactorClock(),
            server_name="x.example",
            instance="master",
            log=self.log,
            publish_json=self.publisher.publish_json,
            data_directory=directory,
            wall_ms=lambda: 1_000,
        )

    def rows(self, stream: str) -> list[Any]:
        page = self.log.read(stream, "master", 0, 2**60)
        return [json.loads(row) for _, row in page.rows()]

    def receive(self, edu_type: str, content: object, delivery_id: str = "d") -> Any:
        edu = ReceivedEdu(edu_type, Raw(msgspec.json.encode(content)))
        handlers = self.writer.receiver._handlers
        handler = handlers.get(edu_type, self.writer.publish_received)
        return result(handler("y.example", edu, delivery_id))


def result(work: Any) -> Any:
    found: list[Any] = []
    done = work if isinstance(work, Deferred) else None
    if done is None and hasattr(work, "send"):
        done = Deferred.fromCoroutine(work)
    if done is None:
        return work
    done.addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    result(made.writer.close())


def message(user: str = "@b:x.example", sender: str = "@a:y.example") -> dict[str, Any]:
    return {
        "sender": sender,
        "type": "m.test",
        "message_id": "m1",
        "messages": {user: {"D1": {"n": 1}, "D2": {"n": 2}}},
    }


def test_to_device_messages_get_a_row_for_each_device_once(world: World) -> None:
    for _ in range(2):
        world.receive("m.direct_to_device", message())
    assert world.rows("to_device") == [["@b:x.example"]]
    assert [row["device_id"] for row in world.rows(TO_DEVICE_MESSAGES)] == ["D1", "D2"]
    assert world.rows(TO_DEVICE_MESSAGES)[0] == {
        "sender": "@a:y.example",
        "type": "m.test",
        "message_id": "m1",
        "user_id": "@b:x.example",
        "device_id": "D1",
        "content": {"n": 1},
    }


def test_a_message_is_one_however_it_comes(world: World) -> None:
    """Its sender and its id say which; without an id each delivery is one."""
    for number, sender in enumerate(("@a:y.example", "@a:y.example", "@b:y.example")):
        world.receive("m.direct_to_device", message(sender=sender), f"d{number}")
    assert len(world.rows(TO_DEVICE_MESSAGES)) == 4
    for odd in (None, "", 7, {"a": 1}):
        content = {**message(), "message_id": odd}
        for delivery in ("d1", "d1", "d2"):
            world.receive("m.direct_to_device", content, f"{odd}{delivery}")
    rows = world.rows(TO_DEVICE_MESSAGES)
    assert len(rows) == 4 + 4 * 4
    assert {row["message_id"] for row in rows[4:]} <= {None, ""}


def test_a_recipient_that_is_odd_costs_itself(world: World) -> None:
    """The others get theirs."""
    content = message()
    content["messages"]["@c:x.example"] = 5
    content["messages"]["@d:x.example"] = {"D": 6}
    content["messages"]["nobody"] = []
    world.receive("m.direct_to_device", content)
    assert [row["user_id"] for row in world.rows(TO_DEVICE_MESSAGES)] == [
        "@b:x.example",
        "@b:x.example",
        "@d:x.example",
    ]


@pytest.mark.parametrize(
    "content",
    [message(sender="@a:z.example"), message(user="@b:z.example"), message(user="b:x.example")],
)
def test_messages_that_are_not_ours_or_theirs_are_refused(
    world: World, content: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"messages|sender"):
        world.receive("m.direct_to_device", content)
    assert world.rows(TO_DEVICE_MESSAGES) == []


def test_a_message_for_no_device_only_names_the_user(world: World) -> None:
    content = message()
    content["messages"] = {"@b:x.example": {}}
    world.receive("m.direct_to_device", content)
    assert world.rows(TO_DEVICE_MESSAGES) == []
    assert world.rows("to_device") == [["@b:x.example"]]


def test_any_other_edu_is_put_on_the_stream_of_received_ones_once(world: World) -> None:
    for _ in range(2):
        world.receive("m.odd", {"a": 1})
    world.receive("m.odd", {"a": 2}, "e")
    assert world.rows(RECEIVED_EDUS) == [
        {"content": {"a": 1}, "edu_type": "m.odd", "origin": "y.example"},
        {"content": {"a": 2}, "edu_type": "m.odd", "origin": "y.example"},
    ]


def test_typing_presence_and_receipts_go_to_their_functions(world: World) -> None:
    calls: list[tuple[str, Any]] = []
    world.writer.handle(
        typing=lambda origin, content: calls.append(("typing", content)),
        presence=lambda origin, content: calls.append(("presence", content)),
    )
    world.writer.handle(receipts=lambda origin, content: calls.append((origin, content)))
    world.receive("m.typing", {"n": 1})
    world.receive("m.presence", {"n": 2})
    world.receive("m.receipt", {"n": 3})
    assert calls == [("typing", {"n": 1}), ("presence", {"n": 2}), ("y.example", {"n": 3})]


def test_a_server_that_a_room_keeps_out_says_nothing_there(world: World) -> None:
    """Of typing and receipts, in that room; without an ACL everybody is let in."""
    calls: list[Any] = []
    world.writer.handle(
        typing=lambda origin, content: calls.append(content["room_id"]),
        receipts=lambda origin, content: calls.append(sorted(content)),
    )
    acl = ServerAcl(allow=("*",), deny=("*.example",))
    world.writer.hosts.put("!shut:x", ["x.example", "y.example"], acl)
    world.writer.hosts.put("!open:x", ["x.example", "y.example"])
    world.receive("m.typing", {"room_id": "!open:x"})
    with pytest.raises(ValueError, match=r"ACL of !shut:x keeps y\.example out"):
        world.receive("m.typing", {"room_id": "!shut:x"})
    world.receive("m.typing", {"room_id": "!unknown:x"})
    world.receive("m.receipt", {"!open:x": {}, "!shut:x": {}})
    world.writer.hosts.put("!shut:x", ["x.example", "y.example"])
    world.receive("m.receipt", {"!open:x": {}, "!shut:x": {}})
    assert calls == ["!open:x", "!unknown:x", ["!open:x"], ["!open:x", "!shut:x"]]


def test_its_resources_and_its_files(tmp_path: Path) -> None:
    world = World(tmp_path)
    paths = [route.template for route in world.writer.routes(Gate(()))]
    assert "/_matrix/federation/v1/send/{txn}" in paths
    assert "/_tcprepl/v1/edus" in paths
    result(world.writer.close())
    assert (tmp_path / SIGNING_KEY_FILE).exists()
    again = World(tmp_path)
    assert again.writer.signer.key_id == world.writer.signer.key_id
    result(again.writer.close())


def test_every_row_of_the_federation_stream_is_made_canonical(world: World) -> None:
    loose = (
        b'["e", {"origin": "x", "edu_type": "m.x", "destination": "y", "content": {"b":1,"a":2}}]'
    )
    result(world.publisher.publish_json("federation", [loose]))
    page = world.log.read("federation", "master", 0, 9)
    ((_, row),) = page.rows()
    assert row == b'["e",{"content":{"a":2,"b":1},"destination":"y","edu_type":"m.x","origin":"x"}]'
    result(world.publisher.publish_json("received_edus", [b'{"b": 1, "a": 2}']))
    bad = loose.replace(b'{"b":1', b'{"b":"\\ud800"')
    with pytest.raises(BadRow):
        result(world.publisher.publish_json("federation", [bad]))
