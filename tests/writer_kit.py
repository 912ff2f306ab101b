"""A writer: each append once and in order, whatever is cut, refused or forgotten.

The unit test of each writer takes all of this, with the face that it is of (`tests.faces`).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail

from tcprepl import limits
from tcprepl.access import ALL, NOTHING, Grant, Streams, Tokens
from tcprepl.errors import ConnectionFailed, LogUnavailable, PublishRefused
from tcprepl.streams.log import Appended
from tests.faces import make_network, make_writer
from tests.serving_world import World


class Desk:
    """A server, a writer, and what became of what it was given."""

    def __init__(self, **options: Any) -> None:
        self.world = World(make_network())
        self.network = self.world.network
        self.results: dict[int, Any] = {}
        self.writer = self.make("w", **options)

    def make(self, wire: str, producer: str | None = "p", **options: Any) -> Any:
        """Return a writer on a wire of its own."""
        return make_writer(
            self.network.clock, self.network.client_endpoint(wire), producer=producer, **options
        )

    def publish(self, number: int, stream: str = "alpha", **options: Any) -> Deferred[Any]:
        """Publish one row, which is its number."""
        rows = options.pop("rows", [b"%d" % number])
        published: Deferred[Any] = self.writer.publish(stream, rows, **options)

        def note(result: Any) -> None:
            assert number not in self.results
            self.results[number] = result if isinstance(result, Appended) else result.value

        return published.addBoth(note)

    def start(self) -> None:
        """Connect and claim."""
        self.writer.startService()
        self.network.settle()

    def cut(self) -> None:
        """Cut the connection."""
        self.network.wires["w"].cut()

    def rows(self) -> list[bytes]:
        """Return the rows in the log."""
        log = self.world.log
        page = log.read("alpha", "master", 0, 10**9, limit_rows=10**6, limit_bytes=10**9)
        return [row for _, row in page.rows()]

    def end(self) -> None:
        """Stop everything."""
        stopped = self.writer.stopService()
        self.network.run(1)
        assert stopped.called
        assert self.world.stop().called
        assert not self.network.clock.getDelayedCalls()


@pytest.fixture
def desk() -> Any:
    """A writer that is connected, stopped in the end."""
    made = Desk()
    made.start()
    yield made
    made.end()


def test_rows_are_answered_with_their_tokens(desk: Desk) -> None:
    """One row, rows, a batch, another instance."""
    assert desk.writer.claimed.result == 0
    desk.publish(1)
    desk.publish(2, rows=[b"2", b"3"])
    desk.publish(3, rows=[b"4", b"5"], batch=True)
    desk.publish(4, instance="w2", rows=[b"6"], batch=True)
    assert desk.writer.held == 4
    desk.network.settle()
    assert desk.results == {
        1: Appended("alpha", "master", 1, 1),
        2: Appended("alpha", "master", 2, 3),
        3: Appended("alpha", "master", 4, 4),
        4: Appended("alpha", "w2", 1, 1),
    }
    assert desk.writer.held == 0


def test_what_comes_before_the_connection_waits_for_it() -> None:
    """In order."""
    desk = Desk()
    for number in (1, 2, 3):
        desk.publish(number)
    desk.start()
    assert [desk.results[n].last for n in (1, 2, 3)] == [1, 2, 3]
    desk.end()


@pytest.mark.parametrize("answered", [False, True])
def test_what_was_not_answered_is_said_again(desk: Desk, answered: bool) -> None:
    """Whether it had arrived or not: it is in the log once."""
    desk.publish(1)
    desk.network.settle()
    for number in (2, 3):
        desk.publish(number)
    desk.network.clock.advance(0)
    if answered:
        desk.network.wires["w"].server.arrive()
        desk.network.clock.advance(0)
    desk.cut()
    desk.network.run(10)
    assert [desk.results[n].last for n in (1, 2, 3)] == [1, 2, 3]
    assert desk.rows() == [b"1", b"2", b"3"]
    assert desk.writer.reconnects == 1


def test_a_refused_append_concerns_no_other(desk: Desk) -> None:
    """Those behind it are numbered anew, and taken."""
    desk.publish(1)
    desk.publish(2, rows=[b"{"])
    desk.publish(3)
    desk.publish(4, stream="nothing")
    desk.publish(5)
    desk.network.settle()
    assert [desk.results[n].last for n in (1, 3, 5)] == [1, 2, 3]
    for number, reason in ((2, "row"), (4, "stream")):
        assert isinstance(desk.results[number], PublishRefused)
        assert desk.results[number].reason == reason
    assert desk.rows() == [b"1", b"3", b"5"]
    assert desk.writer.reconnects == 0


def test_a_disk_that_refuses_is_asked_again_a_little_later(desk: Desk) -> None:
    """Nothing is lost, and nothing passes it."""
    publisher = desk.world.server.door.publisher
    asked: list[int] = []

    class Full:
        def publish_json(self, *_: Any, **__: Any) -> Deferred[Appended]:
            asked.append(1)
            return fail(LogUnavailable("the disk is full"))

    desk.world.server.door.publisher = Full()
    desk.publish(1)
    desk.publish(2)
    desk.network.run(3)
    assert 4 < len(asked) < 40
    assert desk.results == {}
    desk.world.server.door.publisher = publisher
    desk.network.run(10)
    assert [desk.results[n].last for n in (1, 2)] == [1, 2]


def test_a_server_that_has_forgotten_is_told_under_new_numbers(desk: Desk) -> None:
    """It was restored from a copy, or kept its log in memory."""
    desk.publish(1)
    desk.publish(2)
    desk.network.settle()
    desk.world.log._producers._producers.clear()
    desk.cut()
    desk.publish(3)
    desk.network.run(10)
    assert desk.results[3].last == 3
    desk.world.log._producers._producers["p"].begun = 0  # while it is connected
    desk.world.log._producers._producers["p"].sequence = 0
    desk.publish(4)
    desk.network.run(10)
    assert desk.results[4].last == 4
    assert desk.rows() == [b"1", b"2", b"3", b"4"]


def test_who_is_fenced_stops(desk: Desk) -> None:
    """Another process has the name now; nothing of ours is written."""
    desk.publish(1)
    desk.network.settle()
    other = desk.make("v")
    other.startService()
    desk.network.settle()
    assert other.claimed.result == 1
    desk.publish(2)
    desk.network.settle()
    assert isinstance(desk.results[2], PublishRefused)
    assert desk.results[2].reason == "fenced"
    assert desk.writer.failed.called
    desk.writer.failed.addErrback(lambda _: None)
    desk.publish(3)
    assert desk.results[3] is desk.results[2]
    assert desk.rows() == [b"1"]
    stopped = other.stopService()
    desk.network.run(1)
    assert stopped.called


@pytest.mark.parametrize("what", ["relay", "old", "synapse"])
def test_a_server_that_takes_no_rows_is_an_end(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so at once, instead of trying for ever."""
    desk = Desk()
    if what == "relay":
        desk.world.server.door.publisher = None
    elif what == "old":
        from tcprepl.protocol import parsing

        monkeypatch.delitem(parsing._PARSERS, "PRODUCER")
    else:
        make = desk.world.server.make_session

        def silent(grant: Any) -> Any:
            session = make(grant)
            session._out[1:] = [b"PING 1\n"]
            return session

        monkeypatch.setattr(desk.world.server, "make_session", silent)
    desk.publish(1)
    desk.start()
    desk.network.run(1)
    assert isinstance(desk.results[1], PublishRefused | ConnectionFailed)
    desk.writer.failed.addErrback(lambda _: None)
    desk.end()


