"""The client library under asyncio, with a handler: all of `tests.client_kit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client_kit import *  # noqa: F403
from tests.faces import ASYNCIO, using


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(ASYNCIO):
        yield
