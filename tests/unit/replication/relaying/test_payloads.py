"""What is published: what can be read as a line, and as JSON."""

from __future__ import annotations

from tcprepl.replication.relaying.payloads import as_line, is_json


def test_lines_and_json() -> None:
    assert as_line(b"REPLICATE ") == b"REPLICATE "
    assert as_line(b"RDATA s i 1 [1,\n 2]\r\n") == b"RDATA s i 1 [1,  2]"
    assert as_line("caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()) is not None
    assert as_line(b"\xff") is None
    assert is_json(b'["\\ud800"]')
    assert not is_json(b"[")
