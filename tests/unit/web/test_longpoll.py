"""Following streams by asking again."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tcprepl import limits
from tcprepl.streams.cursor import Cursor
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.ring import BLANKS_KEPT
from tcprepl.web.kept_answers import Answers
from tcprepl.web.longpoll import WAITING, Turns
from tests.web_site import Exchange, Stage

ROOM = ["!r:x", ["@a:x"]]


@pytest.fixture
def stage() -> Any:
    """A site, checked for leftovers."""
    stage = Stage()
    yield stage
    stage.close()


def waiting(stage: Stage) -> int:
    """Return how many wait at the notifier."""
    return stage.notifier.waiting


def done(exchange: Exchange) -> Any:
    """Return the decoded answer, and leave."""
    found = exchange.answer.json
    exchange.leave()
    return found


def test_rows_that_are_there_are_answered_at_once(stage: Stage) -> None:
    """Beyond the asked position, up to the present one."""
    stage.publish("audit", "a", "b", "c")
    answer = stage.get("/_synapse/replication", audit=1).json
    assert answer == {
        "audit": {"position": 3, "field_names": ["position", "row"], "rows": [[2, "b"], [3, "c"]]}
    }
    assert waiting(stage) == 0


def test_a_poll_is_answered_by_the_first_row(stage: Stage) -> None:
    """At the moment it is published."""
    exchange = stage.poll(typing=0, receipts=-1)
    assert WAITING.samples()[()] >= 1
    stage.clock.advance(9)
    assert not exchange.answered
    stage.publish("typing", ROOM)
    assert done(exchange)["typing"]["rows"] == [[1, "!r:x", '["@a:x"]']]
    assert waiting(stage) == 0


def test_a_row_of_another_stream_wakes_nobody(stage: Stage) -> None:
    """Not even to look."""
    exchange = stage.poll(typing=0)
    looked: list[str] = []
    cursor = stage.log.cursor

    def spy(pair: tuple[str, str], *args: Any, **kwargs: Any) -> Cursor:
        looked.append(pair[0])
        return cursor(pair, *args, **kwargs)

    stage.log.cursor = spy
    stage.publish("receipts", ["!r:x", "m.read", "@a:x", "$e", {"ts": 1}])
    assert looked == []
    assert not exchange.answered
    exchange.leave()
    assert waiting(stage) == 0


def test_time_is_up_after_the_timeout(stage: Stage) -> None:
    """Ten seconds unless the request says otherwise; then nothing is the answer."""
    default = stage.poll(typing=0)
    short = stage.poll(typing=0, timeout=1500)
    stage.clock.advance(1.5)
    assert done(short) == {}
    stage.clock.advance(8.4)
    assert not default.answered
    stage.clock.advance(0.1)
    assert done(default) == {}


def test_the_longest_wait_has_a_bound(stage: Stage) -> None:
    """A longer timeout is taken as the longest."""
    exchange = stage.poll(typing=0, timeout=10**12)
    stage.clock.advance(limits.MAX_POLL_TIMEOUT_MS / 1000)
    assert done(exchange) == {}


def test_a_position_that_moves_without_rows_does_not_end_the_wait(stage: Stage) -> None:
    """But it is told in the end."""
    exchange = stage.poll(audit=0, timeout=1000)
    _ = stage.log.advance("audit", "master", 7)
    assert not exchange.answered
    stage.clock.advance(1)
    assert done(exchange)["audit"] == {
        "position": 7,
        "field_names": ["position", "row"],
        "rows": [],
    }


def test_minus_one_of_an_empty_stream_waits_for_its_first_row(stage: Stage) -> None:
    """It begins at 0 then."""
    exchange = stage.poll(audit=-1)
    assert not exchange.answered
    stage.publish("audit", "first")
    assert done(exchange)["audit"]["rows"] == [[1, "first"]]


def test_a_limit_never_splits_a_token(stage: Stage) -> None:
    """It is exceeded rather."""
    _ = stage.publisher.publish("audit", [1, 2, 3], batch=True)
    stage.publish("audit", 4)
    answer = stage.get("/_synapse/replication", audit=0, limit=1).json["audit"]
    assert (answer["position"], len(answer["rows"])) == (1, 3)
    answer = stage.get("/_synapse/replication", audit=1, limit=10**9).json["audit"]
    assert (answer["position"], answer["rows"]) == (2, [[2, 4]])


def test_streams_tells_every_position_at_once(stage: Stage) -> None:
    """-1 is answered always, with numbers that can be asked with."""
    stage.publish("typing", ROOM)
    stage.publish("account_data", ["@a:x", None, "t"])
    table = stage.get("/_synapse/replication", streams=-1).json["streams"]
    rows = dict(table["rows"])
    assert table["field_names"] == ["name", "position"]
    assert (rows["typing"], rows["user_account_data"], rows["room_account_data"]) == (1, 1, 1)
    assert (rows["tag_account_data"], rows["audit"]) == (0, 0)
    assert table["position"].startswith("0_0_1_0_1_0")


def test_streams_waits_for_any_change(stage: Stage) -> None:
    """And names what changed, and nothing else."""
    token = stage.get("/_synapse/replication", streams=-1).json["streams"]["position"]
    exchange = stage.poll(streams=token)
    assert not exchange.answered
    stage.publish("pushers", ["@a:x", "app", "key", True])
    assert done(exchange)["streams"]["rows"] == [["pushers", 1]]


def test_a_short_token_is_filled_up(stage: Stage) -> None:
    """As one from before a stream got its place; a longer one is refused."""
    stage.publish("typing", ROOM)
    stage.publish("audit", 1)
    answer = stage.get("/_synapse/replication", streams="0_0_1")
    assert answer.json["streams"]["rows"] == [["audit", 1]]
    for bad in ("0_" * 30 + "0", "x", "", "1__2", "-2", "9" * 20):
        assert stage.get("/_synapse/replication", streams=bad).status == 400


def test_a_stream_that_is_met_later_is_served_like_the_others(stage: Stage) -> None:
    """A relay meets streams while it runs: those who ask, and those who wait, are told of them."""
    token = stage.get("/_synapse/replication", streams=-1).json["streams"]["position"]
    exchange = stage.poll(streams=token)
    assert stage.get("/_synapse/replication", met=0).status == 400
    stage.registry.add(StreamDef("met"))
    stage.publish("met", 7)
    assert done(exchange)["streams"] == {
        "position": f"{token}_1",
        "field_names": ["name", "position"],
        "rows": [["met", 1]],
    }
    assert stage.get("/_synapse/replication", met=0).json["met"]["rows"] == [[1, 7]]
    assert stage.get("/_synapse/replication", streams=-1).json["streams"]["rows"][-1] == ["met", 1]


def test_several_writers_have_a_position_each(stage: Stage) -> None:
    """The text that is answered goes on exactly; the number of before goes on too."""
    stage.publish("audit", "m1")
    assert stage.get("/_synapse/replication", audit=0).json["audit"]["position"] == 1
    stage.publish("audit", "w1", instance="w,1")
    stage.publish("audit", "m2", "m3")
    table = stage.get("/_synapse/replication", audit=1, limit=2).json["audit"]
    assert table["field_names"] == ["position", "row", "instance"]
    assert table["rows"] == [[2, "m2", "master"], [1, "w1", "w,1"]]
    assert table["position"] == "master~2,w=2C1~1"
    table = stage.get("/_synapse/replication", audit=table["position"]).json["audit"]
    assert (table["rows"], table["position"]) == ([[3, "m3", "master"]], "master~3,w=2C1~1")
    places = stage.get("/_synapse/replication", streams=-1).json["streams"]
    assert dict(places["rows"])["audit"] == "master~3,w=2C1~1"
    assert places["position"].endswith("_4")


def small_log(registry: Registry) -> MemoryLog:
    """Return a log that keeps two rows of each stream."""
    bounds = Bounds(max_age_s=None, max_bytes=None, max_rows=2)
    return MemoryLog(registry, lambda: 0, Retention(durable=bounds, ephemeral=bounds))


@pytest.fixture
def short() -> Any:
    """A site whose log keeps two rows."""
    registry = Registry([StreamDef("audit")])
    stage = Stage(log=small_log(registry))
    yield stage
    stage.close()


def test_a_position_past_retention_is_410(short: Stage) -> None:
    """With what can be asked instead; -1 is as far back as it goes."""
    for row in range(5):
        short.publish("audit", row)
    answer = short.get("/_synapse/replication", audit=1)
    assert answer.error[:2] == (410, "TCPREPL_TOKEN_TOO_OLD")
    assert (answer.json["stream"], answer.json["instance"], answer.json["held"]) == (
        "audit",
        "master",
        3,
    )
    for position in (3, -1):
        rows = short.get("/_synapse/replication", audit=position).json["audit"]["rows"]
        assert rows == [[4, 3], [5, 4]]


def test_states_are_told_whole_to_who_begins(short: Stage) -> None:
    """Below the floor the newest row of each room, also in pages, and to who fell behind."""
    for room in "abcabd":
        short.publish("typing", [f"!{room}:x", ["@a:x"]])
    for position in (-1, 0):
        table = short.get("/_synapse/replication", typing=position).json["typing"]
        assert [row[:2] for row in table["rows"]] == [
            [2, "!b:x"],
            [3, "!c:x"],
            [4, "!a:x"],
            [5, "!b:x"],
            [6, "!d:x"],
        ]
        assert table["position"] == 6
    found: list[str] = []
    position = -1
    while position != 6:
        table = short.get("/_synapse/replication", typing=position, limit=2).json["typing"]
        assert len(table["rows"]) <= 2
        found += [row[1] for row in table["rows"]]
        position = table["position"]
    assert found == ["!b:x", "!c:x", "!a:x", "!b:x", "!d:x"]
    # A page later a room may have gone blank, and from further back than blanks are known
    # nobody can go on.
    short.publish("typing", ["!b:x", []], ["!e:x", ["@a:x"]], ["!f:x", ["@a:x"]])
    rows = short.get("/_synapse/replication", typing=3).json["typing"]["rows"]
    assert rows[2:] == [[7, "!b:x", "[]"], [8, "!e:x", '["@a:x"]'], [9, "!f:x", '["@a:x"]']]
    for number in range(3 * BLANKS_KEPT):
        short.publish("typing", [f"!{number}:x", ["@a:x"]], [f"!{number}:x", []])
    answer = short.get("/_synapse/replication", typing=3)
    assert answer.error[:2] == (410, "TCPREPL_TOKEN_TOO_OLD")


def test_a_position_in_a_gap_is_410(stage: Stage) -> None:
    """From its beginning up to its last token; what is missing, and where to go on."""
    stage.publish("audit", "a", "b")
    stage.lose("audit", 7)
    stage.publish("audit", "h")
    for position, token in ((2, 2), (6, 6), ("master~3", 3)):
        answer = stage.get("/_synapse/replication", audit=position)
        assert answer.error == (
            410,
            "TCPREPL_ROWS_MISSING",
            f"stream audit of master: rows in ({token}, 7] may be missing: the upstream could not "
            f"tell them; go on from 7, and forget what was built from earlier rows",
        )
        assert {k: v for k, v in answer.json.items() if not k.startswith("err")} == {
            "stream": "audit",
            "instance": "master",
            "held": 7,
            "parameter": "audit",
            "position": 7,
        }
    assert stage.get("/_synapse/replication", audit=7).json["audit"]["rows"] == [[8, "h"]]


def test_a_stream_that_began_anew_upstream_is_told_too(stage: Stage) -> None:
    """What was built from its rows is no longer true."""
    stage.publish("audit", "a")
    stage.lose("audit", 2, lost=False)
    status, errcode, error = stage.get("/_synapse/replication", audit=1).error
    assert (status, errcode) == (410, "TCPREPL_ROWS_MISSING")
    assert "audit of master: the stream began anew upstream after 1; go on from 2" in error


def test_gaps_that_adjoin_are_told_at_once(stage: Stage) -> None:
    """It takes one answer to pass them, not one for each."""
    stage.publish("audit", "a")
    stage.lose("audit", 4)
    stage.lose("audit", 5, lost=False)
    answer = stage.get("/_synapse/replication", audit=1)
    assert (answer.status, answer.json["held"], answer.json["position"]) == (410, 5, 5)
    assert "(1, 4] may be missing" in answer.json["error"]
    assert "began anew upstream after 4" in answer.json["error"]
    assert stage.get("/_synapse/replication", audit=5, timeout=0).json == {}


def test_a_read_from_below_a_gap_ends_where_it_begins(stage: Stage) -> None:
    """At once, even without a row: the next request is told of the gap."""
    stage.publish("audit", "a", "b")
    stage.lose("audit", 7)
    stage.publish("audit", "h")
    table = stage.get("/_synapse/replication", audit=0).json["audit"]
    assert (table["position"], table["rows"]) == (2, [[1, "a"], [2, "b"]])
    _ = stage.log.advance("audit", "master", 12)
    stage.lose("audit", 20)
    table = stage.get("/_synapse/replication", audit=8, timeout=60_000).json["audit"]
    assert (table["position"], table["rows"]) == (12, [])
    assert stage.get("/_synapse/replication", audit=12).json["held"] == 20


def test_minus_one_begins_behind_the_last_gap(stage: Stage) -> None:
    """So that who answers 410 by it goes on; rows before can be had with a position."""
    stage.publish("audit", "a")
    stage.lose("audit", 4)
    stage.publish("audit", "e")
    stage.lose("audit", 9)
    assert stage.get("/_synapse/replication", audit=-1, timeout=0).json["audit"]["position"] == 9
    stage.publish("audit", "j")
    table = stage.get("/_synapse/replication", audit=-1).json["audit"]
    assert (table["position"], table["rows"]) == (10, [[10, "j"]])
    for position, rows in ((0, [[1, "a"]]), (4, [[5, "e"]])):
        assert stage.get("/_synapse/replication", audit=position).json["audit"]["rows"] == rows


def test_minus_one_ends_before_a_gap_that_comes_later(stage: Stage) -> None:
    """A gap above the position is nobody's yet."""
    stage.publish("audit", "a", "b")
    stage.gaps.add(("audit", "master"), Gap(2, 9, Cause.UPSTREAM))
    assert stage.get("/_synapse/replication", audit=-1).json["audit"]["position"] == 2
    assert stage.get("/_synapse/replication", audit=2, timeout=0).json == {}


