"""The events are plain values."""

from __future__ import annotations

from tcprepl.errors import CloseReason
from tcprepl.protocol.commands import PingCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    RowsReceived,
    RunReceived,
    in_batches,
)


def test_events_compare_by_value() -> None:
    assert RowsReceived("typing", "master", 5, [b"[]"]) == RowsReceived(
        stream="typing", instance="master", token=5, rows=[b"[]"]
    )
    assert CommandReceived(PingCommand("1")).command == PingCommand("1")
    assert DialectChosen(DIALECTS["1.22"]).dialect.name == "1.22"
    assert Closing(CloseReason.SHUTDOWN, "bye").reason is CloseReason.SHUTDOWN


def test_a_run_stands_for_its_batches() -> None:
    ping = CommandReceived(PingCommand("1"))
    run = RunReceived("typing", "master", [5, 7], [b"[1]", b"[2]"])
    assert list(in_batches([ping, run, ping])) == [
        ping,
        RowsReceived("typing", "master", 5, [b"[1]"]),
        RowsReceived("typing", "master", 7, [b"[2]"]),
        ping,
    ]
