"""The writer under Twisted: all of `tests.writer_kit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faces import TWISTED, using
from tests.writer_kit import *  # noqa: F403


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(TWISTED):
        yield
