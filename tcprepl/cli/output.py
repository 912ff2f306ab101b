"""Rows go to stdout, as bytes, and are there at once."""

from __future__ import annotations

import sys


def write_out(text: bytes) -> None:
    """Write *text* to stdout and push it out."""
    out = sys.stdout.buffer
    out.write(text)
    out.flush()