def test_who_waits_is_told_of_a_gap_when_it_arises(stage: Stage) -> None:
    """The position that moves over it wakes them, without a row."""
    stage.publish("audit", "a")
    exchange = stage.poll(audit=1)
    other = stage.poll(typing=0)
    stage.clock.advance(5)
    assert not exchange.answered
    stage.lose("audit", 9)
    assert exchange.answer.error[:2] == (410, "TCPREPL_ROWS_MISSING")
    assert done(exchange)["held"] == 9
    assert not other.answered
    other.leave()
    assert waiting(stage) == 0


def test_the_gap_of_one_writer_leaves_the_others_where_they_are(stage: Stage) -> None:
    """The position to go on with names them all; each gap is told by itself."""
    stage.publish("audit", "m1")
    stage.publish("audit", "w1", instance="w,1")
    stage.lose("audit", 5, instance="w,1")
    stage.lose("audit", 8)
    table = stage.get("/_synapse/replication", audit=0).json["audit"]
    assert table["rows"] == [[1, "m1", "master"], [1, "w1", "w,1"]]
    first = stage.get("/_synapse/replication", audit=table["position"]).json
    assert (first["instance"], first["held"], first["position"]) == (
        "master",
        8,
        "master~8,w=2C1~1",
    )
    second = stage.get("/_synapse/replication", audit=first["position"]).json
    assert (second["instance"], second["held"], second["position"]) == (
        "w,1",
        5,
        "master~8,w=2C1~5",
    )
    stage.publish("audit", "w6", instance="w,1")
    table = stage.get("/_synapse/replication", audit=second["position"]).json["audit"]
    assert table["rows"] == [[6, "w6", "w,1"]]


