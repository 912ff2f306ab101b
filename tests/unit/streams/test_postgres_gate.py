"""What is appended waits for the database where it has to, and keeps its order."""

from __future__ import annotations

from unittest import mock

import pytest

from tcprepl.errors import LogUnavailable, TokenOrder
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.memory import EphemeralStream
from tcprepl.streams.producers import Produced
from tests.log_kit import DURABLE, EPHEMERAL, PostgresStore, add, result, row
from tests.unit.streams.test_postgresql import World, world

__all__ = ["world"]

pytestmark = pytest.mark.postgresql


def test_what_stands_at_the_gate_keeps_its_order(world: World) -> None:
    append = world.log.append
    waiting = [
        append(DURABLE, "w", [row("a")], transaction_id="a"),
        append(DURABLE, "w", [row("b")]),
        append(DURABLE, "w", [row("c")], transaction_id="c"),
        append(DURABLE, "w", [row("d")], transaction_id="d"),
        append(DURABLE, "w", [row("c")], transaction_id="c"),
        world.log.advance(DURABLE, "w", 9),
    ]
    other = append(DURABLE, "other", [row("z")])
    with mock.patch.object(
        world.database, "transactions", wraps=world.database.transactions
    ) as asked:
        world.reading.run()
        world.work()
    assert [len(call.args[0]) for call in asked.call_args_list] == [1, 3]
    answers = [result(each) for each in waiting]
    assert [answer and answer.first for answer in answers] == [1, 2, 3, 4, 3, None]
    assert result(other).first == 1
    again = append(DURABLE, "w", [row("d")], transaction_id="d")
    world.work()
    assert result(again) == answers[3]
    assert world.log.position(DURABLE, "w") == 9


def test_an_id_that_is_under_way_is_not_looked_up(world: World) -> None:
    first = world.log.append(DURABLE, "w", [row("a")], transaction_id="a")
    world.reading.run()
    second = world.log.append(DURABLE, "w", [row("a")], transaction_id="a")
    assert world.reading.jobs == []
    world.work()
    assert result(first) == result(second)


def test_what_cannot_be_looked_up_is_refused(world: World) -> None:
    waiting = [
        world.log.append(DURABLE, "w", [row("a")], transaction_id="a"),
        world.log.append(DURABLE, "w", [row("b")]),
    ]
    with mock.patch.object(world.database, "transactions", side_effect=LogUnavailable("gone")):
        world.work()
    for each in waiting:
        with pytest.raises(LogUnavailable, match="gone"):
            result(each)
    later = world.log.append(DURABLE, "w", [row("c")])
    world.work()
    assert result(later).first == 1


def test_what_makes_no_sense_is_refused_at_the_gate_too(world: World) -> None:
    first = world.log.append(DURABLE, "w", [row("a")], transaction_id="a")
    second = world.log.append(DURABLE, "w", [row("a")], tokens=[0])
    with pytest.raises(TokenOrder):
        world.log.append(EPHEMERAL, "w", [row("a")], tokens=[MAX_TOKEN + 1])
    with pytest.raises(TokenOrder):
        world.log.advance(EPHEMERAL, "w", MAX_TOKEN + 1)
    world.work()
    assert result(first).first == 1
    with pytest.raises(TokenOrder):
        result(second)
    world.log.ensure(EPHEMERAL, "w")
    world.work()
    assert add(world.store, EPHEMERAL, row("a")).first == 1
    with pytest.raises(TokenOrder):
        world.log.advance(EPHEMERAL, "w", 0)


def test_the_reactor_does_not_wait_for_tokens(world: World) -> None:
    with mock.patch.object(world.writing, "call") as call:
        waiting = [world.log.append(EPHEMERAL, "w", [row("a")] * 30) for _ in range(3)]
        moved = world.log.advance(EPHEMERAL, "w", 200)
        assert not any(each.called for each in (*waiting, moved))
        world.work()
        assert [result(each).last for each in waiting] == [30, 60, 90]
        assert result(moved) is None
        more = world.log.append(EPHEMERAL, "w", [row("a")])
        assert result(more).first == 201
    assert not call.called
    with mock.patch.object(world.database, "write", side_effect=LogUnavailable("full")):
        refused = world.log.append(EPHEMERAL, "w", [row("a")] * 60)
        world.work()
    with pytest.raises(LogUnavailable, match="full"):
        result(refused)


def test_a_producer_comes_again_when_tokens_are_short(world: World) -> None:
    claimed = world.log.claim("p")
    world.work()
    assert result(claimed).epoch == 1
    refused = [
        world.log.append(EPHEMERAL, "w", [row("a")], produced=Produced("p", 1, 1)) for _ in "ab"
    ]
    world.work()
    for each in refused:
        with pytest.raises(LogUnavailable, match="try again"):
            result(each)
    taken = world.log.append(EPHEMERAL, "w", [row("a")], produced=Produced("p", 1, 1))
    assert result(taken).first == 1
    durable = world.log.append(DURABLE, "w", [row("a")], produced=Produced("p", 1, 2))
    world.work()
    assert result(durable).first == 1
    world.close()
    again = PostgresStore(world.store.url, world.store.schema)
    assert add(again, DURABLE, row("a"), produced=Produced("p", 1, 2)) == result(durable)
    again.close()


# --- several servers --------------------------------------------------------------------------


def test_the_last_token_that_is_claimed_needs_no_commit(world: World) -> None:
    world.log.append(EPHEMERAL, "w", [row("a")])
    world.work()
    pair = world.log._pairs[EPHEMERAL, "w"]
    assert isinstance(pair, EphemeralStream)
    world.log.advance(EPHEMERAL, "w", pair.claimed)
    assert pair.position == pair.claimed
    world.log.append(EPHEMERAL, "w", [row("b")])
    assert pair.position == pair.claimed  # until more are
    world.work()
    assert pair.position < pair.claimed