def test_what_is_held_is_bounded() -> None:
    """Beyond it nothing is taken, and room is told of."""
    desk = Desk(max_held_appends=2)
    for number in (1, 2, 3):
        desk.publish(number)
    assert desk.writer.full
    assert isinstance(desk.results.pop(3), LogUnavailable)
    room = desk.writer.when_room()
    assert not room.called
    desk.start()
    assert room.called
    assert desk.writer.when_room().called
    assert desk.rows() == [b"1", b"2"]
    desk.publish(4, rows=[b"1" * limits.MAX_ROW_BYTES, b"2"])
    desk.publish(5, rows=[b"[\n]"])
    assert [desk.results[n].reason for n in (4, 5)] == ["row", "row"]
    for n, (stream, instance) in enumerate(
        [("a b", None), ("caches", "a\u1680b"), ("caches", "7")]
    ):
        refused = desk.writer.publish(stream, [b"1"], instance=instance)
        _ = refused.addErrback(lambda failure, n=6 + n: desk.results.update({n: failure.value}))
        assert desk.results[6 + n].reason == "stream"
    desk.end()


def test_who_stops_tells_those_who_wait() -> None:
    """Their rows may have been taken or not."""
    desk = Desk()
    desk.publish(1)
    desk.end()
    assert desk.results == {}
    desk = Desk()
    desk.network.factory = None
    desk.publish(1)
    desk.writer.startService()
    desk.writer.startService()
    stopped = desk.writer.stopService()
    desk.network.run(1)
    assert stopped.called
    assert isinstance(desk.results[1], LogUnavailable)
    assert desk.world.stop().called


