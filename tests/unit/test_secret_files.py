"""Secrets in files: white space around them does not count, and what is none is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.errors import ConfigError
from tcprepl.secret_files import read_secret


def test_white_space_around_a_secret_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes("\ufeff  hush hush\r\n".encode())
    assert read_secret(path) == "hush hush"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b" \n", "is empty; expected a secret"),
        (b"\xff", "not UTF-8 text"),
        (b"new\nold\n", "has more than one line, .*; expected a secret alone"),
        (b"a\tb", "control characters"),
        ("a\x85b".encode(), "control characters"),
    ],
)
def test_a_file_without_a_secret_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: .*{words}") as raised:
        read_secret(path)
    assert "old" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_secret(tmp_path / "absent")
