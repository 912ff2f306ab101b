"""Rows in over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from tcprepl import limits
from tcprepl.errors import LogCorrupt, LogError, LogUnavailable, WrittenElsewhere
from tcprepl.streams.log import Appended
from tcprepl.web.ingest import PENDING_BYTES, TROUBLE_S
from tcprepl.web.services import HttpLimits
from tests.web_site import Answer, Stage

PATH = "/_tcprepl/v1/streams/{}/rows"


@pytest.fixture
def stage() -> Any:
    """A site, checked for leftovers."""
    stage = Stage()
    yield stage
    stage.close()


def post(stage: Stage, stream: str, rows: object, **query: object) -> Answer:
    """Post rows."""
    return stage.ask("POST", PATH.format(stream), query, json.dumps(rows).encode())


def held(stage: Stage, stream: str, instance: str = "master") -> list[tuple[int, Any]]:
    """Return what the log has."""
    page = stage.log.read(stream, instance, 0, 2**62)
    return [(token, json.loads(row)) for token, row in page.rows()]


def test_rows_get_tokens_in_order(stage: Stage) -> None:
    """The answer names the first and the last."""
    answer = post(stage, "typing", [["!r:x", ["@a:x"]], ["!s:x", []]])
    assert answer.json == {"stream": "typing", "instance": "master", "first": 1, "last": 2}
    assert held(stage, "typing") == [(1, ["!r:x", ["@a:x"]]), (2, ["!s:x", []])]


def test_who_will_not_hear_of_rows_is_said() -> None:
    """With the reason; the rows are written all the same."""
    stage = Stage(unpublished=lambda stream, instance: "not there" if instance == "w1" else None)
    assert "warning" not in post(stage, "audit", [1]).json
    answer = post(stage, "audit", [1], instance="w1").json
    assert (answer["last"], answer["warning"]) == (1, "not there")
    stage.close()


def test_a_batch_shares_its_token(stage: Stage) -> None:
    """``batch=1``; and another instance has tokens of its own."""
    assert post(stage, "audit", [1, 2], batch=1, instance="w1").json == {
        "stream": "audit",
        "instance": "w1",
        "first": 1,
        "last": 1,
    }
    assert held(stage, "audit", "w1") == [(1, 1), (1, 2)]


@pytest.mark.parametrize("how", ["query", "header", "both"])
def test_a_repeated_transaction_is_answered_again(stage: Stage, how: str) -> None:
    """The id may come in the query, in the header, or in both when they agree."""
    query = {"txn_id": "t1"} if how != "header" else {}
    headers = {"Idempotency-Key": "t1"} if how != "query" else {}
    answers = [
        stage.ask("POST", PATH.format("audit"), query, b"[1,2]", headers).json for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(held(stage, "audit")) == 2


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (([1, 2], {}), ([1, 2, 3], {})),
        (([1, 2], {}), ([1], {})),
        (([1, 2], {}), ([1, 2], {"batch": 1})),
        (([1, 2], {"batch": 1}), ([1, 2], {})),
    ],
)
def test_an_id_of_a_request_that_was_another_is_refused(
    stage: Stage,
    first: tuple[list[int], dict[str, Any]],
    again: tuple[list[int], dict[str, Any]],
) -> None:
    """As far as the tokens tell: its rows were not written, and the answer may not say that."""
    rows, query = first
    taken = post(stage, "audit", rows, **query, txn_id="t").json
    other, how = again
    refused = post(stage, "audit", other, **how, txn_id="t")
    assert refused.error[:2] == (409, "TCPREPL_OTHER_REQUEST")
    assert "was taken with other rows" in refused.error[2]
    assert {key: refused.json[key] for key in taken} == taken
    assert len(held(stage, "audit")) == 2
    assert post(stage, "audit", rows, **query, txn_id="t").json == taken
    assert post(stage, "audit", other, **how, txn_id="u").status == 200


def test_transaction_ids_that_disagree_are_refused(stage: Stage) -> None:
    """Nobody can say which was meant."""
    answer = stage.ask(
        "POST", PATH.format("audit"), {"txn_id": "a"}, b"[1]", {"Idempotency-Key": "b"}
    )
    assert answer.error[0] == 400
    assert held(stage, "audit") == []


@pytest.mark.parametrize(
    ("stream", "rows", "query", "status", "errcode", "says"),
    [
        ("nothing", [1], {}, 404, "TCPREPL_UNKNOWN_STREAM", "unknown stream 'nothing'; there are "),
        ("typing", [], {}, 400, "M_BAD_JSON", "an empty array: expected at least one row"),
        ("typing", {"a": 1}, {}, 400, "M_BAD_JSON", "Expected `array`, got `object`"),
        ("typing", [["!r", ["@a"]], ["!r", [1]]], {}, 400, "TCPREPL_BAD_ROW", "user_ids[0]"),
        ("audit", [1], {"txn_id": ""}, 400, "M_INVALID_PARAM", "1 to 255 characters"),
        ("audit", [1], {"txn_id": "x" * 256}, 400, "M_INVALID_PARAM", "1 to 255 characters"),
        ("audit", [1], {"instance": "two words"}, 400, "M_INVALID_PARAM", "without spaces"),
        ("audit", [1], {"instance": "batch"}, 400, "M_INVALID_PARAM", "neither batch nor digits"),
        ("audit", [1], {"instance": "42"}, 400, "M_INVALID_PARAM", "neither batch nor digits"),
        ("audit", [1], {"instance": "*"}, 400, "M_INVALID_PARAM", "neither batch nor digits"),
        ("audit", [1], {"instance": "a\x7f"}, 400, "M_INVALID_PARAM", "control characters"),
        ("audit", [1], {"instance": "a\x9b"}, 400, "M_INVALID_PARAM", "control characters"),
        ("audit", [1], {"batch": "yes"}, 400, "M_INVALID_PARAM", "batch is 'yes'"),
        (
            "audit",
            [1],
            {"txnid": "a"},
            400,
            "M_INVALID_PARAM",
            "unknown parameter 'txnid'; did you mean txn_id?",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    stage: Stage,
    stream: str,
    rows: object,
    query: dict[str, object],
    status: int,
    errcode: str,
    says: str,
) -> None:
    """Field, value and expectation; and nothing of the request gets in."""
    found = post(stage, stream, rows, **query).error
    assert found[:2] == (status, errcode)
    assert says in found[2]
    assert stage.log.position("typing", "master") == stage.log.position("audit", "master") == 0


def test_a_bad_row_is_named_for_programs_too(stage: Stage) -> None:
    """Which row and which field."""
    answer = post(stage, "typing", [["!r", []], [1, []]])
    assert {key: answer.json[key] for key in ("stream", "row", "field")} == {
        "stream": "typing",
        "row": 1,
        "field": "room_id",
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b'["\xff"]', b'["\n"]', b"[NaN]", b"[" * 50_000, b"[" * 5_000 + b"]" * 5_000],
)
def test_rubbish_is_400(stage: Stage, body: bytes) -> None:
    """Never 500."""
    assert stage.ask("POST", PATH.format("audit"), body=body).status == 400


@pytest.mark.parametrize("body", [b'["\\ud800", 1180591620717411303424]', b'[\n1,\r\n {"a":\t2} ]'])
def test_json_that_only_some_parsers_take_gets_in(stage: Stage, body: bytes) -> None:
    """Lone surrogates, large integers, and line ends between the words."""
    assert stage.ask("POST", PATH.format("audit"), body=body).status == 200
    assert [row for _, row in held(stage, "audit")] == json.loads(body)


def test_too_many_rows_are_413(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request, one append: it has a bound."""
    monkeypatch.setattr(limits, "MAX_INGEST_ROWS", 3)
    assert post(stage, "audit", [1, 2, 3]).status == 200
    assert post(stage, "audit", [1, 2, 3, 4]).error[:2] == (413, "M_TOO_LARGE")


