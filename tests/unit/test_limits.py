"""The limits: each is positive, says its unit, and fits its neighbours."""

from __future__ import annotations

import re

from tcprepl import limits

NAMES = [name for name in vars(limits) if name.isupper()]
UNITS = re.compile(r"(_BYTES|_CHARS|_S|_MS|_ROWS|_LINES|_PAIRS|_TOKEN)$|^MAX_\w+S$")


def test_every_limit_is_positive_and_names_its_unit() -> None:
    assert NAMES
    for name in NAMES:
        assert getattr(limits, name) > 0, name
        assert UNITS.search(name), name


def test_the_limits_fit_each_other() -> None:
    assert limits.MAX_LINE_BYTES < limits.MAX_NATIVE_LINE_BYTES
    assert limits.MAX_ROW_BYTES + 2 * limits.MAX_NAME_CHARS < limits.MAX_NATIVE_LINE_BYTES
    assert limits.MAX_BATCH_BYTES >= limits.MAX_NATIVE_LINE_BYTES
    assert limits.PING_INTERVAL_S * 2 < limits.PING_TIMEOUT_S
    assert limits.MAX_TOKEN == 2**63 - 1
