"""What the faces are built of."""

from __future__ import annotations

import time

from tests.web_site import START_MS, Stage


def test_the_time_of_day_is_an_argument_or_the_real_one() -> None:
    """Never asked for in between."""
    stage = Stage()
    stage.clock.advance(2)
    assert stage.services.now_ms() == START_MS + 2000
    stage.close()
    other = Stage(wall_ms=None)
    assert abs(other.services.now_ms() - time.time() * 1000) < 60_000
    other.close()