class SlowPublisher:
    """A publisher whose disk takes its time."""

    def __init__(self) -> None:
        self.pending: list[Deferred[Appended]] = []

    def publish_json(self, stream: str, rows: Any, **_: Any) -> Deferred[Appended]:
        """Answer when the test says so."""
        self.pending.append(Deferred())
        return self.pending[-1]

    def settle(self) -> None:
        """The oldest rows are on disk."""
        self.pending.pop(0).callback(Appended("audit", "master", 1, 1))


def test_what_the_disk_cannot_take_is_429() -> None:
    """One request always gets in; what was answered makes room."""
    publisher = SlowPublisher()
    stage = Stage(publisher=publisher, limits=HttpLimits(max_pending_bytes=10))
    first = stage.open("POST", PATH.format("audit"), body=b"[12345678901234]")
    before = PENDING_BYTES.samples()[()]
    assert before >= 14
    answer = post(stage, "audit", [1])
    assert answer.error[:2] == (429, "M_LIMIT_EXCEEDED")
    assert answer.headers["retry-after"] == "1"
    assert answer.json["retry_after_ms"] == 1000
    publisher.settle()
    assert first.answer.status == 200
    assert PENDING_BYTES.samples()[()] == before - 14
    second = stage.open("POST", PATH.format("audit"), body=b"[1]")
    publisher.settle()
    assert second.answer.status == 200
    first.leave()
    second.leave()
    stage.close()


