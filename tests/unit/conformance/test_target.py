"""What is asked of a server before anything is played against it."""

from __future__ import annotations

from typing import Any

from tcprepl.conformance.document import conversations, specification
from tcprepl.conformance.notation import parse
from tcprepl.conformance.target import writes
from tests.conformance_world import ServerWorld, block_of
from tests.unit.conformance.test_server import lacks, says


def test_a_server_that_takes_no_rows_is_told_apart() -> None:
    why = ServerWorld(publishing=False).play(block_of("Nothing was missed"))
    assert why.startswith("rows are not taken here: REFUSED ")
    assert "read_only" in why


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


def test_a_busy_server_is_waited_for() -> None:
    """Where it is must not be missed because it took a second to say so."""
    world = ServerWorld()
    build = world.network.factory.buildProtocol

    def slow(address: Any) -> Any:
        protocol = build(address)
        receive = protocol.dataReceived
        protocol.dataReceived = lambda data: world.network.clock.callLater(1.0, receive, data)
        return protocol

    world.network.factory.buildProtocol = slow
    probe = world.run(world.target.probe(["typing"], everything=True))
    assert probe.offers("typing")
    assert probe.offers("receipts")


def test_a_server_that_does_not_answer_about_a_stream_is_not_waited_for_without_end() -> None:
    world = ServerWorld(lacks(b"ERROR"))
    began = world.network.clock.seconds()
    assert world.run(world.target.probe(["typing", "nonsense"])).offers("typing")
    assert world.network.clock.seconds() - began <= world.target.wait_s + 1
