"""Rows go to stdout, as bytes, and are there at once."""

from __future__ import annotations

import sys
from contextlib import suppress


def write_out(text: bytes) -> None:
    """Write *text* to stdout and push it out."""
    out = sys.stdout.buffer
    out.write(text)
    out.flush()


def say(text: str) -> None:
    """Tell a person *text* on stdout, if anybody reads there: a server runs on without."""
    with suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()
