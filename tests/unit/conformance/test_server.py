"""A right server passes, each wrong one fails where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.error import ConnectError

from tcprepl.access import NOTHING, Grant, Streams, Tokens
from tcprepl.conformance.document import Block, conversations, specification
from tcprepl.conformance.notation import ConversationFailed, Step
from tcprepl.conformance.server import RemotePlayer, play
from tcprepl.protocol.server_session import ServerSession
from tests.conformance_world import Change, ServerWorld, block_of

WITH_SERVERS = [
    pytest.param(block, id=f"{block.caption} {block.number}")
    for _, block in conversations(specification())
    if "client" not in block.options
]


@pytest.mark.parametrize("block", WITH_SERVERS)
def test_tcprepl_passes(block: Block) -> None:
    """Twice, too: what the first time left in the server is not held against it."""
    world = ServerWorld()
    why = [world.play(block) for _ in range(2)]
    assert why[0] == why[1]
    inside = (
        "(trim ",
        "server stops)",
        "moves on",
        "(the server restarts)",
        "(token ",
        "> DRAIN ",
        "dialect=1.13",
        "=1.18",
    )
    assert bool(why[0]) == any(word in block.info + block.text for word in inside)


def lacks(beginning: bytes) -> Change:
    """Return a change after which no line begins so."""
    return lambda line: () if line.startswith(beginning) else (line,)


def says(old: bytes, new: bytes) -> Change:
    """Return a change of the words of a line."""
    return lambda line: (line.replace(old, new),)


def twice(beginning: bytes) -> Change:
    """Return a change after which such a line is said twice."""
    return lambda line: (line, line) if line.startswith(beginning) else (line,)


WRONG: list[tuple[str, Change, str]] = [
    ("Handshake", lacks(b"SERVER"), "nothing comes"),
    ("Handshake", says(b" tcprepl/1", b""), "got  PING"),
    ("Handshake", lacks(b"RDATA"), "nothing comes"),
    ("Handshake", twice(b"RDATA typing master 1"), "got  RDATA"),
    ("Handshake", says(b"@ann:example.com", b"@bob:example.com"), "got  RDATA"),
    ("Handshake", says(b"typing master 0 0", b"typing master 0 1"), "nothing comes"),
    ("A worker resumes", lacks(b"RDATA receipts master 2"), "got  RDATA receipts master 3"),
    ("A worker resumes", lacks(b"POSITION receipts master 3"), "nothing comes"),
    ("Nothing was missed", says(b"POSITION receipts master 1", b"POSITION receipts me 1"), "noth"),
    ("Batches", says(b"master batch", b"master 1"), "got  RDATA"),
    ("A new writer", lambda line: () if b"worker2" in line and b"POS" in line else (line,), "got"),
    ("Publishing by hand", says(b"#7", b"#8"), "got  PUBLISHED"),
    ("Publishing by hand", says(b" row 0 ", b" number 0 "), "got  REFUSED"),
    ("Publishing by hand", lacks(b"REFUSED"), "nothing comes"),
    ("A producer is cut off", says(b" hole 2 ", b" hole 3 "), "got  REFUSED"),
    ("A producer is cut off", says(b" 1 1 #1", b" 9 9 #1"), "got  PUBLISHED"),
    ("A token from another life", lacks(b"ERROR"), "got  POSITION"),
    ("A token from another life", lacks(b"RDATA receipts master 1"), "got  POSITION"),
    ("A slow reader", lacks(b"RDATA receipts master 20001"), "nothing comes"),
    ("An unknown word", lacks(b"ERROR"), "nothing comes"),
    ("Both sides are quiet", lacks(b"PING 1"), "nothing comes"),
    ("A peer dies", lacks(b"ERROR ping"), "the connection is closed"),
    ("2017", says(b"POSITION caches 1", b"POSITION typing 1"), "nothing comes; before it came"),
    ("A remote server is up", lacks(b"REMOTE"), "nothing comes"),
    ("People", lacks(b"INFO"), "nothing comes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "complaint"), WRONG)
def test_a_wrong_server_fails(name: str, change: Change, complaint: str) -> None:
    """It is said at which line, and what came instead."""
    with pytest.raises(ConversationFailed) as failed:
        assert ServerWorld(change).play(block_of(name)) == ""
    assert complaint in failed.value.got
    assert failed.value.step.number > 0


@pytest.mark.parametrize("name", ["Both sides are quiet", "A peer dies"])
def test_a_server_may_send_ping_more_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Synapse does."""
    for module in ("protocol.session", "replication.serving.deadlines"):
        monkeypatch.setattr(f"tcprepl.{module}.PING_INTERVAL_S", 5.0)
    assert ServerWorld().play(block_of(name)) == ""


