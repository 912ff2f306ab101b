"""What is printed: rows on stdout, at once, and nothing that a terminal would obey."""

from __future__ import annotations

import sys
from contextlib import suppress

from tcprepl.protocol.display import displayable


def write_out(text: bytes) -> None:
    """Write lines to stdout and push them out, what a terminal would obey as ``\\uXXXX``.

    Rows are the same JSON so, whoever reads them.
    """
    write_as_is(displayable(text.decode("utf-8", "replace"), lines=True).encode())


def write_as_is(text: bytes) -> None:
    """Write lines to stdout and push them out; what peers sent in them is displayable already."""
    out = sys.stdout.buffer
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def say(text: str) -> None:
    """Tell a person *text* on stdout, if anybody reads there: a server runs on without."""
    with suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()
