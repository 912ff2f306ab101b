"""The events are plain values."""

from __future__ import annotations

from tcprepl.errors import CloseReason
from tcprepl.protocol.commands import PingCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import Closing, CommandReceived, DialectChosen, RowsReceived


def test_events_compare_by_value() -> None:
    assert RowsReceived("typing", "master", 5, [b"[]"]) == RowsReceived(
        stream="typing", instance="master", token=5, rows=[b"[]"]
    )
    assert CommandReceived(PingCommand("1")).command == PingCommand("1")
    assert DialectChosen(DIALECTS["1.22"]).dialect.name == "1.22"
    assert Closing(CloseReason.SHUTDOWN, "bye").reason is CloseReason.SHUTDOWN