def test_who_gives_up_holds_nothing_and_tells_who_waits_for_room() -> None:
    """Of bytes as of appends, and nothing is sent any more."""
    desk = Desk(max_held_bytes=1)
    desk.publish(1)
    assert desk.writer.full
    room = desk.writer.when_room()
    desk.writer.startService()
    stopped = desk.writer.stopService()
    desk.network.run(1)
    assert stopped.called
    assert room.called
    assert (desk.writer.held, desk.writer.full) == (0, False)
    assert isinstance(desk.results[1], LogUnavailable)
    assert desk.world.stop().called


def test_an_answer_to_what_was_not_asked_begins_anew(desk: Desk) -> None:
    """What is open is said again."""
    desk.publish(1)
    desk.network.turn()
    end = desk.network.wires["w"].client
    end.protocol.dataReceived(b"PUBLISHED alpha master 9 9 #7\n")
    desk.network.run(10)
    assert desk.results[1].last == 1
    assert desk.rows() == [b"1"]
    assert desk.writer.reconnects == 1


def test_who_publishes_on_and_on_hears_of_the_failure() -> None:
    """Also from within the failure of an append."""
    desk = Desk()
    desk.world.server.door.publisher = None

    def again(_: object) -> None:
        if not desk.writer.failed.called:
            desk.writer.publish("alpha", [b"1"]).addErrback(again)

    desk.writer.publish("alpha", [b"1"]).addErrback(again)
    desk.start()
    assert desk.writer.failed.called
    desk.writer.failed.addErrback(lambda _: None)
    desk.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["publish", "bad", "cut", "step", "run"]), max_size=40))
def test_every_schedule_has_each_row_once_and_in_order(steps: list[str]) -> None:
    """Cuts at any byte, refusals in between."""
    desk = Desk()
    desk.start()
    good = []
    for number, step in enumerate(steps):
        if step == "publish":
            desk.publish(number)
            good.append(number)
        elif step == "bad":
            desk.publish(number, rows=[b"{"])
        elif step == "cut" and "w" in desk.network.wires:
            desk.cut()
        elif step == "step":
            desk.network.clock.advance(0)
            for wire in desk.network.wires.values():
                for end in wire.ends:
                    end.arrive(7)
        elif step == "run":
            desk.network.run(1)
    desk.network.run(30)
    assert desk.rows() == [b"%d" % number for number in good]
    assert [desk.results[n].last for n in good] == list(range(1, len(good) + 1))
    desk.end()


def test_a_stream_that_may_not_be_written_concerns_no_other() -> None:
    """With a token the rest goes on, each row once and in order."""
    desk = Desk(token="the-token")
    grant = Grant("w", write=Streams(frozenset({"alpha"})))
    desk.world.server.admit(Tokens([("the-token", grant)]), NOTHING)
    desk.start()
    desk.publish(1)
    desk.publish(2, "typing", rows=[b'["!r:x",[]]'])
    desk.publish(3)
    desk.network.run(1)
    assert desk.results[2].reason == "denied"
    assert "w may write alpha here" in str(desk.results[2])
    assert [desk.results[n].last for n in (1, 3)] == [1, 2]
    desk.end()


def test_without_the_right_to_write_it_fails_and_says_why() -> None:
    desk = Desk()
    desk.world.server.admit(Tokens([("the-token", Grant("w", write=ALL))]), NOTHING)
    desk.publish(1)
    desk.start()
    assert isinstance(desk.results[1], PublishRefused)
    assert "say AUTH <token> first" in str(desk.results[1])
    desk.writer.failed.addErrback(lambda _: None)
    desk.end()


def test_a_cut_makes_no_wait_longer_while_nothing_is_open(desk: Desk) -> None:
    """However many there were: the server took the name each time."""
    for cut in range(1, 9):
        desk.cut()
        assert not desk.writer.connected
        desk.network.run(limits.RECONNECT_MIN_S, step=limits.RECONNECT_MIN_S)
        assert (desk.writer.connected, desk.writer.reconnects) == (True, cut)


