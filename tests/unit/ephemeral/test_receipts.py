"""Receipts: rows in both shapes, EDUs in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.ephemeral import receipts
from tcprepl.ephemeral.receipts import ReceiptsWriter
from tests.ephemeral_world import (
    ALICE,
    CARL,
    ELSE,
    ROOM,
    SERVER,
    Edus,
    Publications,
    both_hosts,
)

NOW = 1_700_000_000_000


class World:
    """A writer with its ports."""

    def __init__(self, **options: Any) -> None:
        self.published = Publications()
        self.edus = Edus()
        options = {"hosts_in_room": both_hosts, "send_edu": self.edus, **options}
        self.writer = ReceiptsWriter(lambda: NOW, self.published, SERVER, **options)

    def rows(self) -> list[list[Any]]:
        """The rows, as lists without what is unset."""
        return [
            [row.room_id, row.receipt_type, row.user_id, row.event_id, row.thread_or_data]
            + ([row.data_after_thread] if isinstance(row.data_after_thread, dict) else [])
            for _, _, row in self.published.rows
        ]

    def read(self, **changes: Any) -> None:
        receipt = {
            "room_id": ROOM,
            "receipt_type": "m.read",
            "user_id": ALICE,
            "event_id": "$e",
            "data": {},
        }
        assert self.writer.receive(**(receipt | changes)).called

    def remote(self, user_id: str = CARL, kind: str = "m.read", **receipt: Any) -> bool:
        value = {"event_ids": ["$e"], "data": {"ts": 5}, **receipt}
        content = {ROOM: {kind: {user_id: value}}}
        return self.writer.received_edu(ELSE, content) is not None


@pytest.fixture
def world() -> World:
    return World()


def test_receipt_is_a_row_and_an_edu(world: World) -> None:
    world.read()
    assert world.rows() == [[ROOM, "m.read", ALICE, "$e", {"ts": NOW}]]
    content = {ROOM: {"m.read": {ALICE: {"event_ids": ["$e"], "data": {"ts": NOW}}}}}
    assert world.edus.sent == [([ELSE], "m.receipt", content, (ROOM, "m.read", ALICE, ""))]


def test_row_without_a_field_for_it_keeps_the_thread_in_its_data(world: World) -> None:
    world.read(data={"ts": 7, "thread_id": "main"})
    assert world.rows()[0][4:] == [{"ts": 7, "thread_id": "main"}]
    assert world.edus.sent[0][3] == (ROOM, "m.read", ALICE, "main")


def test_newer_shape_has_a_field_for_the_thread() -> None:
    world = World(threads=True)
    world.read(data={"ts": 7, "thread_id": "main"})
    world.read(data={"thread_id": None})
    world.remote(data={"ts": 5, "thread_id": "$root"})
    assert [row[4:] for row in world.rows()] == [
        ["main", {"ts": 7}],
        [None, {"ts": NOW}],
        ["$root", {"ts": 5}],
    ]


def test_private_receipt_stays_here(world: World) -> None:
    world.read(receipt_type="m.read.private")
    assert len(world.published.rows) == 1
    assert world.edus.sent == []


def test_room_of_our_own_or_no_federation_sends_nothing() -> None:
    world = World(hosts_in_room=lambda _: [SERVER])
    world.read()
    assert world.edus.sent == []
    assert not world.remote()
    World(send_edu=None).read()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"user_id": CARL}, "expected a user of here"),
        ({"room_id": ""}, "room_id"),
        ({"receipt_type": "x" * 256}, "receipt_type"),
        ({"event_id": 5}, "event_id"),
        ({"data": {"thread_id": 5}}, "thread_id"),
    ],
)
def test_bad_receipt_is_refused(world: World, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        world.read(**changes)
    assert world.published.rows == []


def test_remote_receipt_is_a_row(world: World) -> None:
    assert world.remote()
    assert world.remote(event_ids=["$a", "$b"], data={})
    assert [row[3:] for row in world.rows()] == [["$e", {"ts": 5}], ["$b", {"ts": NOW}]]
    assert world.edus.sent == []


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": ALICE},
        {"user_id": "@eve:third.example"},
        {"kind": "m.read.private"},
        {"event_ids": []},
        {"event_ids": "$e"},
        {"event_ids": [5]},
        {"event_ids": ["$" * 256]},
        {"data": "{}"},
    ],
)
def test_remote_receipt_that_does_not_count_is_left_out(
    world: World, changes: dict[str, Any]
) -> None:
    assert not world.remote(**changes)
    assert world.published.rows == []


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        ({"ts": 5, "thread_id": 5}, {"ts": 5}),
        ({"ts": 5, "thread_id": ""}, {"ts": 5}),
        ({"ts": 5, "thread_id": None}, {"ts": 5}),
        ({"ts": 5, "thread_id": ["main"]}, {"ts": 5}),
        ({"ts": 5, "thread_id": "x" * 256}, {"ts": 5}),
        ({"ts": "5"}, {"ts": NOW}),
        ({"ts": True}, {"ts": NOW}),
        ({"ts": -1}, {"ts": NOW}),
        ({"ts": 2**53}, {"ts": NOW}),
        ({"ts": 5, "thread_id": "main", "x": 1}, {"ts": 5, "thread_id": "main", "x": 1}),
    ],
)
def test_an_odd_field_costs_the_field(
    world: World, data: dict[str, Any], kept: dict[str, Any]
) -> None:
    """The receipt counts, without thread, as of now."""
    assert world.remote(data=data)
    assert [row[4] for row in world.rows()] == [kept]


def test_an_odd_room_costs_itself(world: World) -> None:
    """And an odd type of receipt its room's further ones at most."""
    receipt = {"event_ids": ["$e"], "data": {}}
    content = {"!a:x": 5, ROOM: {"m.read": {CARL: receipt}, "m.odd": []}, "!b:x": {"m.read": 5}}
    assert world.writer.received_edu(ELSE, content) is not None
    assert [row[:3] for row in world.rows()] == [[ROOM, "m.read", CARL]]


def test_one_bad_receipt_costs_only_itself(world: World) -> None:
    users = {CARL: {"event_ids": ["$e"]}, "@dora:elsewhere.example": 5}
    assert world.writer.received_edu(ELSE, {ROOM: {"m.read": users}}) is not None
    assert [row[2] for row in world.rows()] == [CARL]


@pytest.mark.parametrize("content", [{ROOM: 5}, {ROOM: {"m.read": []}}])
def test_remote_edu_of_another_shape_is_refused(world: World, content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected an object"):
        world.writer.received_edu(ELSE, content)


def test_remote_edu_has_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_RECEIPTS", 2)
    users = {f"@u{number}:{ELSE}": {"event_ids": ["$e"]} for number in range(5)}
    assert world.writer.received_edu(ELSE, {ROOM: {"m.read": users}}) is not None
    assert len(world.published.rows) == 2
