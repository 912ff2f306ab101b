"""What the reading commands share: endpoints, redaction, positions, when to end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from tcprepl.access import ALL, EVERYTHING, NOTHING, Grant, Tokens
from tcprepl.addresses import Address
from tcprepl.cli import following
from tcprepl.cli.following import (
    Follower,
    command_line,
    positions_of,
    row_lines,
    row_objects,
)
from tcprepl.errors import ConfigError, ConnectionFailed
from tcprepl.protocol.commands import PositionCommand, UserIpCommand
from tcprepl.streams.masking import without_access_tokens
from tests.cli_world import ADDRESS, CliWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CliWorld:
    """A server on a fake clock."""
    return CliWorld(monkeypatch)


class Collected(list[str]):
    """The lines that a follower wrote."""

    def write(self, text: bytes) -> None:
        """Take lines."""
        assert text.endswith(b"\n")
        self += text.decode().splitlines()


def follow(world: CliWorld, streams: tuple[str, ...] | None = None, **options: Any) -> Collected:
    """Run a follower to its end and return its lines."""
    lines = Collected()
    options.setdefault("render", row_lines)

    async def main(reactor: Any) -> None:
        await Follower(reactor, ADDRESS, streams, lines.write, **options).run()

    world.run(main)
    return lines


def test_lines_and_objects() -> None:
    """Rows of a batch say so but for the last; objects have every field."""
    assert row_lines("s", "i", 7, [b"[1]", b"[2]"]) == [
        b"RDATA s i batch [1]",
        b"RDATA s i 7 [2]",
    ]
    objects = [json.loads(line) for line in row_objects("s", "i", 7, [b"[1]", b'{"a":2}'])]
    assert objects == [
        {"stream": "s", "instance": "i", "token": 7, "row": [1]},
        {"stream": "s", "instance": "i", "token": 7, "row": {"a": 2}},
    ]


def test_access_tokens_are_left_out() -> None:
    """In USER_IP, and in caches that have them for keys; other rows are as they came."""
    line = command_line(UserIpCommand("@a:b", "syt_secret", "10.0.0.1", "UA", "D", 5))
    assert b"syt_secret" not in line
    assert b"<redacted>" in line
    assert (
        command_line(PositionCommand("typing", "master", 1, 2)) == b"POSITION typing master 1 2\n"
    )
    row = b'["get_user_by_access_token", ["syt_secret"], 5]'
    assert without_access_tokens("caches", row) == b'["get_user_by_access_token",["<redacted>"],5]'
    for stream, same in (("x", row), ("caches", b'["a", ["b"]]'), ("caches", b'"access_token"')):
        assert without_access_tokens(stream, same) == same


def test_positions(world: CliWorld) -> None:
    """Every stream of the server, without waiting for silence."""
    world.publish("typing", ["!r:a", []], ["!r:b", []])
    began = world.network.clock.seconds()
    found = world.run(lambda reactor: positions_of(reactor, ADDRESS))
    assert found == {
        ("typing", "master"): 2,
        ("device_lists", "master"): 0,
        ("caches", "master"): 0,
    }
    assert world.network.clock.seconds() - began < following.QUIET_S


class Scripted(Protocol):
    """A foreign server: says its lines, and more when asked."""

    lines = b""
    answer = b""

    def connectionMade(self) -> None:
        """Greet."""
        self.transport.write(self.lines)

    def dataReceived(self, data: bytes) -> None:
        """Answer REPLICATE."""
        if b"REPLICATE" in data and self.answer:
            self.transport.write(self.answer)
        elif data and not self.lines:
            self.transport.loseConnection()


def foreign(world: CliWorld, lines: bytes, answer: bytes = b"") -> None:
    """Let somebody else listen."""

    class Foreign(Factory):
        noisy = False

        def buildProtocol(self, addr: IPv4Address) -> Scripted:
            protocol = Scripted()
            protocol.lines = lines
            protocol.answer = answer
            return protocol

    world.network.factory = Foreign()


def test_positions_of_a_synapse(world: CliWorld) -> None:
    """A server without STATUS has told all when it falls silent."""
    foreign(world, b"SERVER a\nPING 1\n", b"POSITION typing master 3 3\nPOSITION events w 4 9\n")
    found = world.run(lambda reactor: positions_of(reactor, ADDRESS))
    assert found == {("typing", "master"): 3, ("events", "w"): 9}


@pytest.mark.parametrize(
    ("lines", "text"),
    [(b"HTTP/1.1 400 Bad Request\n", "test:1: "), (b"SERVER a", "said nothing"), (b"", "test:1: ")],
)
def test_positions_of_something_else(world: CliWorld, lines: bytes, text: str) -> None:
    """What is no replication server is said to be none, soon."""
    foreign(world, lines)
    with pytest.raises(ConnectionFailed, match=text):
        world.run(lambda reactor: positions_of(reactor, ADDRESS))
    assert world.network.clock.seconds() < 10


def test_until_head_from_the_start(world: CliWorld) -> None:
    """What was there is printed, and that is all."""
    world.publish("typing", ["!r:a", ["@a:a"]])
    world.publish("device_lists", ["@a:a"], ["@b:a"], batch=True)
    assert sorted(follow(world, since="start", until_head=True)) == [
        'RDATA device_lists master 1 ["@b:a"]',
        'RDATA device_lists master batch ["@a:a"]',
        'RDATA typing master 1 ["!r:a",["@a:a"]]',
    ]
    assert follow(world, ("caches",), since="start", until_head=True) == []


def test_after_a_token_with_count(world: CliWorld) -> None:
    """The rows after a token, and no more than asked for, even within a batch."""
    world.publish("device_lists", ["@1:a"], ["@2:a"], ["@3:a"])
    world.publish("device_lists", ["@4:a"], ["@5:a"], batch=True)
    lines = follow(world, ("device_lists",), since=1, count=3)
    assert [line.split(" ", 3)[3] for line in lines] == [
        '2 ["@2:a"]',
        '3 ["@3:a"]',
        'batch ["@4:a"]',
    ]


def test_for_some_time_with_commands(world: CliWorld) -> None:
    """Live rows and positions, for so many seconds; a cut wire in between is mended."""
    world.later(2.0, lambda: world.publish("typing", ["!r:1", []]))

    def cut() -> None:
        world.network.wires["x"].cut()
        world.publish("typing", ["!r:2", []])

    world.later(3.0, cut)
    lines = follow(world, ("typing",), for_s=20.0, commands=True)
    assert lines[:2] == ["SERVER example.com", "POSITION typing master 0 0"]
    assert [line for line in lines if line.startswith("RDATA")] == [
        'RDATA typing master 1 ["!r:1",[]]',
        'RDATA typing master 2 ["!r:2",[]]',
    ]


def test_other_commands_are_lines_too(world: CliWorld) -> None:
    """What the server says besides is printed when asked for."""
    from tcprepl.protocol.commands import RemoteServerUpCommand

    world.later(1.0, lambda: world.server.broadcast(RemoteServerUpCommand("b.example")))
    lines = follow(world, ("typing",), for_s=5.0, commands=True)
    assert "REMOTE_SERVER_UP b.example" in lines


def closed(_: bytes) -> None:
    """Be a pipe whose reader has gone."""
    raise BrokenPipeError


def test_a_closed_pipe_ends_it(world: CliWorld) -> None:
    """Whoever does not want our lines gets no more."""

    async def main(reactor: Any) -> None:
        await Follower(reactor, ADDRESS, ("typing",), closed, since="start", render=row_lines).run()

    world.publish("typing", ["!r:1", []])
    with pytest.raises(BrokenPipeError):
        world.run(main)


def test_a_closed_pipe_at_the_end(world: CliWorld) -> None:
    """The last lines may be refused as well."""

    async def main(reactor: Any) -> None:
        await Follower(
            reactor, ADDRESS, ("typing",), closed, since="start", render=row_lines, count=1
        ).run()

    world.publish("typing", ["!r:1", []], ["!r:2", []])
    with pytest.raises(BrokenPipeError):
        world.run(main)


def test_cancelling_disconnects(world: CliWorld) -> None:
    """Ctrl-C leaves no connection, and no timer of the follower."""
    tasks: list[Deferred[None]] = []

    async def main(reactor: Clock) -> str:
        follower = Follower(
            reactor, ADDRESS, ("typing",), Collected().write, render=row_lines, for_s=500.0
        )
        tasks.append(Deferred.fromCoroutine(follower.run()))
        try:
            await tasks[0]
        except CancelledError:
            return "cancelled"
        return "ended"

    def cancel() -> None:
        tasks[0].cancel()

    world.later(3.0, cancel)
    assert world.run(main) == "cancelled"
    assert world.server.peers() == []


@pytest.mark.parametrize("options", [{}, {"until_head": True}, {"commands": True}])
def test_a_stream_that_the_server_does_not_have(world: CliWorld, options: dict[str, Any]) -> None:
    """Its own word for it; the nearest name is given."""
    with pytest.raises(ConfigError, match=r"test:1: unknown stream 'tping'; did you mean typing\?"):
        follow(world, ("typing", "tping"), **options)


@pytest.mark.parametrize("until_head", [False, True])
def test_a_stream_that_a_synapse_does_not_have(world: CliWorld, until_head: bool) -> None:
    """It does not say so; but it tells every position, and that is not among them."""
    foreign(
        world, b"SERVER x\nPING 1\n", b"POSITION typing master 3 3\nPOSITION events master 1 1\n"
    )
    with pytest.raises(ConfigError, match=r"unknown stream 'tping'; did you mean typing\?"):
        follow(world, ("tping",), until_head=until_head)


def test_a_time_without_any_connection_is_a_failure(world: CliWorld) -> None:
    world.network.factory = None
    with pytest.raises(ConnectionFailed):
        follow(world, for_s=3.0)


def test_a_port_where_nobody_greets_is_perhaps_another(world: CliWorld) -> None:
    """Who listens for HTTP waits for us to say something, as we do for him."""
    world.network.factory = Factory.forProtocol(Protocol)
    with pytest.raises(ConnectionFailed, match="does not greet: is the line protocol on another"):
        follow(world, for_s=3.0)
    with pytest.raises(ConnectionFailed, match="no SERVER in 15 seconds; is this the port of"):
        follow(world, for_s=15.5)


def test_positions_for_who_is_turned_away(world: CliWorld) -> None:
    """What the server said is the failure; nothing printed would be taken for an answer."""
    world.server.max_connections = 0
    with pytest.raises(ConnectionFailed, match="too many connections"):
        world.run(lambda reactor: positions_of(reactor, ADDRESS))


def test_what_a_server_says_before_it_refuses_is_not_handed_on(world: CliWorld) -> None:
    """Its name is no row: whoever records makes no file of it."""
    lines = Collected()

    async def main(reactor: Any) -> None:
        await following.Follower(
            reactor, ADDRESS, ("tping",), lines.write, render=row_lines, commands=True
        ).run()

    with pytest.raises(ConfigError, match="tping"):
        world.run(main)
    assert lines == []


# -- tokens that change while it follows -------------------------------------------------

READS = Grant("reader", read=ALL)


class Rotation:
    """A token of a server that is exchanged for another, and the file that a client reads."""

    def __init__(self, world: CliWorld, *tokens: str) -> None:
        self._world = world
        self.file = "first-token"
        self.read = 0
        self.serve(*tokens)

    def serve(self, *tokens: str) -> None:
        """Let these tokens hold, and no other; without any nobody needs one."""
        entries = [(token, READS) for token in tokens]
        self._world.server.admit(Tokens(entries), NOTHING if entries else EVERYTHING)

    def token(self) -> str:
        """Return what is in the file."""
        self.read += 1
        return self.file

    def exchange(self) -> None:
        """Write the new token into the file, and take the old one out of the server."""
        self.file = "second-token"
        self.serve("second-token")
        self._world.publish("typing", ["!r:while-away", []])

    @property
    def address(self) -> Address:
        """Where the server is, with the token of the file."""
        return replace(ADDRESS, token=self.token)


def follow_with(world: CliWorld, rotation: Rotation, **options: Any) -> Collected:
    """Follow typing with a token until two rows came."""
    lines = Collected()

    async def main(reactor: Any) -> None:
        await Follower(
            reactor,
            rotation.address,
            ("typing",),
            lines.write,
            render=row_lines,
            **{"count": 2, **options},
        ).run()

    world.later(4.0, lambda: world.publish("typing", ["!r:before", []]))
    world.later(40.0, lambda: world.publish("typing", ["!r:behind", []]))
    world.run(main)
    return lines


def test_a_token_may_be_exchanged_while_it_follows(world: CliWorld) -> None:
    """It reads its file anew, and goes on from where it was: what came meanwhile is not lost."""
    rotation = Rotation(world, "first-token")
    world.later(8.0, rotation.exchange)
    assert [line.split()[3] for line in follow_with(world, rotation)] == ["1", "2"]
    assert rotation.read == 2


def test_a_token_that_no_row_came_with_may_be_exchanged_too(world: CliWorld) -> None:
    """Nothing but the server's word tells that it was taken: no position is known of it."""
    rotation = Rotation(world, "first-token")
    world.later(2.0, rotation.exchange)
    lines = Collected()

    async def main(reactor: Any) -> None:
        await Follower(
            reactor, rotation.address, ("receipts",), lines.write, render=row_lines, for_s=30.0
        ).run()

    world.run(main)
    assert rotation.read == 2


