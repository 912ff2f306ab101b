"""Lines of a channel are put together by pair; the rest is tested with the sources."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.lines import AGAIN_S, Followers, LineReader
from tcprepl.replication.relaying.state import RelayState
from tcprepl.streams.memory import MemoryLog


class Channel:
    """What is read of a channel, into a log in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = relay_registry()
        self.log = MemoryLog(self.registry, lambda: 0)
        self.intake = RelayIntake(self.clock, self.log, self.registry, RelayState(None))
        self.followers = Followers(
            self.clock, self.intake, self.registry, None, on_free=lambda: None
        )
        self.others: list[bytes] = []
        self.reader = LineReader(self.followers, self.others.append)
        self.blocks: list[tuple[str, list[int]]] = []
        self.log.add_listener(lambda one: self.blocks.append((one.stream, list(one.tokens))))

    def say(self, *lines: str) -> None:
        """Have lines read in one go."""
        self.reader.take([line.encode() for line in lines])
        self.clock.advance(0)


def test_rows_of_streams_in_turns_are_taken_by_pair() -> None:
    channel = Channel()
    channel.say("POSITION events w1 0 0", "POSITION caches w2 0 0")
    turns = [f"RDATA {pair} {token} []" for token in (1, 2) for pair in ("events w1", "caches w2")]
    channel.say(*turns)
    channel.blocks.clear()
    channel.say(*[line.replace(" 1 [", " 3 [").replace(" 2 [", " 4 [") for line in turns])
    assert channel.blocks == [("events", [3, 4]), ("caches", [3, 4])]
    assert channel.intake.positions() == {("events", "w1"): 4, ("caches", "w2"): 4}


def test_runs_are_taken_with_what_is_beside_them() -> None:
    channel = Channel()
    channel.say("POSITION events w1 0 0", "RDATA events w1 1 []", "RDATA events w1 2 []")
    run = [f"RDATA events w1 {token} []" for token in (3, 4, 5, 6)]
    channel.say(*run)
    assert channel.blocks[-1] == ("events", [3, 4, 5, 6])
    channel.say("RDATA events w1 7 []", "RDATA events w1 8 []", "REPLICATE ", "RDATA events w1 9 x")
    channel.say("RDATA events w1 10 []", "RDATA caches w2 1 []", "RDATA caches w2 2 []")
    assert channel.others == [b"REPLICATE "]
    assert channel.reader.bad_lines == 1
    assert channel.intake.positions() == {("events", "w1"): 10, ("caches", "w2"): 2}


def test_a_line_beside_rows_and_one_that_is_no_text_are_no_rows() -> None:
    channel = Channel()
    channel.say("POSITION events w1 0 0", "POSITION caches w2 0 0")
    channel.say("RDATA events w1 1 []", "RDATA caches w2 1 []")
    channel.say("RDATA events w1 2 []", "REPLICATE ", "RDATA caches w2 2 []\r\n")
    channel.reader.take([b"RDATA events w1 3 []", b"\xff", b"RDATA caches w2 3 []"])
    channel.clock.advance(0)
    assert channel.others == [b"REPLICATE "]
    assert channel.reader.bad_lines == 1
    assert channel.intake.positions() == {("events", "w1"): 3, ("caches", "w2"): 3}


def test_what_follows_a_pair_goes_on_where_the_log_is() -> None:
    channel = Channel()
    channel.say("POSITION events w1 0 7", "RDATA events w1 8 []")
    again = Followers(channel.clock, channel.intake, channel.registry, None, lambda: None)
    assert again.of(("events", "w1")).delivery.known == {("events", "w1"): 8}
    assert again.of(("caches", "w2")).delivery.known == {}


@pytest.mark.parametrize("how", ["fail", "give_up"])
def test_a_pair_that_could_not_be_worked_through_is_followed_again(how: str) -> None:
    """What is missing is told as missing; without it, nothing of the pair would come any more."""
    channel = Channel()
    channel.say("POSITION events w1 0 1", "RDATA events w1 2 []")
    follower = channel.followers.of(("events", "w1"))
    delivery = follower.delivery
    if how == "fail":
        delivery._broken = True
        follower.fail("no memory")
    else:
        delivery._give_up(Failure(ZeroDivisionError("a bug")))
        channel.say("RDATA events w1 3 []")
        channel.clock.advance(AGAIN_S)
    channel.say("RDATA events w1 4 []", "RDATA events w1 5 []")
    assert channel.intake.positions() == {("events", "w1"): 5}
    assert [gap.upto for _, gap in channel.intake._state.gaps] == [1, 4]
    assert channel.blocks[-1] == ("events", [5])


def test_a_relay_that_stops_follows_nothing_again() -> None:
    channel = Channel()
    channel.say("POSITION events w1 0 1")
    follower = channel.followers.of(("events", "w1"))
    follower.delivery._give_up(Failure(ZeroDivisionError("a bug")))
    assert Deferred.fromCoroutine(channel.followers.stop()).called
    channel.clock.advance(AGAIN_S)
    assert not follower.delivery.running
