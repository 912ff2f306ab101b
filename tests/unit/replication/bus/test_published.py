"""What is published goes into the log; nothing that a Redis would pass on is kept from others."""

from __future__ import annotations

import pytest

from tests.bus_world import BusWorld


def test_rows_go_into_the_log_and_come_to_those_who_listen() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    assert writer.publish("POSITION events w1 4 4", "RDATA events w1 5 [1]") == b":1\r\n:1\r\n"
    assert world.rows("events", "w1") == [(5, b"[1]")]
    heard = [line for line in one.heard() if line != "REPLICATE "]
    assert heard == ["POSITION events w1 4 4", "RDATA events w1 5 [1]"]


def test_the_first_row_of_a_connection_counts() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("RDATA events w1 5 [1]", "RDATA events w1 6 [2]")
    writer.leave()
    world.client().publish("RDATA events w1 7 [3]")
    assert [row for _, row in world.rows("events", "w1")] == [b"[1]", b"[2]", b"[3]"]
    assert world.intake.gap_status()["gaps"] == 0
    one.heard()
    world.client().publish("RDATA events w1 9 [4]")
    heard = [line for line in one.heard() if line != "REPLICATE "]
    assert heard == ["POSITION events w1 8 8", "RDATA events w1 9 [4]"]
    assert world.intake.gap_status()["gaps"] == 1


def test_what_the_log_has_already_is_passed_on_all_the_same() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION caches w1 4 4", "RDATA caches w1 5 [1]", "RDATA caches w1 5 [2]")
    world.client().publish("RDATA caches w1 batch [0]", "RDATA caches w1 5 [3]")
    assert [row for _, row in world.rows("caches", "w1")] == [b"[1]"]
    heard = [line for line in one.heard() if line.startswith("RDATA")]
    assert heard == [
        "RDATA caches w1 5 [1]",
        "RDATA caches w1 5 [2]",
        "RDATA caches w1 batch [0]",
        "RDATA caches w1 5 [3]",
    ]


def test_a_position_that_does_not_move_is_told() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION typing w1 0 0", "POSITION events w1 4 4")
    world.clock.advance(1)
    one.heard()
    writer.publish("POSITION typing w1 0 0", "POSITION events w1 4 4")
    assert one.heard() == ["POSITION typing w1 0 0", "POSITION events w1 4 4"]


def test_other_lines_come_behind_the_rows_before_them() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION events w1 4 4")
    world.clock.advance(1)
    one.heard()
    writer.publish("RDATA events w1 5 [1]", "LOCK_RELEASED x", "RDATA events w1 6 [2]", "NEW 1")
    assert one.heard() == [
        "RDATA events w1 5 [1]",
        "LOCK_RELEASED x",
        "RDATA events w1 6 [2]",
        "NEW 1",
    ]


def test_a_writer_that_begins_anew_is_heard_with_its_own_tokens() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION typing w1 0 0", *(f"RDATA typing w1 {n} [1]" for n in (1, 2, 3)))
    writer.leave()
    world.clock.advance(1)
    one.heard()
    anew = world.client()
    anew.publish("POSITION typing w1 0 0", "RDATA typing w1 batch [0]", "RDATA typing w1 1 [9]")
    heard = [line for line in one.heard() if line != "REPLICATE "]
    assert set(heard) == {
        "POSITION typing w1 0 0",
        "RDATA typing w1 batch [0]",
        "RDATA typing w1 1 [9]",
    }
    assert [token for token, _ in world.rows("typing", "w1")] == [1, 2, 3, 5, 5]
    anew.publish("POSITION typing w1 1 4")
    assert "POSITION typing w1 1 4" in one.heard()


def test_typing_of_a_writer_without_a_word_of_its_position_begins_anew_too() -> None:
    world = BusWorld()
    writer = world.client()
    writer.publish("POSITION typing w1 0 0", *(f"RDATA typing w1 {n} [1]" for n in (1, 2, 3)))
    one = world.subscriber()
    world.client().publish("RDATA typing w1 2 [9]")
    assert "RDATA typing w1 2 [9]" in one.heard()


def test_rows_that_count_down_are_all_taken() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION backfill w1 3 3")
    again = world.client()
    again.publish(*(f"RDATA backfill w1 {n} [{n}]" for n in (6, 5, 4)), "POSITION backfill w1 3 6")
    assert [token for token, _ in world.rows("backfill", "w1")] == [4, 5, 6]
    heard = [line for line in one.heard() if line.startswith("RDATA")]
    assert heard == [f"RDATA backfill w1 {n} [{n}]" for n in (4, 5, 6)]
    fresh = world.client()
    fresh.publish("RDATA backfill w2 6 [6]", "POSITION backfill w2 3 6")
    assert world.log.position("backfill", "w2") == 6