def test_tokens_may_be_introduced_while_it_follows(world: CliWorld) -> None:
    """Who has one already is told to connect again, and does."""
    rotation = Rotation(world)
    world.later(8.0, lambda: rotation.serve("first-token"))
    assert len(follow_with(world, rotation)) == 2
    assert rotation.read == 2


def test_the_end_of_a_token_is_told_as_any_other_line(world: CliWorld) -> None:
    rotation = Rotation(world, "first-token")
    world.later(8.0, rotation.exchange)
    lines = follow_with(world, rotation, commands=True)
    assert "ERROR AUTH: the token of reader does not hold any more" in lines
    assert sum(line.startswith("RDATA") for line in lines) == 2


def test_a_token_that_ends_for_good_ends_it(world: CliWorld) -> None:
    """The connection with the token as it is then is refused at its beginning."""
    rotation = Rotation(world, "first-token")
    world.later(8.0, lambda: rotation.serve("second-token"))
    with pytest.raises(ConfigError, match="test:1: AUTH: the token is not known here"):
        follow_with(world, rotation)
    assert rotation.read == 2


def test_who_has_no_token_ends_when_one_is_asked_for(world: CliWorld) -> None:
    """What it may do has changed; what it asks for then is refused, with advice."""
    rotation = Rotation(world)
    world.later(8.0, lambda: rotation.serve("second-token"))
    with pytest.raises(ConfigError, match=r"not allowed: REPLICATE needs.*--token-file names"):
        follow(world, ("typing",))


def test_a_wrong_token_ends_it_at_once(world: CliWorld) -> None:
    rotation = Rotation(world, "second-token")
    with pytest.raises(ConfigError, match="test:1: AUTH: the token is not known here"):
        follow_with(world, rotation)
    assert rotation.read == 1
