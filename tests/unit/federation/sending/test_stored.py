"""What is stored of an EDU is what it was, and old leftovers are let go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import pack, supersedes_key, unpack_entry
from tcprepl.federation.wire.edu import edu_from_bytes
from tests.unit.federation.sending.test_outbox import now, numbers, put

KEYS = st.none() | st.lists(st.text(max_size=5) | st.integers(0, 9), max_size=3)


@given(st.text(min_size=1, max_size=20), st.binary(max_size=50), KEYS)
def test_an_edu_comes_back_as_it_was(
    edu_type: str, content: bytes, key: list[str | int] | None
) -> None:
    edu = edu_from_bytes("x.example", "y.example", edu_type, content, key)
    edu_id, expires_ms, found = unpack_entry(7, "y.example", 9, pack(edu))
    assert (edu_id, expires_ms) == (7, 9)
    assert (found.edu_type, found.key, found.content_bytes) == (edu_type, edu.key, content)
    assert (found.origin, found.destination) == ("x.example", "y.example")
    assert (supersedes_key(found) is None) == (key is None)


def test_equal_keys_of_different_types_are_different() -> None:
    one = edu_from_bytes("x", "y", "m.a", b"{}", ["k"])
    two = edu_from_bytes("x", "y", "m.b", b"{}", ["k"])
    assert supersedes_key(one) != supersedes_key(two)


def test_what_belongs_to_no_transaction_waits_again(tmp_path: Path) -> None:
    """The first release could leave such EDUs behind."""
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    put(outbox, "y", 1)
    outbox._connection.execute("UPDATE edus SET transaction_id='gone'")
    now(outbox.close())
    again = Outbox(tmp_path / "outbox.sqlite", run_inline)
    assert numbers(now(again.load("y", 0, 9))) == [1]
    now(again.close())


@pytest.mark.parametrize("orphan_is_newer", [True, False])
def test_of_a_leftover_and_what_waits_the_newer_stays(
    tmp_path: Path, orphan_is_newer: bool
) -> None:
    """There is one place for each key; a sender that could not start would send nothing."""
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    put(outbox, "y", 1, "a")
    now(outbox.load("y", 0, 9))
    outbox._connection.execute("UPDATE edus SET transaction_id='gone'")
    put(outbox, "y", 2, "a")
    now(outbox.totals())
    if orphan_is_newer:
        outbox._connection.execute("UPDATE edus SET id=9 WHERE transaction_id='gone'")
    now(outbox.close())
    again = Outbox(tmp_path / "outbox.sqlite", run_inline)
    assert numbers(now(again.load("y", 0, 9))) == [1 if orphan_is_newer else 2]
    assert now(again.totals())["other"].edus == 1
    now(again.close())
