"""Readers over HTTP that say in which history they got their positions."""

from __future__ import annotations

import pytest

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
