"""Who may come in, with what, and under which name."""

from __future__ import annotations

import pytest

from tcprepl.replication.bus.passwords import Passwords


def test_without_passwords_everybody_is_who_they_say() -> None:
    passwords = Passwords()
    assert not passwords.any
    assert passwords.name_of("gw", "x") == "gw"
    assert passwords.name_of(None, "x") == ""


@pytest.mark.parametrize(
    ("user", "password", "name"),
    [
        (None, "common", ""),
        ("default", "common", ""),
        ("gw", "own", "gw"),
        (None, "own", "gw"),
        ("gw", "common", None),
        ("other", "own", None),
        (None, "", None),
        ("default", "own", None),
    ],
)
def test_with_passwords(user: str | None, password: str, name: str | None) -> None:
    assert Passwords("common", {"gw": "own"}).name_of(user, password) == name