def test_a_change_of_tokens_makes_no_wait_longer() -> None:
    """As long as the one of before was taken."""
    said = ["token-0"]
    desk = Desk(token=lambda: said[0])

    def admit() -> None:
        desk.world.server.admit(Tokens([(said[0], Grant("w", write=ALL))]), NOTHING)
        desk.network.settle()

    admit()
    desk.start()
    for change in range(1, 9):
        said[0] = f"token-{change}"
        admit()
        assert not desk.writer.connected
        desk.network.run(limits.RECONNECT_MIN_S, step=limits.RECONNECT_MIN_S)
        assert (desk.writer.connected, desk.writer.reconnects) == (True, change)
    desk.end()


def test_a_token_that_does_not_hold_is_tried_again_and_nothing_is_lost() -> None:
    """It may hold again once the server is configured anew."""
    desk = Desk(token="the-token")
    desk.world.server.admit(Tokens([("other-token", Grant("w", write=ALL))]), NOTHING)
    desk.publish(1)
    desk.start()
    desk.network.run(1)
    assert desk.writer.last_error.startswith("AUTH: ")
    assert desk.writer.held == 1
    desk.world.server.admit(Tokens([("the-token", Grant("w", write=ALL))]), NOTHING)
    desk.network.run(30)
    assert desk.results[1].last == 1
    desk.end()


def hear(desk: Desk, line: bytes) -> None:
    """Let the writer hear a line that the server has not said."""
    desk.network.wires["w"].client.protocol.dataReceived(line)


def test_a_connection_that_is_cut_amid_refusals_owes_no_answers(desk: Desk) -> None:
    """What was behind a refused append is said on the next one, and so is what comes later."""
    desk.publish(1, rows=[b"{"])
    for number in (2, 3):
        desk.publish(number)
    desk.network.turn()
    hear(desk, b"REFUSED alpha #1 row 0 this is no JSON\n")
    desk.network.turn()
    assert desk.results[1].reason == "row"
    desk.cut()
    desk.network.run(2)
    desk.publish(4)
    desk.network.run(2)
    assert [desk.results[n].last for n in (2, 3, 4)] == [1, 2, 3]
    assert desk.rows() == [b"2", b"3", b"4"]