def test_the_parameter_whose_position_cannot_be_served_is_named(stage: Stage) -> None:
    """Two tables of one stream have positions of their own."""
    stage.publish("account_data", ["@a:x", "!r:x", "t"])
    stage.lose("account_data", 4)
    query = {"user_account_data": 0, "room_account_data": 1}
    answer = stage.get("/_synapse/replication", **query)
    assert (answer.status, answer.json["stream"]) == (410, "account_data")
    assert answer.json["parameter"] == "room_account_data"


def test_retention_is_told_before_a_gap(short: Stage) -> None:
    """One after the other, each once; a gap below what is held is told of no more."""
    short.publish("audit", 1)
    short.lose("audit", 3)
    short.publish("audit", 4)
    short.lose("audit", 8)
    short.publish("audit", 9)
    assert short.log.floor("audit", "master") == 1
    short.publish("audit", 10)
    assert short.log.floor("audit", "master") == 4
    for position, errcode, held in (
        (0, "TCPREPL_TOKEN_TOO_OLD", 4),
        (1, "TCPREPL_TOKEN_TOO_OLD", 4),
        (4, "TCPREPL_ROWS_MISSING", 8),
    ):
        answer = short.get("/_synapse/replication", audit=position)
        assert answer.error[:2] == (410, errcode)
        assert (answer.json["held"], answer.json["position"]) == (held, held)
    rows = short.get("/_synapse/replication", audit=-1).json["audit"]["rows"]
    assert rows == [[9, 9], [10, 10]]
    short.publish("audit", 11, 12)
    rows = short.get("/_synapse/replication", audit=-1).json["audit"]["rows"]
    assert rows == [[11, 11], [12, 12]]