def test_who_leaves_does_not_take_its_rows_along() -> None:
    """They are counted until they are on disk."""
    publisher = SlowPublisher()
    stage = Stage(publisher=publisher, limits=HttpLimits(max_pending_bytes=10))
    stage.open("POST", PATH.format("audit"), body=b"[1234567890]").leave()
    assert post(stage, "audit", [1]).status == 429
    publisher.settle()
    again = stage.open("POST", PATH.format("audit"), body=b"[1]")
    assert not again.answered
    publisher.settle()
    again.leave()
    stage.close()


@pytest.mark.parametrize("kind", [LogUnavailable, LogCorrupt])
def test_a_full_disk_is_503(kind: type[LogError]) -> None:
    """A later try may succeed, also on a disk that cannot be read; nothing was published."""
    publisher = SlowPublisher()
    stage = Stage(publisher=publisher)
    exchange = stage.open("POST", PATH.format("audit"), body=b"[1]")
    publisher.pending.pop().errback(kind("the disk is full"))
    assert exchange.answer.error == (503, "TCPREPL_LOG_UNAVAILABLE", "not now: the disk is full")
    assert exchange.answer.headers["retry-after"] == "1"
    exchange.leave()
    assert stage.get("/health").json == {"live": True, "ready": False, "reason": "the disk is full"}
    exchange = stage.open("POST", PATH.format("audit"), body=b"[1]")
    publisher.settle()
    exchange.leave()
    assert stage.get("/health").status == 200
    stage.close()


def test_what_another_server_writes_is_refused_for_good() -> None:
    """It is no trouble of this one."""
    publisher = SlowPublisher()
    stage = Stage(publisher=publisher)
    exchange = stage.open("POST", PATH.format("audit"), body=b"[1]")
    publisher.pending.pop().errback(WrittenElsewhere("audit", "b", "two"))
    status, code, text = exchange.answer.error
    assert (status, code) == (409, "TCPREPL_WRITTEN_ELSEWHERE")
    assert "stream audit of b is written by two" in text
    assert exchange.answer.json["writer"] == "two"
    exchange.leave()
    assert stage.get("/health").status == 200
    stage.close()


def test_a_refusal_counts_for_a_moment() -> None:
    """A server that is sent nothing because it is not ready has to come back by itself."""
    publisher = SlowPublisher()
    stage = Stage(publisher=publisher)
    exchange = stage.open("POST", PATH.format("audit"), body=b"[1]")
    publisher.pending.pop().errback(LogUnavailable("the disk is full"))
    exchange.leave()
    stage.clock.advance(TROUBLE_S - 0.1)
    assert stage.get("/health").status == 503
    stage.clock.advance(0.1)
    assert stage.get("/health").status == 200
    stage.close()


def test_a_publisher_may_answer_at_once() -> None:
    """As one whose log is in memory does."""

    class Quick(SlowPublisher):
        def publish_json(self, stream: str, rows: Any, **_: Any) -> Deferred[Appended]:
            return succeed(Appended(stream, "master", 5, 5))

    stage = Stage(publisher=Quick())
    assert post(stage, "audit", [1]).json["first"] == 5
    stage.close()
