"""Query parameters by type."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from tcprepl.http.parameters import Unfit, parameters_of


class Everything(Struct):
    """One of each kind."""

    number: Annotated[int, Meta(ge=-1, le=9)]
    token: int | None = None
    flag: bool = False
    word: Annotated[str, Meta(min_length=1, max_length=3, description="A word.")] | None = None
    shape: Literal["a", "b"] = "a"


KNOWN = {parameter.name: parameter for parameter in parameters_of(Everything)}


@pytest.mark.parametrize(
    ("name", "required", "expectation"),
    [
        ("number", True, "an integer from -1 to 9"),
        ("token", False, f"an integer from 0 to {2**63 - 1}"),
        ("flag", False, "1 or 0"),
        ("word", False, "1 to 3 characters"),
        ("shape", False, "a or b"),
    ],
)
def test_each_says_what_it_takes(name: str, required: bool, expectation: str) -> None:
    """In words."""
    assert (KNOWN[name].required, KNOWN[name].expectation) == (required, expectation)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("number", "-1", -1),
        ("token", "7", 7),
        ("flag", "true", True),
        ("flag", "0", False),
        ("word", "1", "1"),
        ("shape", "b", "b"),
    ],
)
def test_what_fits_is_read(name: str, text: str, value: object) -> None:
    """As its type."""
    assert KNOWN[name].read(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("number", "10"),
        ("number", "1.0"),
        ("number", "+1"),
        ("number", " 1"),
        ("number", "\uff11"),
        ("number", ""),
        ("flag", "yes"),
        ("word", ""),
        ("word", "four"),
        ("shape", "c"),
    ],
)
def test_what_does_not_fit_is_not(name: str, text: str) -> None:
    """Not even nearly."""
    with pytest.raises(Unfit):
        KNOWN[name].read(text)


def test_a_type_that_no_query_can_hold_is_a_mistake() -> None:
    """Found by the first request that lacks it, and by the description."""

    class Odd(Struct):
        rows: list[int]

    with pytest.raises(TypeError, match="rows: no parameter"):
        _ = parameters_of(Odd)[0].expectation
