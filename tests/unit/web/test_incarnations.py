"""Readers over HTTP that say in which history they got their positions."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.replication.relaying.intake import relay_registry
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.web.incarnations import INCARNATION_HEADER, forked, void_above
from tests.web_site import Stage

RULES, TYPING = ("push_rules", "master"), ("typing", "master")


def made() -> tuple[MemoryLog, str]:
    """Return a log that was restored from a copy at 2, and the incarnation before."""
    log = MemoryLog(Registry(), lambda: 0, Retention(ephemeral=Bounds(max_rows=1)))
    before = log.history.current
    log.append(*RULES, [b'["@a:x"]', b'["@b:x"]'])
    log.append(*TYPING, [b'["!a:x",[]]'])
    log.append(*TYPING, [b'["!b:x",[]]'])
    log.history.begin({RULES: 2, TYPING: 2}, 0)
    return log, before


def test_only_who_says_another_history_is_refused() -> None:
    log, before = made()
    assert void_above(log, RULES, 9, None) is None
    assert void_above(log, RULES, 9, log.history.current) is None
    assert void_above(log, RULES, 2, before) is None
    assert void_above(log, RULES, 0, "another") is None
    assert void_above(log, RULES, 9, before) == 2
    assert void_above(log, RULES, 1, "another") == 0


def test_states_are_read_again_from_the_start() -> None:
    log, before = made()
    assert log.floor(*TYPING) == 1
    assert void_above(log, TYPING, 9, before) == 0


def test_states_that_a_relay_keeps_are_read_again_from_the_start() -> None:
    log = MemoryLog(relay_registry(), lambda: 0)
    before = log.history.current
    log.append(*TYPING, [b'["!a:x",[]]'])
    log.history.begin({TYPING: 1}, 0)
    assert log.floor(*TYPING) == 0
    assert void_above(log, TYPING, 2, before) == 0


def test_the_refusal_says_where_to_go_on() -> None:
    refusal = forked(RULES, 9, 2, {"parameter": "push_rules"})
    assert (refusal.status, refusal.errcode) == (410, "TCPREPL_FORKED")


@pytest.mark.parametrize(("said", "status"), [(None, 200), ("x", 410), ("", 400), ("x" * 256, 400)])
def test_every_answer_names_the_incarnation(said: str | None, status: int) -> None:
    stage = Stage()
    stage.publish("push_rules", ["@a:example.com"])
    headers = {} if said is None else {INCARNATION_HEADER: said}
    for path in (
        "/_synapse/replication?push_rules=1&timeout=0",
        "/_synapse/replication/get_repl_stream_updates/push_rules/x?from_token=1&upto_token=1",
    ):
        answer = stage.ask("GET", path, headers=headers)
        assert answer.status == status, answer.body
        assert answer.headers[INCARNATION_HEADER.lower()] == stage.log.history.current
    stage.close()


class Reader:
    """A reader by long poll that does what protocol.md section 13 says, of a log gone back."""

    def __init__(self, stage: Stage, incarnation: str, **positions: int) -> None:
        self.stage = stage
        self.incarnation = incarnation
        self.positions: dict[str, Any] = positions
        self.told: list[tuple[str, str]] = []
        self.rows: dict[str, list[Any]] = {}

    def ask(self) -> bool:
        """Ask once; returns whether there may be more."""
        answer = self.stage.ask(
            "GET",
            "/_synapse/replication",
            {**self.positions, "timeout": 0},
            headers={INCARNATION_HEADER: self.incarnation},
        )
        told = answer.json
        if answer.status == 200:
            for stream, table in told.items():
                self.positions[stream] = table["position"]
                self.rows.setdefault(stream, []).extend(row[1] for row in table["rows"])
        else:
            assert answer.status in (409, 410), told
            self.told.append((told["errcode"], told["stream"]))
            self.positions[told["stream"]] = told["held"]
        if answer.status == 200 or told["errcode"] != "TCPREPL_FORKED":
            self.incarnation = answer.headers[INCARNATION_HEADER.lower()]
        return bool(answer.status != 200 or told)


@pytest.mark.parametrize("order", [("audit", "push_rules"), ("push_rules", "audit")])
@pytest.mark.parametrize("why", ["lost", "trimmed", "behind"])
def test_a_history_is_looked_at_before_all_else(order: tuple[str, str], why: str) -> None:
    """A reader of two streams is told of each what is void, and gets all that is new.

    Whatever else one of its positions is refused for.
    """
    stage = Stage()
    stage.publish("push_rules", ["new"])
    if why == "lost":
        stage.lose("audit", 3)
    else:
        stage.publish("audit", *["new"] * 3)
    if why == "trimmed":
        stage.log.trim("audit", "master", 3)
    ahead = {"audit": 9 if why == "behind" else 3, "push_rules": 1}
    reader = Reader(stage, "of a lost history", **{stream: ahead[stream] for stream in order})
    for _ in range(8):
        if not reader.ask():
            break
    else:
        pytest.fail(f"it never comes to an end: {reader.told}")
    assert {stream for code, stream in reader.told if code == "TCPREPL_FORKED"} == set(order)
    assert reader.positions == {"audit": 3, "push_rules": 1}
    assert reader.rows.pop("push_rules") == ["new"]
    assert reader.rows == ({"audit": ["new"] * 3} if why == "behind" else {})
    stage.close()


def test_who_is_of_another_history_hears_of_every_stream() -> None:
    """The sums of a joined token may be the same in both."""
    stage = Stage()
    stage.publish("push_rules", ["new"])
    token = stage.get("/_synapse/replication", streams=-1).json["streams"]["position"]

    def streams(said: str) -> Any:
        return stage.ask(
            "GET",
            "/_synapse/replication",
            {"streams": token, "timeout": 0},
            headers={INCARNATION_HEADER: said},
        ).json

    assert streams(stage.log.history.current) == {}
    assert ["push_rules", 1] in streams("of a lost history")["streams"]["rows"]
    stage.close()
