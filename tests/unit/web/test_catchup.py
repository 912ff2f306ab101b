"""What a Synapse worker missed."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tcprepl.metrics import REGISTRY
from tcprepl.streams.memory import MemoryLog, MemoryStream
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tests.web_site import Answer, Stage

IN_A_GAP = {"what": "rows", "why": "asked for in a gap"}


@pytest.fixture
def stage() -> Any:
    """A site whose log keeps three rows of each stream."""
    bounds = Bounds(max_age_s=None, max_bytes=None, max_rows=3)
    registry = Registry([StreamDef("audit")])
    stage = Stage(log=MemoryLog(registry, lambda: 0, Retention(durable=bounds, ephemeral=bounds)))
    yield stage
    stage.close()


def ask(stage: Stage, stream: str, after: object, upto: object, **query: object) -> Answer:
    """Ask for (after, upto]."""
    path = f"/_synapse/replication/get_repl_stream_updates/{stream}/aBcDeFgHiJ"
    return stage.get(path, from_token=after, upto_token=upto, **query)


def test_rows_are_as_on_the_wire(stage: Stage) -> None:
    """Pairs of token and row; tokens are ascending and never parted."""
    stage.publish("typing", ["!r:x", ["@a:x"]])
    _ = stage.publisher.publish("typing", [["!s:x", []], ["!t:x", []]], batch=True)
    assert ask(stage, "typing", 0, 2).json == {
        "updates": [[1, ["!r:x", ["@a:x"]]], [2, ["!s:x", []]], [2, ["!t:x", []]]],
        "upto_token": 2,
        "limited": False,
    }
    assert ask(stage, "typing", 1, 2).json["updates"][0][0] == 2


def test_a_page_is_limited(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client goes on from where it ended."""
    monkeypatch.setattr("tcprepl.limits.CATCH_UP_ROWS", 2)
    stage.publish("audit", 1, 2, 3)
    first = ask(stage, "audit", 0, 3).json
    assert (len(first["updates"]), first["upto_token"], first["limited"]) == (2, 2, True)
    second = ask(stage, "audit", 2, 3).json
    assert (second["updates"], second["upto_token"], second["limited"]) == ([[3, 3]], 3, False)


@pytest.mark.parametrize(("after", "upto"), [(2, 2), (9, 1), (3, 3), (3, 7), (9, 12), (-1, -1)])
def test_nothing_in_between(stage: Stage, after: int, upto: int) -> None:
    """Equal tokens, a writer that began anew, a reader that has everything."""
    stage.publish("audit", 1, 2, 3)
    promised = min(max(upto, 0), max(after, 3))  # what is not written yet is not promised
    expected = {"updates": [], "upto_token": promised, "limited": False}
    assert ask(stage, "audit", after, upto).json == expected


def test_more_than_there_is_ends_at_the_position(stage: Stage) -> None:
    """What is not written yet is not promised."""
    stage.publish("audit", 1)
    assert ask(stage, "audit", 0, 9).json == {
        "updates": [[1, 1]],
        "upto_token": 1,
        "limited": False,
    }


def test_what_is_past_retention_is_named(stage: Stage) -> None:
    """Such a reader asks again for ever when it gets an error."""
    for row in range(6):
        stage.publish("audit", row)
    with capture_logs() as logs:
        answer = ask(stage, "audit", 1, 6).json
    assert answer == {
        "updates": [[4, 3], [5, 4], [6, 5]],
        "upto_token": 6,
        "limited": False,
        "missing": [1, 3],
    }
    gap = next(entry for entry in logs if entry["event"] == "http.catch_up.gap")
    assert (gap["stream"], gap["after"], gap["upto"]) == ("audit", 1, 3)
    answer = ask(stage, "audit", 1, 2).json
    assert (answer["updates"], answer["upto_token"], answer["missing"]) == ([], 2, [1, 2])


def test_a_page_ends_where_a_gap_begins_and_the_next_one_names_it(stage: Stage) -> None:
    """Rows are missing for the upstream of a relay could not tell them."""
    stage.publish("audit", 1, 2)
    stage.lose("audit", 7)
    stage.publish("audit", 8)
    assert ask(stage, "audit", 0, 8).json == {
        "updates": [[1, 1], [2, 2]],
        "upto_token": 2,
        "limited": True,
    }
    with capture_logs() as logs:
        before = REGISTRY.get_sample_value("tcprepl_dropped_total", IN_A_GAP) or 0
        assert ask(stage, "audit", 2, 8).json == {
            "updates": [[8, 8]],
            "upto_token": 8,
            "limited": False,
            "missing": [2, 7],
        }
    assert REGISTRY.get_sample_value("tcprepl_dropped_total", IN_A_GAP) == before + 1
    gap = next(entry for entry in logs if entry["event"] == "http.catch_up.gap")
    assert (gap["after"], gap["upto"]) == (2, 7)
    assert gap["why"] == "rows in (2, 7] may be missing: the upstream could not tell them"
    assert ask(stage, "audit", 5, 8).json["missing"] == [5, 7]
    assert ask(stage, "audit", 4, 6).json == {
        "updates": [],
        "upto_token": 6,
        "limited": False,
        "missing": [4, 6],
    }
    assert "missing" not in ask(stage, "audit", 7, 8).json
    assert "missing" not in ask(stage, "audit", 0, 2).json


