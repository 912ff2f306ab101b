"""What is published: what can be read as a line, and as JSON."""

from __future__ import annotations

from tcprepl.replication.relaying.payloads import are_json, are_lines, as_line, is_json


def test_lines_and_json() -> None:
    assert as_line(b"REPLICATE ") == b"REPLICATE "
    assert as_line(b"RDATA s i 1 [1,\n 2]\r\n") == b"RDATA s i 1 [1,  2]"
    assert as_line("caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()) is not None
    assert as_line(b"\xff") is None
    assert is_json(b'["\\ud800"]')
    assert not is_json(b"[")


def test_what_is_odd_in_one_of_many_is_seen() -> None:
    plain = [b"RDATA s i 1 [1]", b"REPLICATE "]
    assert are_lines(plain)
    for odd in (b"a\nb", b"a\r", b"caf\xc3\xa9", b"\xff"):
        assert not are_lines([*plain, odd])
        assert not are_lines([odd, *plain])


def test_json_that_nobody_can_read_for_its_depth_is_none() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert not is_json(deep)
    assert not are_json([b"[1]", deep])


def test_json_of_many_is_that_of_each() -> None:
    assert are_json([b"[1]", b'["\\ud800"]', b"2"])
    assert not are_json([b"[1]", b"["])
    assert not are_json([b"[1", b"2]"])
