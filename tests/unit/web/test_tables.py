"""Rows of streams become rows of tables with the names of 2016."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.web.tables import OLD_SLOTS, feeds, listed_as, slots

FEEDS = feeds(Registry([StreamDef("audit")]))


def place(parameter: str, row: Any) -> tuple[str, list[Any]] | None:
    """Return the table and the cells that a row gets."""
    feed = FEEDS[parameter]
    placed = feed.place(json.dumps(row).encode())
    if placed is None:
        return None
    table, cells = placed
    assert len(cells) == len(feed.tables[table].columns)
    return feed.tables[table].name, [json.loads(cell) for cell in cells]


EVENT = ["$e", "!r", "m.room.member", "@a:x", None, None, "join", False, True]


@pytest.mark.parametrize(
    ("parameter", "row", "expected"),
    [
        ("events", ["ev", EVENT], ("events", EVENT)),
        ("events", EVENT[:5], ("events", [*EVENT[:5], None, None, None, None])),
        (
            "events",
            ["state", ["!r", "t", "k", "$e"]],
            ("current_state_deltas", ["!r", "t", "k", "$e"]),
        ),
        ("events", ["state-all", ["!r"]], ("current_state_deltas", ["!r", None, None, None])),
        ("events", ["new", {"a": 1}], ("other_events", ["new", '{"a": 1}'])),
        ("typing", ["!r", ["@a:x"]], ("typing", ["!r", '["@a:x"]'])),
        (
            "receipts",
            ["!r", "m.read", "@a:x", "$e", {"ts": 1}],
            ("receipts", ["!r", "m.read", "@a:x", "$e", '{"ts": 1}', None]),
        ),
        (
            "receipts",
            ["!r", "m.read", "@a:x", "$e", "main", {"ts": 1}],
            ("receipts", ["!r", "m.read", "@a:x", "$e", '{"ts": 1}', "main"]),
        ),
        (
            "receipts",
            ["!r", "m.read", "@a:x", "$e", '{"ts":1}'],
            ("receipts", ["!r", "m.read", "@a:x", "$e", '{"ts":1}', None]),
        ),
        ("pushers", ["@a:x", "app", "key", False], ("pushers", ["@a:x", "app", "key"])),
        ("pushers", ["@a:x", "app", "key", 1], ("deleted_pushers", ["@a:x", "app", "key"])),
        ("federation", ["k", {"key": []}], ("federation", ["k", '{"key": []}'])),
        ("device_lists", ["@a:x"], ("device_lists", ["@a:x", None, None, None])),
        ("device_lists", ["matrix.org"], ("device_lists", [None, "matrix.org", None, None])),
        ("device_lists", ["@a:x", "m.org"], ("device_lists", ["@a:x", "m.org", None, None])),
        ("device_lists", ["@a:x", True], ("device_lists", ["@a:x", None, True, None])),
        ("device_lists", ["@a:x", False, True], ("device_lists", ["@a:x", None, False, True])),
        ("user_account_data", ["@a:x", None, "t"], ("user_account_data", ["@a:x", "t", None])),
        ("user_account_data", ["@a:x", "!r", "t"], None),
        ("room_account_data", ["@a:x", None, "t"], None),
        (
            "room_account_data",
            ["@a:x", "!r", "t", {"c": 1}],
            ("room_account_data", ["@a:x", "!r", "t", {"c": 1}]),
        ),
        ("account_data", ["@a:x", None, "t"], ("account_data", ["@a:x", None, "t", None])),
        ("caches", ["f", None, 1], ("caches", ["f", None, 1])),
        ("to_device", ["@a:x", "surplus"], ("to_device", ["@a:x"])),
        ("audit", {"any": ["json"]}, ("audit", [{"any": ["json"]}])),
    ],
)
def test_a_row_becomes_cells(
    parameter: str, row: Any, expected: tuple[str, list[Any]] | None
) -> None:
    """Each shape that a stream has had lands in the columns of its table."""
    assert place(parameter, row) == expected


@given(
    st.sampled_from(sorted(FEEDS)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())),
        lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(), inner, max_size=2),
    ),
)
@example("device_lists", ["\ud800"])
@example("events", ["ev", {"no": "event"}])
@example("receipts", [])
@example("room_account_data", ["@a:x"])
@example("typing", {"no": "array"})
def test_any_row_has_its_place(parameter: str, row: Any) -> None:
    """What one row is must not keep a reader from all that come after it."""
    placed = place(parameter, row)
    assert placed is None or placed[1]


def test_every_stream_has_a_feed() -> None:
    """Nothing of the registry is out of reach, and field names are the columns."""
    assert set(Registry().names()) <= FEEDS.keys()
    assert FEEDS["presence"].tables[0].columns == (
        "user_id",
        "state",
        "last_active_ts",
        "last_federation_update_ts",
        "last_user_sync_ts",
        "status_msg",
        "currently_active",
    )


def test_an_opaque_stream_takes_the_place_of_a_built_in_one() -> None:
    """A stream whose rows are opaque here has no columns of 2016."""
    found = feeds(Registry([StreamDef("typing")]))
    assert [table.columns for table in found["typing"].tables] == [("row",)]


def test_the_joined_token_has_the_old_places_first() -> None:
    """Every stream has exactly one place; further streams come after those of 2016."""
    registry = Registry([StreamDef("audit")])
    places = slots(registry)
    assert places[: len(OLD_SLOTS)] == OLD_SLOTS
    assert sorted(name for place in places for name in place) == sorted(registry.names())
    assert places[-1] == ("audit",)


def test_account_data_is_listed_under_its_parts() -> None:
    """The streams table names what can be asked for."""
    assert listed_as(("account_data", "tag_account_data")) == [
        ("user_account_data", "account_data"),
        ("room_account_data", "account_data"),
        ("tag_account_data", "tag_account_data"),
    ]