@pytest.mark.parametrize("position", ["2", "w1~1", "master~2"])
def test_a_position_from_the_future_is_409(stage: Stage, position: str) -> None:
    """It was never written here, by this instance or by any."""
    stage.publish("audit", 1)
    answer = stage.get("/_synapse/replication", audit=position)
    assert answer.error[:2] == (409, "TCPREPL_TOKEN_FROM_FUTURE")
    assert answer.json["held"] == (0 if "w1" in position else 1)


def test_one_table_of_a_stream_is_found_behind_many_rows_of_the_other(stage: Stage) -> None:
    """Rows of no interest are passed over; what was passed over is progress."""
    for number in range(50):
        stage.publish("account_data", ["@a:x", f"!{number}", "t"])
    stage.publish("account_data", ["@a:x", None, "found"])
    answer = stage.get("/_synapse/replication", user_account_data=0, limit=10)
    assert answer.json["user_account_data"]["rows"] == [[51, "@a:x", "found", None]]
    answer = stage.get("/_synapse/replication", user_account_data=0, limit=1, timeout=60_000)
    table = answer.json["user_account_data"]
    assert (table["rows"], table["position"]) == ([], 20)


def test_two_tables_of_one_stream_are_answered_together(stage: Stage) -> None:
    """The first is there whenever any is, so that its position is kept."""
    stage.publish("pushers", ["@a:x", "app", "key", True])
    answer = stage.get("/_synapse/replication", pushers=0).json
    assert answer["deleted_pushers"]["rows"] == [[1, "@a:x", "app", "key"]]
    assert answer["pushers"] == {
        "position": 1,
        "field_names": ["position", "user_id", "app_id", "pushkey"],
        "rows": [],
    }


