"""The writer under asyncio: all of `tests.writer_kit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faces import ASYNCIO, using
from tests.writer_kit import *  # noqa: F403


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(ASYNCIO):
        yield
