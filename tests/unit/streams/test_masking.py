"""Masking: of every stream that there is, nothing secret is left over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.streams.masking import masked, masked_lines, without_access_tokens
from tcprepl.streams.registry import BUILT_IN, Registry

HUSH = "hush"
#: Rows with a secret in each place where there may be one.
SECRET: dict[str, list[Any]] = {
    "caches": [
        ["get_user_by_access_token", [HUSH], 5],
        ["get_user_by_access_token", [HUSH, HUSH], None],
        ["cs_access_token_fake", HUSH, 5],
    ],
    "pushers": [["@a:x", "app", HUSH, False]],
    "federation": [
        ["e", {"edu_type": "m.x", "content": {"a": HUSH}, "origin": "x", "destination": "y"}],
        ["other", {"a": HUSH}],
    ],
    "account_data": [["@a:x", None, "m.x", {"a": HUSH}], ["@a:x", "!r:x", "m.x", [HUSH]]],
    "tag_account_data": [["@a:x", "!r:x", HUSH]],
    "groups": [["+g:x", "@a:x", "join", {"a": HUSH}]],
}


@pytest.mark.parametrize(("stream", "row"), [(s, r) for s, rows in SECRET.items() for r in rows])
def test_secrets_go(stream: str, row: Any) -> None:
    out = masked(stream, json.dumps(row).encode())
    assert HUSH.encode() not in out
    assert json.loads(out)[0] == row[0]
    assert len(json.loads(out)) == len(row)


def test_however_they_are_written() -> None:
    """JSON has many spellings of a name."""
    row = b'["get_user_by_\\u0061ccess_token",["hush"],1]'
    for mask in (masked, without_access_tokens):
        assert mask("caches", row) == b'["get_user_by_access_token",["<redacted>"],1]'


@pytest.mark.parametrize("row", [b"{}", b"5", b"[]", b'"access_token"', b'["access_token"]'])
def test_rows_of_no_shape_are_no_way_round(row: bytes) -> None:
    assert b"<redacted>" in masked("federation", row) or row == b"[]" or b"[" in row
    masked("caches", row)


def test_the_rest_stays() -> None:
    for stream, row in (
        ("typing", b'["!r:x",["@a:x"]]'),
        ("caches", b'["get_user_by_id", ["@a:x"], 1]'),
        ("caches", b'["f\\\\", ["@a:x"], 1]'),
        ("account_data", b'["@a:x",null,"m.x"]'),
    ):
        assert json.loads(masked(stream, row)) == json.loads(row)


def test_what_is_not_built_in_is_masked_whole() -> None:
    """Nobody knows what is in it."""
    assert masked("my_stream", b'{"password": "hush"}') == b'"<redacted>"'
    assert masked("received_edus", b'["hush"]') == b'"<redacted>"'


def test_built_in_streams_with_free_content_are_all_known() -> None:
    """A stream that comes to have content of others has to be masked."""
    free = {
        stream.name
        for stream in BUILT_IN
        if "content" in str(stream.row_type and getattr(stream.row_type, "__annotations__", ""))
    }
    assert free <= SECRET.keys()


def test_masked_rows_fit_their_stream() -> None:
    """So that a reader of them does not take them for faults, where the shape is fixed."""
    registry = Registry()
    for stream in ("caches", "pushers", "account_data", "tag_account_data", "groups"):
        row = masked(stream, json.dumps(SECRET[stream][0]).encode())
        assert registry.check_json_rows(stream, [row])


def test_lines_keep_their_places() -> None:
    lines = (
        b'RDATA pushers w batch ["@a:x","a b","hush",0]\nRDATA pushers w 7 ["@b:x","c","hush",1]\n'
    )
    assert masked_lines("pushers", lines) == (
        b'RDATA pushers w batch ["@a:x","a b","<redacted>",0]\n'
        b'RDATA pushers w 7 ["@b:x","c","<redacted>",1]\n'
    )


def test_only_caches_have_access_tokens_for_keys() -> None:
    row = b'["get_user_by_access_token", ["x"], 5]'
    assert without_access_tokens("typing", row) is row
    assert without_access_tokens("caches", row) != row