def test_what_cannot_be_read_is_left_out() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("RDATA events", "POSITION", "RDATA events w1 5 [1", "RDATA events w1 6 [1]")
    assert [row for _, row in world.rows("events", "w1")] == [b"[1]"]
    assert [line for line in one.heard() if line.startswith("RDATA")] == ["RDATA events w1 6 [1]"]


@pytest.mark.parametrize("false", ["RDATA receipts w1 1000000000 [0]", "POSITION receipts w1 5 99"])
@pytest.mark.parametrize("itself", [True, False])
def test_a_false_token_costs_no_row_behind_it(false: str, itself: bool) -> None:
    """Whoever says it; and those who listen hear everything as it was said."""
    world = BusWorld()
    one, writer, liar = world.subscriber(), world.client(), world.client()
    writer.publish("POSITION receipts w1 4 4", "RDATA receipts w1 5 [5]")
    one.heard()
    (writer if itself else liar).publish(false)
    writer.publish("RDATA receipts w1 6 [6]", "RDATA receipts w1 7 [7]")
    writer.publish("RDATA receipts w1 7 [7]", "RDATA receipts w1 8 [8]")
    rows = [row for _, row in world.rows("receipts", "w1") if row != b"[0]"]
    assert rows == [b"[5]", b"[6]", b"[7]", b"[8]"]
    heard = [line for line in one.heard() if line.startswith("RDATA")]
    said = [f"RDATA receipts w1 {token} [{token}]" for token in (6, 7, 7, 8)]
    assert sorted(line for line in heard if not line.endswith("[0]")) == said


def test_a_row_that_is_too_deep_costs_nobody_anything() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    deep = "[" * 100_000 + "]" * 100_000
    said = ["RDATA events w1 5 [5]", f"RDATA events w1 6 {deep}", "RDATA events w1 7 [7]"]
    assert writer.publish("POSITION events w1 4 4", *said) == b":1\r\n" * 4
    assert [row for _, row in world.rows("events", "w1")] == [b"[5]", b"[7]"]
    assert [line for line in one.heard() if line.startswith("RDATA")] == [said[0], said[2]]
    assert not writer.transport.disconnecting


def test_rows_said_twice_in_one_piece_are_passed_on_and_kept_once() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("POSITION receipts w1 4 4")
    one.heard()
    said = [f"RDATA receipts w1 {token} [{token}]" for token in (5, 6, 9, 6, 9, 10)]
    writer.publish(*said)
    assert sorted(one.heard()) == sorted(said)
    assert [token for token, _ in world.rows("receipts", "w1")] == [5, 6, 9, 10]


def test_what_streams_in_turns_have_of_a_pair_is_one_block() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    streams = ("events", "receipts", "typing")
    writer.publish(*(f"RDATA {stream} w1 1 [0]" for stream in streams))
    one.heard()
    blocks: list[tuple[str, list[int]]] = []
    world.log.add_listener(lambda block: blocks.append((block.stream, list(block.tokens))))
    lines = [f"RDATA {stream} w1 {token} [{token}]" for token in (2, 3, 4) for stream in streams]
    writer.publish(*lines)
    assert blocks == [(stream, [2, 3, 4]) for stream in streams]
    assert sorted(one.heard()) == sorted(lines)


def test_one_row_that_is_special_costs_no_other_pair_anything() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.publish("RDATA events w1 5 [5]", "RDATA typing w1 1 [1]")
    one.heard()
    writer.publish(
        "RDATA typing w1 2 [2]",
        "RDATA events w1 5 [5]",  # again
        "RDATA typing w1 3 [3]",
        "RDATA events w1 6 no JSON",
        "RDATA typing w1 4 [4]",
        "RDATA events w1 7 [7]",
    )
    assert [row for _, row in world.rows("typing", "w1")] == [b"[1]", b"[2]", b"[3]", b"[4]"]
    assert [row for _, row in world.rows("events", "w1")] == [b"[5]", b"[7]"]
    heard = one.heard()
    assert heard.count("RDATA events w1 5 [5]") == 1
    assert [line for line in heard if line.startswith("RDATA typing")] == [
        f"RDATA typing w1 {token} [{token}]" for token in (2, 3, 4)
    ]
