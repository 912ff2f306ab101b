"""RDATA lines to batches: grouping, dropping, bounds, the 2017 catch-up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.errors import CloseReason, LostRow
from tcprepl.limits import MAX_TOKEN
from tcprepl.protocol import batches as batches_module
from tcprepl.protocol.batches import BatchAssembler
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import Event, MixedReceived, RowsReceived, RunReceived, in_batches


def assembler(*live: str, dialect: str = "1.22", **limits: int) -> BatchAssembler:
    """Return an assembler for which *live* streams were announced."""
    batches = BatchAssembler(DIALECTS[dialect], **limits)
    for stream in live:
        batches.position(PositionCommand(stream, "master", 0, 0), [], 0)
    return batches


def read(batches: BatchAssembler, *lines: bytes) -> list[Event]:
    """Return the events of *lines*, all of which have to be RDATA."""
    events: list[Event] = []
    assert batches.read(list(lines), 0, 1, events) == len(lines)
    return list(in_batches(events))


def test_each_token_is_a_batch() -> None:
    batches = assembler("a")
    assert read(batches, b"RDATA a m 5 [1]", b"RDATA a m 7 [2, 3]") == [
        RowsReceived("a", "m", 5, [b"[1]"]),
        RowsReceived("a", "m", 7, [b"[2, 3]"]),
    ]


def test_neighbours_of_one_row_are_a_run() -> None:
    batches = assembler("a", "b")
    events: list[Event] = []
    lines = [
        b"RDATA a m 5 [1]",
        b"RDATA a m 6 [2]",
        b"RDATA a n 3 [3]",
        b"RDATA b m 1 [4]",
        b"RDATA b m 2 [5]",
        b"RDATA b m batch [6]",
        b"RDATA a m 7 [7]",
        b"RDATA a m 8 [8]",
        b"RDATA b m 3 [9]",
        b"RDATA b m 4 [10]",
    ]
    assert batches.read(lines, 0, 1, events) == len(lines)
    assert events == [
        RunReceived("a", "m", [5, 6], [b"[1]", b"[2]"]),
        RowsReceived("a", "n", 3, [b"[3]"]),
        RunReceived("b", "m", [1, 2], [b"[4]", b"[5]"]),
        RunReceived("a", "m", [7, 8], [b"[7]", b"[8]"]),
        RowsReceived("b", "m", 3, [b"[6]", b"[9]"]),
        RowsReceived("b", "m", 4, [b"[10]"]),
    ]


def test_a_line_that_cannot_be_read_ends_a_run() -> None:
    batches = assembler("a")
    events: list[Event] = []
    with pytest.raises(LostRow):
        batches.read([b"RDATA a m 5 [1]", b"RDATA a m 6 [2]", b"RDATA a m x [3]"], 0, 1, events)
    assert events == [RunReceived("a", "m", [5, 6], [b"[1]", b"[2]"])]


def test_rows_of_a_token_travel_together() -> None:
    batches = assembler("a")
    assert read(batches, b"RDATA a m batch [1]", b"RDATA a m batch [2]") == []
    assert batches.held_rows == 2
    assert read(batches, b"RDATA a m 9 [3]", b"RDATA a m 10 [4]") == [
        RowsReceived("a", "m", 9, [b"[1]", b"[2]", b"[3]"]),
        RowsReceived("a", "m", 10, [b"[4]"]),
    ]
    assert batches.held_rows == 0


def test_batches_of_different_instances_and_streams_do_not_mix() -> None:
    batches = assembler("a", "b")
    events = read(
        batches,
        b"RDATA a m batch [1]",
        b"RDATA a n batch [2]",
        b"RDATA b m batch [3]",
        b"RDATA a n 6 [4]",
        b"RDATA b m 6 [5]",
        b"RDATA a m 6 [6]",
    )
    assert events == [
        RowsReceived("a", "n", 6, [b"[2]", b"[4]"]),
        RowsReceived("b", "m", 6, [b"[3]", b"[5]"]),
        RowsReceived("a", "m", 6, [b"[1]", b"[6]"]),
    ]


def test_reading_stops_at_the_first_other_line() -> None:
    batches = assembler("a")
    lines = [b"PING 1", b"RDATA a m 1 [1]", b"RDATA a m 2 [2]", b"POSITION a m 2 2", b"x"]
    events: list[Event] = []
    assert batches.read(lines, 0, 1, events) == 0
    assert batches.read(lines, 1, 1, events) == 3
    assert events == [RunReceived("a", "m", [1, 2], [b"[1]", b"[2]"])]


def test_rows_of_a_stream_that_was_not_announced_are_dropped_and_counted() -> None:
    batches = assembler("a")
    assert read(batches, b"RDATA b m 1 [1]", b"RDATA a m 1 [2]", b"RDATA b m batch [3]") == [
        RowsReceived("a", "m", 1, [b"[2]"])
    ]
    assert batches.dropped_rows == 2
    assert batches.held_rows == 0


def test_a_position_voids_what_is_pending_of_its_pair_only() -> None:
    batches = assembler("a", "b")
    read(batches, b"RDATA a m batch [1]", b"RDATA a n batch [2]", b"RDATA b m batch [3]")
    batches.position(PositionCommand("a", "m", 5, 8), [], 1)
    assert batches.dropped_rows == 1
    assert batches.held_rows == 2
    assert read(batches, b"RDATA a m 9 [4]", b"RDATA a n 9 [5]", b"RDATA b m 9 [6]") == [
        RowsReceived("a", "m", 9, [b"[4]"]),
        RowsReceived("a", "n", 9, [b"[2]", b"[5]"]),
        RowsReceived("b", "m", 9, [b"[3]", b"[6]"]),
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"RDATA a", "RDATA: cut short"),
        (b"RDATA ", "RDATA: cut short"),
        (b"RDATA a m", "RDATA: cut short"),
        (b"RDATA a m ", "RDATA: cut short"),
        (b"RDATA a m 5", "RDATA: the row is empty"),
        (b"RDATA a m 5 ", "RDATA: the row is empty"),
        (b"RDATA a m batch ", "RDATA: the row is empty"),
        (b"RDATA a m x [1]", 'RDATA: token "x" is neither batch nor a whole number'),
        (b"RDATA a m -1 [1]", 'RDATA: token "-1" is neither'),
        (b"RDATA a m BATCH [1]", 'RDATA: token "BATCH" is neither'),
        (f"RDATA a m {MAX_TOKEN + 1} []".encode(), f'RDATA: token "{MAX_TOKEN + 1}" is neither'),
        (b"RDATA a m " + b"9" * 5_000 + b" []", "RDATA: token "),
        (b"RDATA  m 5 [1]", 'RDATA: a name in "RDATA  m " is not 1 to 255 characters'),
        (b"RDATA a \x07 5 [1]", 'RDATA: a name in "RDATA a \\x07 " is not'),
    ],
)
@pytest.mark.parametrize("before", [[], [b"RDATA a m 4 [0]"]])
def test_a_line_that_cannot_be_read_ends_it(before: list[bytes], line: bytes, text: str) -> None:
    batches = assembler("a")
    events: list[Event] = []
    with pytest.raises(LostRow) as caught:
        batches.read([*before, line], 0, 7, events)
    assert len(list(in_batches(events))) == len(before)
    assert caught.value.text.startswith(text)
    assert caught.value.line_number == 7 + len(before)
    assert caught.value.close_reason is CloseReason.LOST_ROW


@pytest.mark.parametrize(
    ("limits", "row"), [({"max_rows": 3}, b"[1]"), ({"max_bytes": 39}, b"x" * 10)]
)
@pytest.mark.parametrize("dialect", ["1.22", "2017"])
def test_what_waits_for_its_token_is_bounded(
    dialect: str, limits: dict[str, int], row: bytes
) -> None:
    pair = b"a" if dialect == "2017" else b"a m"
    batches = assembler("a", "b", dialect=dialect, **limits)
    if dialect == "2017":
        batches.replicate("a")
    line = b"RDATA " + pair + b" batch " + row
    read(batches, line, line, line)
    with pytest.raises(LostRow, match="wait for the token of their batch") as caught:
        batches.read([line], 0, 9, [])
    assert caught.value.line_number == 9


def test_a_bound_counts_all_pairs_together_and_what_left_no_more() -> None:
    batches = assembler("a", "b", max_rows=3)
    for token in range(1, 20):
        read(batches, b"RDATA a m batch []", b"RDATA b m batch []")
        read(batches, f"RDATA a m {token} []".encode(), f"RDATA b m {token} []".encode())
    assert batches.held_rows == 0


def test_pairs_and_streams_are_bounded() -> None:
    batches = assembler("a", max_pairs=2)
    read(batches, b"RDATA a 1 5 []", b"RDATA a 2 5 []")
    with pytest.raises(LostRow, match="more than 2 pairs"):
        batches.read([b"RDATA a 3 5 []"], 0, 1, [])
    batches.position(PositionCommand("b", "m", 0, 0), [], 1)
    with pytest.raises(LostRow, match="more than 2 streams"):
        batches.position(PositionCommand("c", "m", 0, 0), [], 1)


def test_2017_catch_up_joins_rows_that_repeat_their_token() -> None:
    batches = assembler(dialect="2017")
    batches.replicate("a")
    events = read(batches, b"RDATA a 5 [1]", b"RDATA a 5 [2]", b"RDATA a 6 [3]")
    assert events == [RowsReceived("a", "master", 5, [b"[1]", b"[2]"])]
    assert batches.held_rows == 1
    batches.position(PositionCommand("a", "master", None, 6), events, 4)
    assert events[1:] == [RowsReceived("a", "master", 6, [b"[3]"])]
    assert read(batches, b"RDATA a 7 [4]", b"RDATA a batch [5]", b"RDATA a 8 [6]") == [
        RowsReceived("a", "master", 7, [b"[4]"]),
        RowsReceived("a", "master", 8, [b"[5]", b"[6]"]),
    ]
    assert batches.held_rows == 0


def test_2017_catch_up_takes_batches_too() -> None:
    batches = assembler(dialect="2017")
    events = read(batches, b"RDATA a 5 [1]", b"RDATA a batch [2]", b"RDATA a 6 [3]")
    assert events == [RowsReceived("a", "master", 5, [b"[1]"])]
    batches.position(PositionCommand("a", "master", None, 6), events, 4)
    assert events[1:] == [RowsReceived("a", "master", 6, [b"[2]", b"[3]"])]


@pytest.mark.parametrize(
    "line", [b"RDATA a", b"RDATA a x []", b"RDATA a 5 ", f"RDATA a {MAX_TOKEN + 1} []".encode()]
)
def test_2017_catch_up_ends_at_what_cannot_be_read(line: bytes) -> None:
    with pytest.raises(LostRow, match=r"expected RDATA <stream> <token\|batch> <row>"):
        assembler(dialect="2017").read([line], 0, 1, [])


@pytest.mark.parametrize("asked", ["a", "*", None])
def test_2017_asking_again_starts_the_catch_up_anew(asked: str | None) -> None:
    batches = assembler("a", dialect="2017")
    assert len(read(batches, b"RDATA a 5 []")) == 1
    batches.replicate(asked)
    assert read(batches, b"RDATA a 6 []") == []
    assert batches.held_rows == 1


def test_elsewhere_asking_again_changes_nothing_before_the_position() -> None:
    batches = assembler("a")
    batches.replicate("a")
    assert len(read(batches, b"RDATA a m 6 []")) == 1


def test_2017_live_rows_of_several_streams_come_in_their_order() -> None:
    batches = assembler("a", "b", dialect="2017")
    lines = [b"RDATA a 5 [1]", b"RDATA b 1 [2]", b"RDATA a 6 [3]", b"RDATA b 2 [4]"]
    assert [event.token for event in read(batches, *lines)] == [5, 1, 6, 2]  # type: ignore[union-attr]
    assert [event.token for event in read(batches, *lines)] == [5, 1, 6, 2]  # type: ignore[union-attr]


def test_bytes_of_batches_that_left_count_no_more() -> None:
    """However much passes, only what waits at one time is bounded."""
    batches = assembler("a", max_bytes=39)
    for token in range(1, 50):
        events = read(batches, b"RDATA a m batch " + b"x" * 30, b"RDATA a m %d [1]" % token)
        assert [event.token for event in events if isinstance(event, RowsReceived)] == [token]


#: Lines that are as they nearly always are, and others.
USUAL = st.builds(
    lambda stream, instance, token: b"RDATA %b %b %d [%d]" % (stream, instance, token, token),
    st.sampled_from([b"a", b"b"]),
    st.sampled_from([b"m", b"n"]),
    st.integers(0, MAX_TOKEN),
)
ODD = st.sampled_from(
    [
        b"POSITION a m 5",
        b"POSITION a m 5 6",
        b"PING 5",
        b"",
        b"RDATA a m batch [1]",
        b"RDATA c m 5 [1]",
        b"RDATA a p 5 [1]",
        b"RDATA a m 5 ",
        b"RDATA a m 5",
        b"RDATA a m  [1]",
        b"RDATA a m 1_0 [1]",
        b"RDATA a m -5 [1]",
        b"RDATA a m 0005 [1]",
        b"RDATA a m %d [1]" % (MAX_TOKEN + 1),
        b"RDATA a m %b5 [1]" % (b"0" * 30),
        b"RDATA a m %b [1]" % (b"9" * 5_000),
        b"RDATA  a m 5 [1]",
        b"RDATA a m 5 [1]  ",
        b"RDATA a m 5  ",
    ]
)


@given(reads=st.lists(st.lists(st.one_of(USUAL, USUAL, USUAL, ODD), max_size=8), max_size=4))
def test_rows_that_come_mixed_are_the_same_rows(reads: list[list[bytes]]) -> None:
    """The quick way and the thorough one say the same of any lines, in any reads."""
    told: list[list[object]] = []
    for mixes in (False, True):
        batches = assembler("a", "b")
        batches.mixes = mixes
        seen: list[object] = []
        for lines in reads:
            events: list[Event] = []
            index = 0
            try:
                while index < len(lines):
                    index = batches.read(lines, index, 1, events) + 1
                    seen.append(index)
            except LostRow as error:
                seen.append((error.text, error.line_number))
            seen += in_batches(events)
        told.append([seen, batches.dropped_rows, batches.held_rows])
    assert told[0] == told[1]


def test_rows_of_known_pairs_come_mixed() -> None:
    batches = assembler("a", "b")
    batches.mixes = True
    lines = [b"RDATA a m 1 [1]", b"RDATA b m 1 [2]", b"RDATA a m 2 [3]"]
    events: list[Event] = []
    batches.read(lines, 0, 1, events)
    assert not any(isinstance(event, MixedReceived) for event in events), "nobody had met them"
    events.clear()
    assert batches.read([b"PING 1", *lines], 1, 1, events) == 4
    assert events == [
        MixedReceived([("a", "m"), ("b", "m"), ("a", "m")], [1, 1, 2], (b"[1]", b"[2]", b"[3]"))
    ]
    events.clear()
    batches.read(lines[::2], 0, 1, events)
    assert events == [RunReceived("a", "m", [1, 2], [b"[1]", b"[3]"])]


@pytest.mark.parametrize(
    "odd",
    [
        b"PING 1",
        b"RDATA a",
        b"RDATA a m",
        b"RDATA b m 3 [3]",
        b"RDATA c m 3 [3]",
        b"RDATA a m batch [3]",
        b"RDATA a m  [3]",
        b"RDATA a m 3 ",
        b"RDATA a m %b [3]" % (b"0" * 30),
        b"RDATA a m %d [3]" % (MAX_TOKEN + 1),
    ],
)
def test_runs_are_read_up_to_what_is_none(odd: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_LEAST_LINES", 1)
    batches = assembler("a", "b")
    lines = [b"RDATA a m 1 [1]", b"RDATA a m 2 [2]"]
    events: list[Event] = []
    assert batches.read_runs(lines, 0, events) == 0, "nobody had met the pair"
    read(batches, *lines)
    batches.position(PositionCommand("b", "m", None, 0), events, 1)
    assert batches.read_runs([odd, *lines], 0, events) == 0
    assert batches.read_runs([lines[0], odd, *lines], 0, events) == 0
    assert events == []
    assert batches.read_runs([odd, *lines, *lines], 1, events) == 5
    assert events == [RunReceived("a", "m", [1, 2, 1, 2], [b"[1]", b"[2]"] * 2)]


def test_a_run_waits_for_the_batch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_LEAST_LINES", 1)
    batches = assembler("a")
    read(batches, b"RDATA a m batch [1]")
    events: list[Event] = []
    lines = [b"RDATA a m 2 [2]", b"RDATA a m 3 [3]"]
    assert batches.read_runs(lines, 0, events) == 0
    batches.mixes = True
    assert batches.read(lines, 0, 1, events) == 2
    assert events == [
        RowsReceived("a", "m", 2, [b"[1]", b"[2]"]),
        RowsReceived("a", "m", 3, [b"[3]"]),
    ]


def test_short_runs_are_left_to_be_read_line_by_line() -> None:
    batches = assembler("a", "b")
    read(batches, b"RDATA a m 1 [1]", b"RDATA b m 1 [1]")
    events: list[Event] = []
    run = [b"RDATA a m %d []" % token for token in range(2, 40)]
    other = b"RDATA b m 2 [2]"
    assert batches.read_runs([*run[:31], other, *run[31:]], 0, events) == 0
    assert batches.read_runs(run[:31], 0, events) == 0
    assert batches.read_runs([*run[:5], b"RDATA a m batch []", *run[5:]], 0, events) == 0
    assert events == []
    assert batches.read_runs([*run[:32], other], 0, events) == 32
    assert events == [RunReceived("a", "m", list(range(2, 34)), [b"[]"] * 32)]


def test_runs_of_several_pairs_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_LEAST_LINES", 1)
    batches = assembler("a", "b")
    read(batches, b"RDATA a m 1 [1]", b"RDATA b m 1 [1]")
    events: list[Event] = []
    lines = [b"RDATA a m %d []" % token for token in range(2, 9)]
    assert batches.read_runs([*lines, b"RDATA b m 2 [2]"], 0, events) == 8
    assert events == [
        RunReceived("a", "m", list(range(2, 9)), [b"[]"] * 7),
        RowsReceived("b", "m", 2, [b"[2]"]),
    ]


def test_2017_rows_do_not_mix() -> None:
    batches = assembler("a", "b", dialect="2017")
    batches.mixes = True
    lines = [b"RDATA a 1 [1]", b"RDATA b 1 [2]", b"RDATA a 2 [3]"]
    assert len(read(batches, *lines)) == len(read(batches, *lines)) == 3


@pytest.mark.parametrize(
    ("dialect", "prefix"), [("1.22", b"RDATA a m "), ("2017", b"RDATA a "), ("2017", b"RDATA b ")]
)
def test_the_largest_token_is_one_and_the_next_is_none(dialect: str, prefix: bytes) -> None:
    batches = assembler("a", dialect=dialect)
    events = read(batches, prefix + b"%d [1]" % MAX_TOKEN)
    batches.position(PositionCommand("b", "master", 0, 0), events, 1)
    assert [event.token for event in events if isinstance(event, RowsReceived)] == [MAX_TOKEN]
    for token in (MAX_TOKEN + 1, 10**19, 10**20):
        with pytest.raises(LostRow):
            read(assembler("a", dialect=dialect), prefix + b"%d [1]" % token)


@pytest.mark.parametrize("line", [b"RDATA a m x [3]", b"RDATA c", b"RDATA a m batch 22"])
def test_what_cannot_be_read_is_told_with_its_line(line: bytes) -> None:
    batches = assembler("a", max_bytes=3)
    with pytest.raises(LostRow) as caught:
        batches.read([b"RDATA a m 5 [1]", b"RDATA a m batch 11", line], 0, 40, [])
    assert caught.value.line_number == 42


def test_2017_a_line_that_cannot_be_read_is_told_with_its_number() -> None:
    with pytest.raises(LostRow) as caught:
        assembler(dialect="2017").read([b"RDATA a 5 [1]", b"RDATA a x [1]"], 0, 40, [])
    assert caught.value.line_number == 41


def test_as_many_bytes_as_are_allowed_may_wait() -> None:
    batches = assembler("a", max_bytes=4)
    assert read(batches, b"RDATA a m batch 11", b"RDATA a m batch 22") == []
    with pytest.raises(LostRow):
        read(batches, b"RDATA a m batch 3")


def test_2017_what_came_with_a_token_does_not_come_with_the_next() -> None:
    batches = assembler(dialect="2017")
    events = read(batches, b"RDATA a batch [1]", b"RDATA a 5 [2]", b"RDATA a 6 [3]")
    batches.position(PositionCommand("a", "master", 0, 0), events, 1)
    assert events == [
        RowsReceived("a", "master", 5, [b"[1]", b"[2]"]),
        RowsReceived("a", "master", 6, [b"[3]"]),
    ]
