"""Directories that can be read and not written to, also for tests that root runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be nobody, if we are root, who may read and write everything."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(me)


@contextmanager
def reading_only(place: Path) -> Iterator[None]:
    """Be somebody who may read all of *place*, and write nothing there; it stays as it is."""
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with as_nobody():
        yield
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before
