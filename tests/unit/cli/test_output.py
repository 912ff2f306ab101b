"""Writing to stdout."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from tcprepl.cli import output
from tcprepl.cli.output import write_out


def test_bytes_are_there_at_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Nothing waits in a buffer."""
    write_out(b"RDATA \xc3\xa9\n")
    assert capfdbinary.readouterr().out == b"RDATA \xc3\xa9\n"


def test_what_a_terminal_would_obey_is_shown(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Sequences, C1 and overrides; JSON stays the same JSON, and lines stay lines."""
    row = ["a\u009b2J", "b\u202egnp"]
    line = json.dumps(row, ensure_ascii=False)
    write_out(f"ERROR \x1b]0;x\x07\nRDATA s m 1 {line}\n".encode())
    first, second, _ = capfdbinary.readouterr().out.split(b"\n")
    assert first == b"ERROR \\u001b]0;x\\u0007"
    assert second.isascii()
    assert json.loads(second.split(b" ", 4)[4]) == row


def test_a_full_disk_is_said_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(output.sys, "stdout", SimpleNamespace(buffer=full))
        with pytest.raises(OSError, match="No space left on device: 'stdout'"):
            write_out(b"a\n")
        with contextlib.suppress(OSError):  # what is still in its buffer
            full.close()
