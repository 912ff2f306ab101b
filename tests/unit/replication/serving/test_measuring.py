"""Counts by name: bounded, whoever calls himself what."""

from __future__ import annotations

from tcprepl.replication.serving.measuring import MAX_NAMES, OTHERS, CommandCounts


def test_names_of_those_who_are_there_have_counts_of_their_own() -> None:
    counts = CommandCounts()
    for name in ("w1", "w1", "w2"):
        counts.add("PING", name, {"w1", "w2"})
    assert counts.by_word_and_name() == {("PING", "w1"): 2, ("PING", "w2"): 1}


def test_names_are_bounded_and_no_count_is_lost() -> None:
    counts = CommandCounts()
    connected = {"w1"}
    counts.add("NAME", "w1", connected)
    for number in range(20_000):
        counts.add("REMOTE_SERVER_UP", f"n{number}", connected)
    found = counts.by_word_and_name()
    assert len({name for _, name in found}) == MAX_NAMES + 1
    assert sum(found.values()) == 20_001
    assert found["NAME", "w1"] == 1
    assert found["REMOTE_SERVER_UP", OTHERS] == 20_000 - MAX_NAMES + 1


def test_when_all_are_there_the_newest_share_one_count() -> None:
    counts = CommandCounts()
    connected = {f"n{number}" for number in range(MAX_NAMES + 5)}
    for name in sorted(connected):
        counts.add("PING", name, connected)
    assert counts.by_word_and_name()["PING", OTHERS] == 5
