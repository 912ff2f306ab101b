"""EDUs: built once, opaque afterwards, canonical."""

from __future__ import annotations

import json
import sys

import pytest
from canonicaljson import encode_canonical_json
from msgspec import Raw

from tcprepl.federation.wire.edu import (
    BadEdu,
    BadRow,
    Edu,
    PresenceState,
    build_edu,
    canonicalise,
    edu_from_bytes,
    edu_row,
    is_server_name,
    parse_rows,
    presence_push,
    presence_row,
)

CONTENT = {"user_id": "@a:x", "room_id": "!r:x", "typing": True}


def test_content_is_encoded_once_and_canonically() -> None:
    edu = build_edu("x", "y.example", "m.typing", CONTENT, ("!r:x", "@a:x"))
    assert edu.content_bytes == encode_canonical_json(CONTENT)
    assert edu.decode_content() == CONTENT
    assert edu.key == ("!r:x", "@a:x")


@pytest.mark.parametrize(
    ("destination", "edu_type", "content", "complaint"),
    [
        ("not a name", "m.x", {}, "destination"),
        ("", "m.x", {}, "destination"),
        ("y.example", "", {}, "edu_type"),
        ("y.example", "m.x", [], "content"),
        ("y.example", "m.x", {"a": float("nan")}, "canonical"),
        ("y.example", "m.x", {"a": "\ud800"}, "canonical"),
        ("y.example", "m.x", {"a": object()}, "canonical"),
    ],
)
def test_what_is_no_edu_is_refused(
    destination: str, edu_type: str, content: object, complaint: str
) -> None:
    with pytest.raises(BadEdu, match=complaint):
        build_edu("x", destination, edu_type, content)


@pytest.mark.parametrize("key", [None, ("!r:x", "@a:x"), (1, None, "z")])
def test_a_row_gives_the_edu_back_with_the_same_bytes(key: tuple[str, ...] | None) -> None:
    edu = build_edu("x", "y.example", "m.typing", CONTENT, key)
    row = edu_row(edu)
    assert row == encode_canonical_json(json.loads(row))
    (found,) = parse_rows([row], "x", 0)
    assert (found.destination, found.edu_type, found.origin, found.key) == (
        "y.example",
        "m.typing",
        "x",
        key,
    )
    assert found.content_bytes == edu.content_bytes


def test_content_of_a_parsed_row_is_a_view_of_its_bytes() -> None:
    row = edu_row(build_edu("x", "y.example", "m.typing", CONTENT))
    before = sys.getrefcount(row)
    (found,) = parse_rows([row], "x", 0, canonical=True)
    assert sys.getrefcount(row) == before + 1
    assert found.content_bytes in row


def test_rows_of_a_foreign_master_are_normalised_once() -> None:
    row = (
        b'["k", {"key": ["!r:x", "@a:x"], "edu": {"edu_type": "m.typing", "origin": "x", '
        b'"destination": "y.example", "content": {"b": "\\u00e9", "a": 1.50}}}]'
    )
    (found,) = parse_rows([row], "x", 0)
    assert found.content_bytes == '{"a":1.5,"b":"é"}'.encode()
    assert found.key == ("!r:x", "@a:x")


def test_a_stray_key_within_an_edu_is_not_its_key() -> None:
    row = (
        b'["e",{"content":{},"destination":"y.example","edu_type":"m.x","key":["a"],"origin":"x"}]'
    )
    (found,) = parse_rows([row], "x", 0)
    assert found.key is None


def test_presence_becomes_an_edu_for_each_destination() -> None:
    state = PresenceState("@a:x", "online", 1_000, 0, 0, "hi", True)
    found = parse_rows([presence_row(state, ["y.example", "z.example"])], "x", 1_500)
    assert [edu.destination for edu in found] == ["y.example", "z.example"]
    assert found[0].content is found[1].content
    assert found[0].key == ("@a:x",)
    assert found[0].origin == "x"
    assert found[0].decode_content() == {
        "push": [
            {
                "user_id": "@a:x",
                "presence": "online",
                "last_active_ago": 500,
                "status_msg": "hi",
                "currently_active": True,
            }
        ]
    }