def test_who_waits_at_one_place_shares_the_answer(stage: Stage) -> None:
    """The log is read once, however many wait."""
    exchanges = [stage.poll(audit=0) for _ in range(5)]
    reads: list[str] = []
    cursor = stage.log.cursor

    def spy(pair: tuple[str, str], *args: Any, **kwargs: Any) -> Cursor:
        reads.append(pair[0])
        return cursor(pair, *args, **kwargs)

    stage.log.cursor = spy
    stage.publish("audit", "news")
    assert [done(exchange)["audit"]["rows"] for exchange in exchanges] == [[[1, "news"]]] * 5
    assert reads == ["audit"]


def test_many_answers_take_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get the reactor in between; who left in the meantime is passed over."""
    monkeypatch.setattr("tcprepl.web.longpoll._ANSWERS_A_TURN", 2)
    later: list[Callable[[], None]] = []
    reactor: Any = SimpleNamespace(callLater=lambda _, f: later.append(f))
    turns = Turns(reactor)
    waiters = [turns.wait() for _ in range(5)]
    had: list[int] = []
    for number, waiter in enumerate(waiters):
        waiter.addCallbacks(lambda _, number=number: had.append(number), lambda _: None)
    waiters[3].cancel()
    assert len(later) == 1
    for expected in ([0, 1], [0, 1, 2], [0, 1, 2, 4]):
        later.pop()()
        assert had == expected
    assert later == []
    turns.wait().addCallback(lambda _: had.append(5))
    later.pop()()
    assert had[-1] == 5


def test_an_answer_goes_when_nobody_can_ask_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row makes another answer; what is kept does not grow with them."""
    answers = Answers()
    monkeypatch.setattr("tcprepl.web.longpoll.Answers", lambda: answers)
    stage = Stage()
    for token in range(20):
        stage.publish("audit", "news" * 1_000)
        rows = stage.get("/_synapse/replication", audit=token).json["audit"]["rows"]
        assert len(rows) == 1
    assert 4_000 < answers.size_bytes < 10_000


