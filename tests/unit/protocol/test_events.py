"""The events are plain values."""

from __future__ import annotations

from tcprepl.errors import CloseReason
from tcprepl.protocol.commands import PingCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    MixedReceived,
    RowsReceived,
    RunReceived,
    in_batches,
    unmixed,
)


def test_events_compare_by_value() -> None:
    assert RowsReceived("typing", "master", 5, [b"[]"]) == RowsReceived(
        stream="typing", instance="master", token=5, rows=[b"[]"]
    )
    assert CommandReceived(PingCommand("1")).command == PingCommand("1")
    assert DialectChosen(DIALECTS["1.22"]).dialect.name == "1.22"
    assert Closing(CloseReason.SHUTDOWN, "bye").reason is CloseReason.SHUTDOWN


def test_rows_of_several_pairs_stand_for_their_batches() -> None:
    ping = CommandReceived(PingCommand("1"))
    mixed = MixedReceived([("a", "m"), ("b", "m")], [1, 7], [b"1", b"2"])
    batches = [RowsReceived("a", "m", 1, [b"1"]), RowsReceived("b", "m", 7, [b"2"])]
    assert list(in_batches([ping, mixed])) == [ping, *batches]
    run = RunReceived("a", "m", [1], [b"1"])
    assert list(unmixed([run, mixed])) == [run, *batches], "runs are left as they are"


def test_a_run_stands_for_its_batches() -> None:
    ping = CommandReceived(PingCommand("1"))
    run = RunReceived("typing", "master", [5, 7], [b"[1]", b"[2]"])
    assert list(in_batches([ping, run, ping])) == [
        ping,
        RowsReceived("typing", "master", 5, [b"[1]"]),
        RowsReceived("typing", "master", 7, [b"[2]"]),
        ping,
    ]
