"""A right client passes, each wrong one fails where it is wrong."""

from __future__ import annotations

import pytest

from tcprepl.conformance.document import Block, conversations, specification
from tcprepl.conformance.notation import ConversationFailed
from tests.conformance_world import Change, ClientWorld, block_of, honest
from tests.unit.conformance.test_server import lacks, says, twice

WITH_CLIENTS = [
    pytest.param(block, id=block.caption)
    for _, block in conversations(specification())
    if "client" in block.options
]


@pytest.mark.parametrize("block", WITH_CLIENTS)
def test_tcprepl_passes(block: Block) -> None:
    """With HTTP and without: then what would be fetched is not played."""
    assert ClientWorld().play(block) == ""
    assert bool(ClientWorld(http=False).play(block)) == ("fetches" in block.text)


WRONG: list[tuple[str, Change, Change, str]] = [
    ("A tcprepl server", says(b"receipts master 3", b"receipts master 0"), honest, "got  REPL"),
    ("A tcprepl server", lacks(b"REPLICATE typing"), honest, "got  REPLICATE receipts *"),
    ("A tcprepl server", lacks(b"PING"), honest, "nothing comes"),
    ("A tcprepl server", twice(b"REPLICATE receipts master"), honest, "got  ["),
    ("A tcprepl server", honest, lacks(b"gets typing 10"), "nothing is printed"),
    ("A tcprepl server", honest, says(b"@b:x", b"@c:x"), "got  (the client gets receipts 4"),
    ("A tcprepl server", honest, says(b"[", b"[["), "got  (the client gets"),
    ("A tcprepl server", honest, twice(b"gets typing 10"), "got  the client gets typing 10"),
    ("Rows that are known", honest, twice(b"gets receipts 4"), "got  the client gets"),
    ("A gap, and a re-read", honest, lacks(b"resets"), "nothing is printed"),
    ("A gap, and a re-read", honest, says(b"from 1 to 3", b"from 1 to 2"), "got  (the client re"),
    ("Another homeserver", says(b"ERROR", b"INFO"), honest, "got  INFO"),
    ("A server that goes silent", lacks(b"PING"), honest, "nothing comes"),
    ("1.22 and later", lacks(b"REPLICATE"), honest, "nothing comes"),
]


@pytest.mark.parametrize(("name", "lines", "printed", "complaint"), WRONG)
def test_a_wrong_client_fails(name: str, lines: Change, printed: Change, complaint: str) -> None:
    """It is said at which line, and what came instead."""
    with pytest.raises(ConversationFailed) as failed:
        ClientWorld(lines, printed).play(block_of(name, of_client=True))
    assert complaint in failed.value.got


def test_a_client_may_leave_out_what_is_its_own_matter() -> None:
    """A name, and instances that it does not know."""
    world = ClientWorld(
        lambda line: () if line[:4] == b"NAME" or b"receipts *" in line else (line,)
    )
    world.play(block_of("A tcprepl server", of_client=True))


def test_a_client_may_send_ping_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Synapse does."""
    monkeypatch.setattr("tcprepl.protocol.session.PING_INTERVAL_S", 5.0)
    assert ClientWorld().play(block_of("A server that goes silent", of_client=True)) == ""


def test_a_client_that_ends_or_does_not_is_dealt_with() -> None:
    world = ClientWorld()
    world.reactor.stubborn = True
    world.play(block_of("Rows that are known", of_client=True))
    assert world.reactor.signals == ["TERM", "KILL"]
    world.reactor.failing = True
    with pytest.raises(ConversationFailed, match="the program ended: no such thing"):
        world.play(block_of("Rows that are known", of_client=True))


def test_a_client_that_somebody_starts_is_asked_for() -> None:
    """What it does with the rows is not seen; the lines are."""
    world = ClientWorld()
    asked: list[str] = []

    def start(text: str) -> None:
        asked.append(text)
        words = [word.split("=", 1) for word in text.split(": start a client with ")[1].split("' ")]
        env = {name: value.strip("'") for name, value in words}
        env = {"TCPREPL_HTTP": "", "TCPREPL_KNOWN": "", **env}
        world.reactor.spawnProcess(_Nobody(), "", [], env)

    world.caller.ask = start
    world.caller.command = ()
    world.play(block_of("Rows that are known", of_client=True))
    assert asked[0].startswith("Rows that are known already: start a client with TCPREPL_ADDR=")
    assert "TCPREPL_KNOWN='receipts=3'" in asked[0]
    world.run(world.caller.close())


class _Nobody:
    def outReceived(self, data: bytes) -> None:
        """Nobody reads it."""
