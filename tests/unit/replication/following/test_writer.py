"""The writer under Twisted: all of `tests.writer_kit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tcprepl.errors import LogUnavailable
from tests.faces import TWISTED, using
from tests.writer_kit import *  # noqa: F403
from tests.writer_kit import Desk


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(TWISTED):
        yield


def test_who_gives_up_waiting_for_the_stop_leaves_no_append_unanswered() -> None:
    desk = Desk()
    desk.start()
    desk.publish(1)
    stopped = desk.writer.stopService()
    stopped.addErrback(lambda _: None)
    stopped.cancel()
    assert isinstance(desk.results[1], LogUnavailable)
    desk.network.run(1)
    desk.end()
