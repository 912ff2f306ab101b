"""Golden captures are what real mains of each release still write."""

from __future__ import annotations

import pytest

from tests.interop import golden

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("release", sorted(set(golden.CAPTURES.values())))
def test_committed_capture_has_every_kind_of_line_that_a_real_main_writes(release: str) -> None:
    for name, lines in golden.capture(release).items():
        instance = release in {"1.66.0", "newest"}
        fresh = golden.shapes(lines, instance=instance)
        kept = golden.shapes(golden.read(name), instance=instance)
        assert {kind for kind in fresh if kind[0] != "PING"} <= kept
