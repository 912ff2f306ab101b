"""The commands by which a homeserver moves to the bus and back, as the page shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.pages import section

#: What the page says of it.
MOVING = section("bus", "Moving in, and out")


def commands() -> tuple[str, str]:
    """Return the relay and the bus as it is shown that they are started."""
    shown = re.findall(r"^\$ (tcprepl .*)$", MOVING, re.MULTILINE)
    assert [command.split()[1] for command in shown] == ["relay", "bus"]
    relay, bus = shown
    return relay, bus


def users_of_redis(names: Iterable[str]) -> list[str]:
    """Return the options by which a redis-server knows processes by name, as it is shown."""
    (shown,) = re.findall(r"^user worker1 (.*)$", MOVING, re.MULTILINE)
    return [word for name in sorted(names) for word in ("--user", name, *shown.split())]
