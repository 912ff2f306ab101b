"""Rows read every shape that their stream has had, and write the shape that they read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tcprepl.streams import rows
from tcprepl.streams.registry import Registry

REGISTRY = Registry()
DATA = Path(__file__).parents[2] / "data"

#: A line per stream and shape: the row, and some of what it says.
SHAPES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "events",
        '["ev",["$e","!r:x","m.room.member","@a:x",null,null,"join",false,true]]',
        {"data.event_id": "$e", "data.membership": "join", "data.outlier": True},
    ),
    (
        "events",
        '["ev",["$e","!r:x","m.room.member","@a:x",null,null,"join",0]]',
        {"data.rejected": 0, "data.outlier": False},
    ),
    (
        "events",
        '["ev",["$e","!r:x","t",null,null,"$rel"]]',
        {"data.relates_to": "$rel", "data.membership": None},
    ),
    ("events", '["ev",["$e","!r:x","t",null,"$red"]]', {"data.redacts": "$red"}),
    ("events", '["$e","!r:x","t","",null]', {"data.event_id": "$e", "data.state_key": ""}),
    ("events", '["state",["!r:x","m.room.member","@a:x","$e"]]', {"data.state_key": "@a:x"}),
    ("events", '["state",["!r:x","t","",null]]', {"data.event_id": None}),
    ("events", '["state-all",["!big:x"]]', {"data.room_id": "!big:x"}),
    ("events", '["shiny",["!r:x",1]]', {"type": "shiny"}),
    ("backfill", '["$e","!r:x","t",null,null,null]', {"event_id": "$e"}),
    ("backfill", '["$e","!r:x","t",null,null]', {"relates_to": None}),
    (
        "presence",
        '["@a:x","online",1661000000000,1661000000100,1661000000050,"busy bee",true]',
        {"state": "online", "status_msg": "busy bee", "currently_active": True},
    ),
    ("presence", '["@a:x","offline",0,0,0,null,0]', {"currently_active": 0}),
    ("presence_federation", '["matrix.org","@a:x"]', {"destination": "matrix.org"}),
    ("typing", '["!r:x",["@a:x","@b:y"]]', {"user_ids": ["@a:x", "@b:y"]}),
    (
        "receipts",
        '["!r:x","m.read","@a:x","$e",{"ts":1661000000000}]',
        {"thread_id": None, "data": {"ts": 1661000000000}},
    ),
    (
        "receipts",
        '["!r:x","m.read","@a:x","$e","main",{"ts":5}]',
        {"thread_id": "main", "data": {"ts": 5}},
    ),
    ("receipts", '["!r:x","m.read","@a:x","$e",null,{"ts":5}]', {"thread_id": None}),
    ("receipts", '["!r:x","m.read","@a:x","$e","{\\"ts\\":7}"]', {"data": {"ts": 7}}),
    ("push_rules", '["@a:x"]', {"user_id": "@a:x"}),
    ("pushers", '["@a:x","im.vector.app","pushkey123",false]', {"deleted": False}),
    ("caches", '["get_user_by_id",["@a:x"],1550574873251]', {"keys": ["@a:x"]}),
    ("caches", '["get_user_by_id",null,1550574873251]', {"keys": None}),
    (
        "device_lists",
        '["@a:x"]',
        {"is_signature": False, "hosts_calculated": False, "destination": None},
    ),
    ("device_lists", '["@a:x","matrix.org"]', {"destination": "matrix.org", "is_signature": False}),
    ("device_lists", '["@a:x",null]', {"destination": None, "is_signature": False}),
    ("device_lists", '["@a:x",1]', {"is_signature": True, "hosts_calculated": False}),
    ("device_lists", '["@a:x",true,false]', {"is_signature": True, "hosts_calculated": False}),
    ("device_lists", '["@a:x",false,true]', {"is_signature": False, "hosts_calculated": True}),
    ("to_device", '["@a:x"]', {"entity": "@a:x"}),
    (
        "federation",
        '["k",{"key":["!r:x","@a:x"],"edu":{"edu_type":"m.typing","content":{"a":1},'
        '"origin":"x","destination":"y"}}]',
        {"data.key": ["!r:x", "@a:x"], "data.edu.edu_type": "m.typing"},
    ),
    (
        "federation",
        '["e",{"edu_type":"m.x","content":{},"origin":"x","destination":"y"}]',
        {"data.destination": "y"},
    ),
    (
        "federation",
        '["pd",{"state":{"user_id":"@a:x","state":"online"},"dests":["a","b"]}]',
        {"data.state.user_id": "@a:x", "data.dests": ["a", "b"]},
    ),
    ("federation", '["p",{"user_id":"@a:x","state":"online"}]', {"data.state": "online"}),
    ("federation", '["d",{"destination":"y"}]', {"data.destination": "y"}),
    ("federation", '["f",{"destination":"y","failure":{"why":"no"}}]', {"data.destination": "y"}),
    ("federation", '["new",{"some":"thing"}]', {"type": "new"}),
    ("tag_account_data", '["@a:x","!r:x","{}"]', {"tags": "{}"}),
    ("account_data", '["@a:x",null,"m.direct"]', {"room_id": None, "content": msgspec.UNSET}),
    ("account_data", '["@a:x","!r:x","m.tag",{"a":1}]', {"content": {"a": 1}}),
    ("user_signature", '["@a:x"]', {"user_id": "@a:x"}),
    ("public_rooms", '["!r:x","public",null,null]', {"visibility": "public"}),
    ("groups", '["+g:x","@a:x","membership",{}]', {"content": {}}),
    ("current_state_deltas", '["!r:x","t","","$e"]', {"event_id": "$e"}),
    ("sticky_events", '["!r:x","$e"]', {"event_id": "$e"}),
    ("thread_subscriptions", '["@a:x","!r:x","$root"]', {"thread_root_event_id": "$root"}),
    ("un_partial_stated_room", '["!r:x"]', {"room_id": "!r:x"}),
    ("un_partial_stated_event", '["$e",false]', {"rejection_status_changed": False}),
    ("quarantined_media", '["matrix.org","AbCd",true]', {"quarantined": True}),
    ("profile_updates", '["@a:x","update",["displayname"]]', {"affected_fields": ["displayname"]}),
    ("profile_updates", '["@a:x","left_room",null]', {"affected_fields": None}),
]


@pytest.mark.parametrize(("stream", "text", "says"), SHAPES, ids=[f"{s}-{t}" for s, t, _ in SHAPES])
def test_every_shape_is_read_by_name_and_taken_as_it_is(
    stream: str, text: str, says: dict[str, Any]
) -> None:
    row = REGISTRY.decode_row(stream, text.encode())
    for path, expected in says.items():
        found = row
        for name in path.split("."):
            found = getattr(found, name)
        assert found == expected
    assert REGISTRY.check_json_rows(stream, [text.encode()]) == [text.encode()]


SHORT = ("device_lists", "receipts", "account_data")


@pytest.mark.parametrize(
    ("stream", "text"), [(s, t) for s, t, _ in SHAPES if s in SHORT], ids=lambda value: value
)
def test_a_row_is_written_with_the_fields_that_it_was_read_with(stream: str, text: str) -> None:
    row = REGISTRY.decode_row(stream, text.encode())
    assert REGISTRY.encode_rows(stream, [row]) == [text.encode()]


def test_every_stream_has_a_shape_in_this_table() -> None:
    assert {stream for stream, _, _ in SHAPES} == set(REGISTRY.names())


def test_a_receipt_without_its_data_is_refused() -> None:
    for fifth in ('"main"', "null", '"[]"'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(f'["!r","m.read","@a","$e",{fifth}]'.encode(), type=rows.ReceiptRow)


def test_the_content_of_an_edu_stays_as_it_came() -> None:
    text = b'["e",{"edu_type":"m.x","content":{"b": 1,"a":2.50},"origin":"x","destination":"y"}]'
    row = REGISTRY.decode_row("federation", text)
    assert bytes(row.data.content) == b'{"b": 1,"a":2.50}'


@pytest.mark.parametrize("capture", sorted(DATA.glob("*.txt")), ids=lambda path: path.name)
def test_every_row_that_a_real_server_sent_is_read_and_taken(capture: Path) -> None:
    found = 0
    for line in capture.read_bytes().splitlines():
        match = re.match(rb"(?:\S+ )*?RDATA (\S+) (?:\S+ )?(?:batch|\d+) ([\[{].*)$", line)
        if match and (name := match[1].decode()) in REGISTRY:
            REGISTRY.decode_row(name, match[2])
            REGISTRY.check_json_rows(name, [match[2]])
            found += 1
    assert found
