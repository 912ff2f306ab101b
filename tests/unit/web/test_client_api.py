"""The Matrix client paths."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.receipts import ReceiptsWriter
from tcprepl.ephemeral.typing_notifications import TypingWriter
from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.streams.registry import StreamDef
from tests.web_site import Answer, Stage

ALICE = "@alice:example.com"
ROOM = "!r:example.com"


class World(Stage):
    """A site with real writers behind it."""

    def __init__(self, **services: Any) -> None:
        super().__init__(extra=[StreamDef("to_device_messages")])
        publish = self.publisher.publish
        self.typing = TypingWriter(self.clock, publish, "example.com")
        self.presence = PresenceWriter(self.clock, publish, "example.com", wall_ms=self.now_ms)
        self.queue = SendQueue(self.publisher.publish_json, self.log, "example.com", "master")
        inner = Stage(
            log=self.log,
            extra=[StreamDef("to_device_messages")],
            reactor=self.clock,
            publisher=self.publisher,
            typing=self.typing,
            presence=self.presence,
            receipts=ReceiptsWriter(self.now_ms, publish, "example.com"),
            edus=self.queue,
            client_tokens={"alice": ALICE, "any": None},
            wall_ms=self.now_ms,
            **services,
        )
        self.site = inner.site

    def put(self, path: str, body: object, token: str = "alice", method: str = "PUT") -> Answer:
        """Send a request as somebody."""
        return self.ask(
            method,
            f"/_matrix/client/v3{path}",
            body=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}"},
        )

    def rows(self, stream: str) -> list[Any]:
        """Return the rows of a stream."""
        page = self.log.read(stream, "master", 0, 2**62)
        return [json.loads(row) for _, row in page.rows()]


@pytest.fixture
def world() -> Any:
    """A world, checked for leftovers."""
    world = World()
    yield world
    world.queue.close()
    world.close()


def test_typing_starts_and_stops(world: World) -> None:
    """By the paths of either version; what is percent-encoded is decoded once."""
    path = f"/rooms/{quote(ROOM)}/typing/{quote(ALICE)}"
    assert world.put(path, {"typing": True, "timeout": 20_000}).json == {}
    assert world.put(path, {"typing": False}).json == {}
    answer = world.ask(
        "PUT", f"/_matrix/client/r0{path}?access_token=alice", body=b'{"typing":true}'
    )
    assert answer.status == 200
    assert world.rows("typing") == [[ROOM, [ALICE]], [ROOM, []], [ROOM, [ALICE]]]


@pytest.mark.parametrize(
    ("path", "body", "token", "status"),
    [
        (f"/rooms/{ROOM}/typing/{ALICE}", {"typing": "yes"}, "alice", 400),
        (f"/rooms/{ROOM}/typing/{ALICE}", {"typing": True, "timeout": -1}, "alice", 400),
        (f"/rooms/{ROOM}/typing/{ALICE}", {}, "alice", 400),
        (f"/rooms/nothing/typing/{ALICE}", {"typing": True}, "alice", 400),
        (f"/rooms/!{'x' * 255}/typing/{ALICE}", {"typing": True}, "alice", 400),
        (f"/rooms/{ROOM}/typing/@bob:example.com", {"typing": True}, "alice", 403),
        (f"/rooms/{ROOM}/typing/@bob:example.com", {"typing": True}, "any", 200),
        (f"/rooms/{ROOM}/typing/@bob:elsewhere", {"typing": True}, "any", 403),
        (f"/rooms/{ROOM}/typing/{ALICE}", {"typing": True}, "wrong", 401),
        (f"/presence/{ALICE}/status", {"presence": "sleeping"}, "alice", 400),
        (f"/presence/{ALICE}/status", {"presence": "online", "status_msg": 1}, "alice", 400),
        (f"/presence/{ALICE}/status", {"presence": "online", "status_msg": "x" * 9999}, "any", 400),
    ],
)
def test_what_is_refused(world: World, path: str, body: object, token: str, status: int) -> None:
    """The shape, the room, the user, the token."""
    answer = world.put(path, body, token)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "*"
    if status != 200:
        assert {"errcode", "error"} <= answer.json.keys()


def test_presence_is_set_and_told(world: World) -> None:
    """Unknown users are offline."""
    path = f"/presence/{ALICE}/status"
    headers = {"Authorization": "Bearer alice"}
    asked = f"/_matrix/client/v3{path}"
    assert world.ask("GET", asked, headers=headers).json == {"presence": "offline"}
    assert world.put(path, {"presence": "online", "status_msg": "busy bee"}).json == {}
    world.clock.advance(2)
    assert world.ask("GET", asked, headers=headers).json == {
        "presence": "online",
        "status_msg": "busy bee",
        "last_active_ago": 2000,
        "currently_active": True,
    }
    assert world.put(path, {"presence": "unavailable"}).status == 200
    assert "currently_active" not in world.ask("GET", asked, headers=headers).json
    assert [row[:2] for row in world.rows("presence")] == [
        [ALICE, "online"],
        [ALICE, "unavailable"],
    ]
    world.put("/presence/@bob:example.com/status", {"presence": "offline"}, "any")
    bob = "/_matrix/client/v3/presence/@bob:example.com/status"
    assert world.ask("GET", bob, headers=headers).json == {"presence": "offline"}


@pytest.mark.parametrize(
    ("body", "data"), [(b"", {}), (b"{}", {}), (b'{"thread_id":"main"}', {"thread_id": "main"})]
)
def test_receipts_are_taken(world: World, body: bytes, data: dict[str, str]) -> None:
    """With a body or without; the answer means that it is safe."""
    answer = world.ask(
        "POST",
        f"/_matrix/client/v3/rooms/{ROOM}/receipt/m.read/$event",
        body=body,
        headers={"Authorization": "Bearer alice"},
    )
    assert answer.json == {}
    assert world.rows("receipts") == [
        [ROOM, "m.read", ALICE, "$event", {"ts": world.now_ms(), **data}]
    ]


def test_other_receipts_are_refused(world: World) -> None:
    """What this process has no place for is not taken."""
    answer = world.put(f"/rooms/{ROOM}/receipt/m.fully_read/$e", {}, method="POST")
    assert answer.error[0] == 400
    assert "m.read or m.read.private" in answer.json["error"]
    answer = world.put(f"/rooms/{ROOM}/receipt/m.read/{'x' * 300}", {}, method="POST")
    assert answer.status == 400


MESSAGES = {
    "@bob:example.com": {"D1": {"n": 1}, "D2": {"n": 2}},
    "@carol:remote": {"*": {"n": 3}},
    "@dave:remote": {"D": {"n": 4}},
    "@eve:other": {"E": {}},
}


def test_to_device_messages_go_to_their_servers(world: World) -> None:
    """Ours into a stream, each other server gets one EDU; a repetition sends nothing twice."""
    for _ in range(2):
        answer = world.put("/sendToDevice/m.test/txn1", {"messages": MESSAGES})
        assert (answer.status, answer.json) == (200, {})
    first, second = world.rows("to_device_messages")
    assert (first["sender"], first["type"], first["user_id"]) == (
        ALICE,
        "m.test",
        "@bob:example.com",
    )
    assert (first["device_id"], first["content"], second["device_id"]) == ("D1", {"n": 1}, "D2")
    assert first["message_id"] == second["message_id"]
    assert world.rows("to_device") == [["@bob:example.com"]]
    edus = [row[1] for row in world.rows("federation")]
    assert [edu["destination"] for edu in edus] == ["remote", "other"]
    assert edus[0]["edu_type"] == "m.direct_to_device"
    assert edus[0]["content"]["messages"] == {
        "@carol:remote": {"*": {"n": 3}},
        "@dave:remote": {"D": {"n": 4}},
    }
    assert edus[0]["content"]["sender"] == ALICE
    world.put("/sendToDevice/m.test/txn2", {"messages": {"@eve:other": {"E": {}}}})
    assert len(world.rows("federation")) == 3


def test_a_transaction_counts_for_its_device(world: World) -> None:
    """Of two devices, two tokens, two users or two types none swallows what another sends."""
    asked = [
        ("alice", "m.test/1", ""),
        ("any", "m.test/1", f"?user_id={ALICE}"),
        ("any", "m.test/1", f"?user_id={ALICE}&device_id=D1"),
        ("any", "m.test/1", f"?user_id={ALICE}&device_id=D2"),
        ("any", "m.test/1", "?user_id=@bob:example.com"),
        ("any", "m.other/1", "?user_id=@bob:example.com"),
        ("any", "m%00a/b", "?user_id=@bob:example.com"),
        ("any", "m/a%00b", "?user_id=@bob:example.com"),
    ]
    for _ in range(2):
        for number, (token, path, query) in enumerate(asked):
            messages = {"@c:example.com": {"D": {"n": number}}, "@c:remote": {"D": {"n": number}}}
            assert (
                world.put(f"/sendToDevice/{path}{query}", {"messages": messages}, token).json == {}
            )
    ours = world.rows("to_device_messages")
    theirs = [row[1]["content"] for row in world.rows("federation")]
    for found in (
        [row["content"]["n"] for row in ours],
        [content["messages"]["@c:remote"]["D"]["n"] for content in theirs],
    ):
        assert found == list(range(len(asked)))
    assert len({row["message_id"] for row in ours}) == len(asked)
    # The name of a server is never cut, however long.
    names = ["x" * 248 + "a.b", "x" * 248 + "b.b"]
    world.put("/sendToDevice/m.test/2", {"messages": {f"@c:{name}": {"D": {}} for name in names}})
    assert [row[1]["destination"] for row in world.rows("federation")[-2:]] == names


def test_empty_messages_are_nothing(world: World) -> None:
    """Nobody is told of no device."""
    for messages in ({}, {"@bob:example.com": {}}):
        assert world.put("/sendToDevice/m.test/t", {"messages": messages}).status == 200
    assert world.rows("to_device") == []


def test_one_bad_recipient_is_named_and_nothing_is_sent(world: World) -> None:
    """Not a failure, and not half of it."""
    good = {"@k:b.example": {"D": {}}, "@bob:example.com": {"D": {}}}
    for bad in ("@y:b.example.", "@y:", "@y:a b", "@y:b_b", f"@y:{'x' * 256}"):
        messages = {**good, bad: {"D": {}}}
        answer = world.put("/sendToDevice/m.test/t", {"messages": messages})
        assert answer.error[:2] == (400, "M_INVALID_PARAM")
        assert bad[:20] in answer.json["error"]
    assert world.rows("federation") == world.rows("to_device_messages") == []


def test_messages_are_parted_where_an_edu_would_be_too_long(world: World) -> None:
    """Each part has an id of its own, and a repetition makes the same parts."""
    messages = {
        f"@u{user}:remote": {f"D{device}": {"n": "\u00e9" * 5_000} for device in range(3)}
        for user in range(4)
    }
    for _ in range(2):
        assert world.put("/sendToDevice/m.test/t", {"messages": messages}).status == 200
    contents = [row[1]["content"] for row in world.rows("federation")]
    assert 2 <= len(contents) <= 3
    assert len({content["message_id"] for content in contents}) == len(contents)
    arrived = [
        (user, device)
        for content in contents
        for user, devices in content["messages"].items()
        for device in devices
    ]
    assert arrived == [(user, device) for user, devices in messages.items() for device in devices]
    for content in contents:
        edu = {"content": content, "edu_type": "m.direct_to_device"}
        assert len(json.dumps(edu, ensure_ascii=False, separators=(",", ":")).encode()) <= 65_536


def test_a_message_that_no_edu_can_hold_is_refused(world: World) -> None:
    """By the name of its device; one byte less is sent."""
    edu = {"sender": ALICE, "type": "m.test", "message_id": "x" * 16}
    edu["messages"] = {"@c:remote": {"D": {"t": ""}}}  # type: ignore[assignment]
    whole = {"content": edu, "edu_type": "m.direct_to_device"}
    room = 65_536 - len(json.dumps(whole, separators=(",", ":")))
    for length, status in ((room + 3, 413), (room - 2, 200)):
        messages = {"@z:other": {"E": {}}, "@c:remote": {"D": {"t": "x" * length}}}
        answer = world.put(f"/sendToDevice/m.test/t{length}", {"messages": messages})
        assert answer.status == status
        if status == 413:
            assert "'@c:remote', device 'D'" in answer.json["error"]
            assert world.rows("federation") == []
    assert len(world.rows("federation")) == 2


def test_messages_that_cannot_be_sent_are_refused(world: World) -> None:
    """A key that is no user, too many devices."""
    answer = world.put("/sendToDevice/m.test/t", {"messages": {"bob": {"D": {}}}})
    assert answer.error[0] == 400
    many = {"@bob:example.com": {str(n): {} for n in range(10_001)}}
    assert world.put("/sendToDevice/m.test/t", {"messages": many}).error[0] == 413


def test_without_a_place_for_them_messages_are_not_taken() -> None:
    """A 200 would be a lie."""
    stage = Stage(client_tokens={"alice": ALICE})
    for user, says in (("@bob:example.com", "to_device_messages"), ("@c:remote", "other servers")):
        answer = stage.ask(
            "PUT",
            "/_matrix/client/v3/sendToDevice/m.test/t",
            body=json.dumps({"messages": {user: {"D": {}}}}).encode(),
            headers={"Authorization": "Bearer alice"},
        )
        assert answer.error[:2] == (404, "M_UNRECOGNIZED")
        assert says in answer.json["error"]
    stage.close()


def test_paths_without_a_writer_are_not_there() -> None:
    """A process that has no typing says so."""
    stage = Stage()
    for path in (f"rooms/{ROOM}/typing/{ALICE}", f"presence/{ALICE}/status"):
        assert stage.ask("PUT", f"/_matrix/client/v3/{path}", body=b"{}").status == 404
    stage.close()


class Refusing:
    """A receipts writer with something in its way."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def receive(self, *_: Any) -> Deferred[Any]:
        """Answer as told."""
        answer: Deferred[Any] = self.outcome()
        return answer


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (lambda: fail(LogUnavailable("full")), 503),
        (lambda: fail(LogCorrupt("malformed")), 503),
        (lambda: fail(ValueError("not that")), 400),
        (lambda: succeed(None), 200),
    ],
)
def test_a_writer_that_fails_is_told_as_it_is(outcome: Any, status: int) -> None:
    """Come back, or do not."""
    stage = Stage(receipts=Refusing(outcome))
    path = f"/_matrix/client/v3/rooms/{ROOM}/receipt/m.read/$e?user_id={ALICE}"
    assert stage.ask("POST", path, body=b"").status == status
    stage.close()


def test_what_clients_ask_first(world: World) -> None:
    """Versions and ways to log in need no token."""
    versions = world.get("/_matrix/client/versions").json["versions"]
    assert {"r0.6.1", "v1.11"} <= set(versions)
    flows = world.get("/_matrix/client/v3/login").json["flows"]
    assert {"type": "m.login.token"} in flows
    preflight = world.ask("OPTIONS", f"/_matrix/client/v3/presence/{ALICE}/status")
    assert preflight.status == 204