def test_an_offline_user_says_no_more_than_that() -> None:
    push = presence_push(PresenceState("@a:x", "offline", 0, 0, 0, "gone", True), 10)
    assert push == {"presence": "offline", "user_id": "@a:x"}


@pytest.mark.parametrize(
    "row",
    [
        b"not json",
        b"[]",
        b'["e",{}]',
        b'["e",{"content":[1],"destination":"y","edu_type":"m.x","origin":"x"}]',
        b'["e",{"content":{"a":"\\ud800"},"destination":"y","edu_type":"m.x","origin":"x"}]',
        b'["e",{"content":\xff,"destination":"y","edu_type":"m.x","origin":"x"}]',
        b'["pd",{"dests":["y"],"state":{"user_id":5}}]',
        b'["zz",{}]',
        b'["p",{"user_id":"@a:x","state":"online"}]',
        b'["d",{"destination":"y"}]',
        b'["f",{"destination":"y","failure":{}}]',
    ],
)
def test_a_row_that_cannot_be_used_stops_no_other(row: bytes) -> None:
    good = edu_row(build_edu("x", "y.example", "m.typing", CONTENT))
    bad: list[BadRow] = []
    assert len(parse_rows([row, good, row], "x", 0, bad)) == 1
    assert [found.row for found in bad] == [row, row]
    assert len(parse_rows([row], "x", 0)) == 0


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (b'{"a":1}', None),
        (b'{ "a":1}', b'{"a":1}'),
        (b'{"b":1,"a":2}', b'{"a":2,"b":1}'),
        (b'{"a":1e3}', b'{"a":1000.0}'),
        (b'{"a":1.5}', None),
        (b'{"a":-0}', b'{"a":0}'),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b'{"a":"\\/"}', b'{"a":"/"}'),
        ('{"é":"😀"}'.encode(), None),
        (b'{"a":123456789012345678901234567890}', None),
    ],
)
def test_canonicalise(given: bytes, canonical: bytes | None) -> None:
    assert canonicalise(given) == canonical
    assert canonicalise(Raw(given)) == canonical


def test_canonicalise_refuses_what_is_not_json() -> None:
    with pytest.raises(BadEdu):
        canonicalise(b"{")


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("example.com", True),
        ("example.com:8448", True),
        ("1.2.3.4", True),
        ("[::1]:80", True),
        ("localhost", True),
        ("a_b", False),
        ("-a", False),
        ("a:b", False),
        ("a" * 300, False),
        ("", False),
        ("a\n", False),
        ("a:0", False),
        ("a:65535", True),
        ("a:65536", False),
        ("[::1]:99999", False),
        ("[::]", True),
        ("[1:2]", False),
        ("[1.2.3.4]", False),
        ("[::1.2.3.4]", True),
    ],
)
def test_is_server_name(name: str, fine: bool) -> None:
    assert is_server_name(name) is fine


def test_edu_from_bytes_keeps_the_bytes() -> None:
    content = bytes(bytearray(b'{"a":1}'))
    before = sys.getrefcount(content)
    edu = edu_from_bytes("x", "y", "m.x", content, ["k"])
    assert isinstance(edu, Edu)
    assert sys.getrefcount(content) == before + 1
    assert edu.key == ("k",)


def test_every_character_is_written_as_canonical_json_writes_it() -> None:
    """As a key and as a value: the quick encoder has to agree on all of them."""
    for start in range(0, 0x110000, 0x1000):
        codes = range(start, start + 0x1000)
        characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
        value = {character: character for character in reversed(characters)}
        canonical = encode_canonical_json(value)
        assert canonicalise(json.dumps(value).encode()) == canonical
        assert canonicalise(canonical) is None


def test_a_row_that_is_too_deep_is_put_aside() -> None:
    deep = b'["e",%b]' % (b"[" * 100_000 + b"]" * 100_000)
    bad: list[BadRow] = []
    assert parse_rows([deep], "x", 0, bad) == []
    assert [found.row for found in bad] == [deep]
