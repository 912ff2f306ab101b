"""Writing to stdout."""

from __future__ import annotations

import pytest

from tcprepl.cli.output import write_out


def test_bytes_are_there_at_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Nothing waits in a buffer."""
    write_out(b"RDATA \xc3\xa9\n")
    assert capfdbinary.readouterr().out == b"RDATA \xc3\xa9\n"