@pytest.mark.parametrize("most", ["MAX_UNANSWERED_APPENDS", "MAX_UNANSWERED_BYTES"])
def test_what_is_unanswered_is_bounded(
    desk: Desk, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time; refusals and cuts in between leave as much room as there was."""
    monkeypatch.setattr(limits, most, 1)
    for number, rows in enumerate([[b"1"], [b"{"], [b"2"], [b"3"], [b"{"], [b"4"]]):
        desk.publish(number, rows=rows)
    desk.network.turn()
    assert desk.network.wires["w"].client.outgoing.count(b"\n") == 1
    desk.cut()
    desk.network.run(5)
    assert desk.rows() == [b"1", b"2", b"3", b"4"]
    assert len(desk.results) == 6
    desk.publish(6)
    desk.network.run(1)
    assert desk.results[6].last == 5


def test_a_refusal_that_passes_ends_the_connection(desk: Desk) -> None:
    desk.publish(1)
    desk.network.turn()
    assert desk.writer.connected
    hear(desk, b"REFUSED alpha #1 unavailable 0 the disk is full\n")
    assert not desk.writer.connected
    assert desk.results == {}
    desk.network.run(5)
    assert desk.writer.connected
    assert desk.results[1].last == 1


def test_who_was_answered_is_back_soon_when_it_is_cut_again(desk: Desk) -> None:
    """However long the server was away before."""
    factory, desk.network.factory = desk.network.factory, None
    desk.cut()
    desk.network.run(60)
    desk.network.factory = factory
    desk.network.run(10)
    desk.publish(1)
    desk.network.run(1)
    assert desk.results[1].last == 1
    desk.cut()
    desk.network.run(limits.RECONNECT_MIN_S, step=limits.RECONNECT_MIN_S)
    assert desk.writer.connected


def test_stopping_waits_for_the_end_of_the_connection_and_for_nothing_else() -> None:
    """Neither for the next attempt to connect, nor for one that is being made."""
    desk = Desk()
    desk.start()
    stopped = desk.writer.stopService()
    assert not stopped.called
    desk.network.settle()
    assert stopped.called
    desk.end()
    desk = Desk()
    desk.network.factory = None
    desk.start()
    desk.network.run(60)
    stopped = desk.writer.stopService()
    desk.network.settle()
    assert stopped.called
    desk.publish(1)
    desk.network.turn()
    assert isinstance(desk.results[1], LogUnavailable)
    assert desk.writer.held == 0
    desk.end()


def test_stopping_does_not_wait_for_a_connection_that_is_being_made() -> None:
    class Never:
        def connect(self, factory: Any) -> Deferred[Any]:
            return Deferred()

    network = make_network()
    writer = make_writer(network.clock, Never(), producer="p")
    writer.startService()
    network.settle()
    stopped = writer.stopService()
    network.settle()
    assert stopped.called
    assert not network.clock.getDelayedCalls()


def test_who_has_failed_does_not_come_back(desk: Desk) -> None:
    hear(desk, b"ERROR unknown command PRODUCER\n")
    assert desk.writer.failed.called
    desk.writer.failed.addErrback(lambda _: None)
    desk.network.run(60)
    assert desk.writer.reconnects == 0
    assert not desk.writer.connected


def test_who_fails_with_something_to_send_stops_all_the_same(desk: Desk) -> None:
    desk.publish(1)
    said = [b"1"] if desk.network.wires["w"].client.outgoing else []  # asyncio's waits for no turn
    hear(desk, b"ERROR unknown command PRODUCER\n")
    desk.writer.failed.addErrback(lambda _: None)
    failures: list[Any] = []
    desk.writer.stopService().addErrback(failures.append)
    desk.network.run(1)
    assert failures == []
    assert isinstance(desk.results[1], ConnectionFailed)
    assert desk.rows() == said


@pytest.mark.parametrize(
    ("rows", "number", "why"),
    [
        ([b'["@\xff:x"]'], 0, "not UTF-8 at byte 4"),
        ([b'["\xed\xa0\x80"]'], 0, "not UTF-8 at byte 3"),
        ([b"1", ("@a:x",)], 1, "it is of type tuple; expected JSON as bytes"),
        ([bytearray(b"1")], 0, "it is of type bytearray; expected JSON as bytes"),
        (["1"], 0, "it is of type str; expected JSON as bytes"),
        ([b"1", b" \r"], 1, "it is empty; expected JSON"),
        ([b""], 0, "it is empty; expected JSON"),
        ([b"\xef\xbb\xbf1"], 0, "it begins with a byte order mark; expected JSON without"),
        ([b'["@a:x"', b'"x"]'], 0, "it is not one value of JSON"),
        ([b"1", b"2,3"], 1, "it is not one value of JSON"),
        ([], 0, "there are none; expected one or more"),
    ],
)
def test_a_row_that_cannot_be_said_concerns_no_other(
    desk: Desk, rows: list[Any], number: int, why: str
) -> None:
    """The writer hung with it for ever, and so did all that came behind."""
    desk.publish(1, rows=rows)
    desk.publish(2)
    desk.network.run(1)
    assert isinstance(desk.results[1], PublishRefused)
    assert desk.results[1].value == number
    assert str(desk.results[1]) == f"alpha: refused (row): {why}"
    assert desk.results[2].last == 1
    assert desk.rows() == [b"2"]


def test_a_batch_of_one_row_has_one(desk: Desk) -> None:
    """It is said as an array, too."""
    desk.publish(1, rows=[b"1,2"], batch=True)
    desk.publish(2, batch=True)
    desk.network.run(1)
    assert str(desk.results[1]) == "alpha: refused (row): it is not one value of JSON"
    assert desk.rows() == [b"2"]


def test_a_producer_that_can_be_none_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="'a b' can be no name of a producer"):
        Desk(producer="a b")


def test_blanks_around_a_row_are_not_its_own(desk: Desk) -> None:
    """As of a file whose lines end in CR LF; what JSON may say, it may."""
    desk.publish(1, rows=[b' ["@a:x"]\r'])
    desk.publish(2, rows=[b"1 ", b'"\\ud800"\r'])
    desk.network.run(1)
    assert desk.rows() == [b'["@a:x"]', b"1", b'"\\ud800"']


def test_what_no_server_would_take_is_refused_here_in_the_same_way(desk: Desk) -> None:
    for number, (stream, rows) in enumerate([("alpha", [b"[\n]"]), ("a b", [b"1"])]):
        desk.publish(number, stream, rows=rows)
        assert (desk.results[number].subject, desk.results[number].value) == (stream, 0)
