"""Where in a row a value does not fit, in words."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import msgspec
import pytest
from msgspec import Raw

from tcprepl.streams import rows
from tcprepl.streams.shapes import (
    SNIPPET_CHARS,
    array_of,
    fault_in,
    is_closed,
    shortened,
    snippet,
    structs_of,
    without_surplus,
)


class Pair(msgspec.Struct, array_like=True):
    """Two numbers."""

    first: int
    second: int


class Named(msgspec.Struct):
    """Something with a name."""

    name: str
    pair: Pair


class Kind(Enum):
    """One of which msgspec says no more."""

    X = "x"


class Choice(msgspec.Struct):
    """Values of its own."""

    of: Literal["a", "b"]
    kind: Kind = Kind.X


def fault(row_type: Any, value: Any) -> tuple[str, Any, str]:
    """Return what is wrong with *value*."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, row_type)
    return fault_in(row_type, value, caught.value)


@pytest.mark.parametrize(
    ("row_type", "value", "found"),
    [
        (rows.TypingRow, ["!r", [5]], ("user_ids[0]", 5, "str")),
        (rows.TypingRow, 5, ("", 5, "array")),
        (rows.DeviceListsRow, ["@a:x", False, 2], ("calculated", 2, "true or false or 0 or 1")),
        (
            rows.DeviceListsRow,
            ["@a:x", 2],
            ("destination_or_signature", 2, "true or false or 0 or 1 or str"),
        ),
        (Choice, {"of": "c"}, ("of", "c", '"a" or "b"')),
        (Choice, {"of": "a", "kind": "z"}, ("kind", "z", "another value")),
        (rows.EventsRow, ["ev", [1, "!r", "t"]], ("data.event_id", 1, "str")),
        (rows.CommonFederationRow, ["x", {}], ("type", "x", "")),
        (
            rows.CommonFederationRow,
            ["e", {"edu_type": 5, "content": {}, "origin": "x", "destination": "y"}],
            ("data.edu_type", 5, "str"),
        ),
        (Named, {"name": "x", "pair": [1, "y"]}, ("pair.second", "y", "int")),
        (dict[str, int], {"a": 1, "b": "x"}, ('["b"]', "x", "int")),
    ],
)
def test_a_fault_is_told_by_names(row_type: Any, value: Any, found: tuple[str, Any, str]) -> None:
    field, where, expected = fault(row_type, value)
    assert (field, where) == found[:2]
    assert expected.startswith(found[2])


@pytest.mark.parametrize(
    ("shape", "closed"),
    [
        (str, True),
        (list[str | None], True),
        (dict[str, int], True),
        (rows.TypingRow, True),
        (rows.EventsRow, True),
        (float, False),
        (tuple[int], False),
        (list[Raw], False),
        (dict[str, Any], False),
    ],
)
def test_a_closed_shape_says_all_of_every_value(shape: Any, closed: bool) -> None:
    assert is_closed(msgspec.inspect.type_info(shape)) is closed


def test_what_follows_the_fields_is_left_out() -> None:
    assert without_surplus(rows.TypingRow, ["!r", [], "new", 5]) == ["!r", []]
    event = ["$e", "!r", "t", None, None, None, None, False, False]
    assert without_surplus(rows.EventsRow, ["ev", [*event, "new"]]) == ["ev", event]
    row = ["!r", []]
    assert without_surplus(rows.TypingRow, row) is row
    assert without_surplus(rows.TypingRow, 5) == 5


def test_structs_and_arrays() -> None:
    assert structs_of(rows.TypingRow) == (rows.TypingRow,)
    assert rows.EventRow in structs_of(rows.EventsRow)
    assert structs_of(Any) == ()
    assert msgspec.convert([[1, 2]], array_of(list[int])).element == [1, 2]  # type: ignore[attr-defined]


def test_what_is_shown_is_short() -> None:
    assert shortened("x" * SNIPPET_CHARS) == "x" * SNIPPET_CHARS
    assert len(shortened("x" * 1_000)) == SNIPPET_CHARS + 3
    assert snippet({"a": None}) == '{"a": null}'
    assert snippet(object()).startswith("<object")
    assert snippet([10**5000]) == "a list that cannot be shown"
