"""The dialects: what is said of each is what wire history says."""

from __future__ import annotations

import pytest

from tcprepl.limits import MAX_LINE_BYTES, MAX_NATIVE_LINE_BYTES
from tcprepl.protocol.dialects import DIALECTS


def test_the_dialects_in_order() -> None:
    assert list(DIALECTS) == ["2017", "1.13", "1.14", "1.18", "1.22", "redis", "tcprepl"]
    assert all(name == dialect.name for name, dialect in DIALECTS.items())


@pytest.mark.parametrize(
    ("name", "instance", "tokens", "resume", "announced", "user_sync", "ack", "longest"),
    [
        ("2017", False, 1, True, False, 3, False, MAX_LINE_BYTES),
        ("1.13", True, 1, False, True, 4, False, MAX_LINE_BYTES),
        ("1.14", True, 1, False, True, 4, False, MAX_LINE_BYTES),
        ("1.18", True, 1, False, True, 4, True, MAX_LINE_BYTES),
        ("1.22", True, 2, False, True, 4, True, MAX_LINE_BYTES),
        ("redis", True, 2, False, True, 5, True, MAX_NATIVE_LINE_BYTES),
        ("tcprepl", True, 2, True, True, 5, True, MAX_NATIVE_LINE_BYTES),
    ],
)
def test_what_differs(
    name: str,
    instance: bool,
    tokens: int,
    resume: bool,
    announced: bool,
    user_sync: int,
    ack: bool,
    longest: int,
) -> None:
    dialect = DIALECTS[name]
    assert dialect.rdata_instance is instance
    assert dialect.position_tokens == tokens
    assert dialect.in_band_resume is resume
    assert dialect.announced is announced
    assert dialect.user_sync_arguments == user_sync
    assert dialect.ack_instance is ack
    assert dialect.max_line_bytes == longest
    assert dialect.over_tcp is (name != "redis")