class Deaf(ServerSession):
    """A session that takes nothing in."""

    __slots__ = ()

    def receive_data(self, data: bytes, now: float) -> None:
        """Do nothing."""


def test_a_server_that_goes_deaf_fails() -> None:
    world = ServerWorld()
    block = block_of("A command from the wrong side")
    probe = world.run(world.target.probe(block.streams))
    make = world.server.make_session

    def deaf(*arguments: Any) -> ServerSession:
        session = make(*arguments)
        session.__class__ = Deaf
        return session

    world.server.make_session = deaf  # type: ignore[method-assign]
    with pytest.raises(ConversationFailed, match="nothing comes"):
        world.run(RemotePlayer(world.target, block, probe).play())


def test_a_server_that_asks_for_a_token_gets_it() -> None:
    world = ServerWorld(token="a" * 16)
    everything = Streams(None)
    grant = Grant("tester", read=everything, write=everything, operate=True)
    world.server.admit(Tokens([("a" * 16, grant)]), NOTHING)
    assert world.play(block_of("Handshake")) == ""
    world.target.token = ""
    why = world.play(block_of("Handshake"))
    assert why.startswith("the server says: not allowed: REPLICATE needs a token")
    world.target.token = "b" * 16
    why = world.play(block_of("Handshake"))
    assert why.startswith("the server says: AUTH: the token is not known")


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_is_restarted(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that is given; it is waited for until it answers."""
    world = ServerWorld(restart="systemctl restart it")
    asked: list[str] = []

    async def run(
        program: str, arguments: list[str], *_: Any, **__: Any
    ) -> tuple[bytes, bytes, int]:
        asked.append(" ".join((program, *arguments)))
        factory, world.network.factory = world.network.factory, None
        world.network.clock.callLater(2, lambda: setattr(world.network, "factory", factory))
        return b"", b"no such unit", code

    monkeypatch.setattr("tcprepl.conformance.server.getProcessOutputAndValue", run)
    if code:
        with pytest.raises(ConversationFailed, match="ended with 3: no such unit"):
            world.play(block_of("The server restarts"))
    else:
        world.play(block_of("The server restarts"))
    assert asked == ["systemctl restart it"]


@pytest.mark.parametrize("times", [2, 3])
def test_a_conversation_into_which_the_server_writes_is_played_again(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may write a row of its own at any time; not for ever, though."""
    world = ServerWorld()
    perform = RemotePlayer.perform
    left = iter(range(times))

    async def disturbed(player: RemotePlayer, steps: Sequence[Step]) -> None:
        if next(left, None) is not None:
            world.log.append("typing", "master", [b'["!r:x",[]]'])
        await perform(player, steps)

    monkeypatch.setattr(RemotePlayer, "perform", disturbed)
    if times == 2:
        assert world.play(block_of("Handshake")) == ""
    else:
        with pytest.raises(ConversationFailed, match="typing"):
            world.play(block_of("Handshake"))


def test_a_server_that_is_gone_after_a_failure_is_told_as_the_failure() -> None:
    world = ServerWorld(says(b"POSITION", b"PLACE"))
    probes = iter([world.target.probe])

    async def once(*arguments: Any, **options: Any) -> Any:
        probe = next(probes, None)
        if probe is None:
            raise ConnectError
        return await probe(*arguments, **options)

    block = block_of("A server that was restored")
    world.target.why_not = lambda block, probe: ""  # type: ignore[method-assign]
    world.target.probe = once  # type: ignore[method-assign]
    with pytest.raises(ConversationFailed, match="PLACE"):
        world.run(play(world.target, block))
