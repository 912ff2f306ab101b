"""What runs while it is entered."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tcprepl.aio.client import ReplicationClient
from tcprepl.aio.running import Running
from tcprepl.aio.writer import ReplicationWriter


def never(*_: object) -> None:
    raise AssertionError("there is no server")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReplicationClient("unix:/nowhere", ["typing"], never),
        lambda: ReplicationWriter("unix:/nowhere"),
    ],
    ids=["client", "writer"],
)
def test_it_runs_while_it_is_entered(make: type[Running]) -> None:
    """It goes on when nobody is there; it stops, whatever it is left by."""

    async def run() -> Running:
        made = make()
        with suppress(ZeroDivisionError):
            async with made as entered:
                assert entered is made
                while made.last_error is None:
                    await asyncio.sleep(0)
                raise ZeroDivisionError
        return made

    made = asyncio.run(run())
    assert not made._service.running
    assert not made.connected
    assert made.reconnects == 0
    assert "nowhere" in str(made.last_error)