@pytest.mark.parametrize(
    ("query", "errcode", "says"),
    [
        ({}, "M_MISSING_PARAM", "nothing is asked for"),
        ({"typin": 0}, "TCPREPL_UNKNOWN_STREAM", "no stream or table 'typin'"),
        ({"typing": "x"}, "M_INVALID_PARAM", "typing is 'x': expected -1, a position"),
        ({"typing": ""}, "M_INVALID_PARAM", "typing is ''"),
        ({"typing": 0, "limit": 0}, "M_INVALID_PARAM", "limit is '0'"),
        ({"typing": 0, "timeout": -1}, "M_INVALID_PARAM", "timeout is '-1'"),
    ],
)
def test_bad_questions(stage: Stage, query: dict[str, object], errcode: str, says: str) -> None:
    """400, with what was expected."""
    found = stage.get("/_synapse/replication", **query).error
    assert found[:2] == (400, errcode)
    assert says in found[2]


def test_state_is_a_table_that_never_has_rows(stage: Stage) -> None:
    """Old clients ask for it; it is not held against them."""
    assert stage.get("/_synapse/replication", state=0, streams=-1).status == 200


def test_a_get_acknowledges_nothing() -> None:
    """A page of another site can make a browser ask for anything by GET."""
    heard: list[Any] = []
    stage = Stage(acknowledge=lambda instance, token: heard.append((instance, token)))
    for origin in ({}, {"Origin": "http://evil.example"}):
        query = {"streams": -1, "federation_ack": 12, "timeout": 0}
        answer = stage.ask("GET", "/_synapse/replication", query, headers=origin)
        assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
        assert "POST /_tcprepl/v1/federation_ack" in answer.json["error"]
    assert not heard
    stage.close()


def test_who_leaves_while_waiting_costs_nothing_further(stage: Stage) -> None:
    """Neither a waiter nor a delayed call."""
    exchange = stage.poll(typing=0)
    exchange.leave()
    assert waiting(stage) == 0
    assert stage.clock.getDelayedCalls() == []
    stage.publish("typing", ROOM)
    assert exchange.transport.value() == b""
