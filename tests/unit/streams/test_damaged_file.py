"""Where damage of the file ends; `test_database.py` has real damage."""

from __future__ import annotations

import sqlite3
from unittest import mock

import pytest

from tcprepl.streams import damaged_file
from tcprepl.streams.damaged_file import end_of_damage, is_between


def test_a_block_whose_end_is_known_is_the_end_of_the_damage() -> None:
    with mock.patch.object(damaged_file, "_next_last", return_value=3) as look:
        assert end_of_damage(mock.Mock(), 1, 0, 99) == 3
    assert look.call_count == 1


def test_a_disk_that_refuses_while_damage_is_looked_at_is_no_damage() -> None:
    connection = mock.Mock()
    connection.execute.side_effect = sqlite3.OperationalError("disk I/O error")
    with pytest.raises(sqlite3.OperationalError):
        end_of_damage(connection, 1, 0, 3)


@pytest.mark.parametrize(
    ("last", "is_it"), [(3, False), (4, True), (9, True), (10, False), ("5", False), (None, False)]
)
def test_a_token_is_a_number_between_two(last: object, is_it: bool) -> None:
    assert is_between(3, last, 9) is is_it
