"""What is asked of a server before anything is played against it."""

from __future__ import annotations

import pytest

from tcprepl.conformance.document import conversations, specification
from tcprepl.conformance.notation import parse
from tcprepl.conformance.target import CannotPlay, writes
from tests.conformance_world import ServerWorld, block_of
from tests.unit.conformance.test_server import says


def test_a_server_that_takes_no_rows_is_told_apart() -> None:
    with pytest.raises(CannotPlay, match=r"rows are not taken here: REFUSED .*read_only"):
        ServerWorld(publishing=False).play(block_of("Nothing was missed"))


def test_what_it_writes_is_known_before() -> None:
    written = {
        block.caption: writes(parse(block))
        for _, block in conversations(specification())
        if "client" not in block.options
    }
    assert written["Handshake and live rows"] == ["typing"]
    assert written["A new writer appears"] == ["receipts"]
    assert written["A slow reader"] == ["receipts"]
    assert written["Batches"] == ["events"]
    assert written["A row that is too long for a Synapse peer"] == ["to_device"]
    assert written["A producer is cut off"] == ["PRODUCER", "receipts"]
    assert written["User sync"] == ["USER_SYNC", "CLEAR_USER_SYNC"]
    assert written["TLS on this port"] == []


def test_a_conversation_that_writes_nothing_leaves_nothing() -> None:
    """The promise of ``--read-only``."""
    for _, block in conversations(specification()):
        if "client" not in block.options and not writes(parse(block)):
            world = ServerWorld()
            before = {pair: world.log.position(*pair) for pair in world.log.pairs()}
            world.play(block)
            assert {pair: world.log.position(*pair) for pair in world.log.pairs()} == before


def test_what_was_there_before_is_found() -> None:
    world = ServerWorld()
    probe = world.run(world.target.probe(["typing", "nonsense"], everything=True))
    assert probe.native
    assert probe.incarnation
    assert probe.in_use == []
    assert probe.offers("typing")
    assert not probe.offers("nonsense")
    world.play(block_of("Handshake"))
    assert world.run(world.target.probe(["typing"])).in_use == ["typing"]
    bare = ServerWorld(says(b" tcprepl/1", b" x"))
    probe = bare.run(bare.target.probe(["receipts"]))
    assert not probe.incarnation
    assert "incarnation" in bare.play(block_of("A server that was restored"))