def test_a_page_without_rows_ends_before_a_gap_too(stage: Stage) -> None:
    """It is progress all the same."""
    stage.publish("audit", 1)
    _ = stage.log.advance("audit", "master", 5)
    stage.lose("audit", 9)
    assert ask(stage, "audit", 1, 9).json == {"updates": [], "upto_token": 5, "limited": True}
    assert ask(stage, "audit", 5, 9).json["missing"] == [5, 9]


def test_gaps_that_adjoin_are_one(stage: Stage) -> None:
    """Also with what is past retention; where a stream began anew counts as well."""
    for row in range(1, 4):
        stage.publish("audit", row)
    stage.lose("audit", 5)
    stage.lose("audit", 6, lost=False)
    for row in range(7, 10):
        stage.publish("audit", row)
    assert stage.log.floor("audit", "master") == 3
    with capture_logs() as logs:
        answer = ask(stage, "audit", 1, 9).json
    assert (answer["updates"][0], answer["missing"]) == ([7, 7], [1, 6])
    (gap,) = [entry for entry in logs if entry["event"] == "http.catch_up.gap"]
    assert (gap["after"], gap["upto"]) == (1, 6)
    assert gap["why"].startswith("past retention; rows in (3, 5] may be missing")
    assert gap["why"].endswith("the stream began anew upstream after 5")
    assert ask(stage, "audit", 1, 2).json["missing"] == [1, 2]


def test_of_many_gaps_in_a_row_not_all_are_logged(stage: Stage) -> None:
    stage.publish("audit", 1)
    for upto in range(2, 42):
        stage.lose("audit", upto, lost=bool(upto % 2))
    with capture_logs() as logs:
        assert ask(stage, "audit", 1, 41).json["missing"] == [1, 41]
    (gap,) = [entry for entry in logs if entry["event"] == "http.catch_up.gap"]
    assert gap["why"].endswith("; and 20 more gaps")


def test_what_is_past_retention_and_a_gap_further_on_are_two(stage: Stage) -> None:
    """Each is named in an answer of its own, the rows between them in the first."""
    for row in range(1, 6):
        stage.publish("audit", row)
    stage.lose("audit", 8)
    assert stage.log.floor("audit", "master") == 2
    assert ask(stage, "audit", 0, 8).json == {
        "updates": [[3, 3], [4, 4], [5, 5]],
        "upto_token": 5,
        "limited": True,
        "missing": [0, 2],
    }
    assert ask(stage, "audit", 5, 8).json["missing"] == [5, 8]


def test_states_are_told_from_zero(stage: Stage) -> None:
    """The newest row of each room, whatever retention let go."""
    for room in "abcda":
        stage.publish("typing", [f"!{room}:x", ["@a:x"]])
    answer = ask(stage, "typing", 0, 5).json
    assert [token for token, _ in answer["updates"]] == [1, 2, 3, 4, 5]
    assert [row[0] for _, row in answer["updates"]] == ["!a:x", "!b:x", "!c:x", "!d:x", "!a:x"]
    assert "missing" not in answer


def test_states_are_told_whole_when_blanks_were_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was in between gets every state again rather than an error."""
    stage.publish("typing", *([f"!{n}:x", ["@a:x"]] for n in range(6)))
    monkeypatch.setattr(MemoryStream, "compactable", lambda self, after: not after)
    assert len(ask(stage, "typing", 1, 6).json["updates"]) == 6


def test_whose_rows(stage: Stage) -> None:
    """The instance that is named, else our own, else the only writer there is."""
    stage.publish("audit", "w1", instance="w1")
    assert ask(stage, "audit", 0, 1).json["updates"] == [[1, "w1"]]
    stage.publish("audit", "w2", instance="w2")
    status, errcode, error = ask(stage, "audit", 0, 1).error
    assert (status, errcode) == (400, "M_MISSING_PARAM")
    assert "one of w1, w2" in error
    stage.publish("audit", "ours")
    assert ask(stage, "audit", 0, 1).json["updates"] == [[1, "ours"]]
    assert ask(stage, "audit", 0, 1, instance="w2").json["updates"] == [[1, "w2"]]
    assert ask(stage, "receipts", 0, 0).json["updates"] == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("from_token=0", "parameter 'upto_token' is missing"),
        ("upto_token=0", "parameter 'from_token' is missing"),
        ("from_token=x&upto_token=1", "from_token is 'x': expected an integer"),
        ("from_token=&upto_token=1", "from_token is ''"),
    ],
)
def test_both_tokens_are_required_integers(stage: Stage, query: str, says: str) -> None:
    """400 says which and what was expected; a limit is ignored."""
    path = "/_synapse/replication/get_repl_stream_updates/typing/txn"
    status, _, error = stage.ask("GET", f"{path}?{query}").error
    assert status == 400
    assert says in error
    assert stage.ask("GET", f"{path}?from_token=0&upto_token=0&limit=5").status == 200


def test_an_unknown_stream_is_400(stage: Stage) -> None:
    """As Synapse answers; the name is percent-decoded, and the path has its last segment."""
    assert ask(stage, "a%2Fb", 0, 1).error[:2] == (400, "TCPREPL_UNKNOWN_STREAM")
    assert stage.get("/_synapse/replication/get_repl_stream_updates/typing").status == 404
