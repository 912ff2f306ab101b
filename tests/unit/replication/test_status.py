"""What a server tells of itself, in words."""

from __future__ import annotations

from dataclasses import replace

from tcprepl.replication.status import (
    LinkStatus,
    PeerStatus,
    ProcessStatus,
    ServerStatus,
    StreamStatus,
    process_status,
)

PEER = PeerStatus(
    conn_id=3,
    name="worker1",
    address="127.0.0.1:4711",
    dialect="1.22",
    state="head",
    behind_rows=0,
    behind_bytes=0,
    behind_seconds=0.0,
    behind_stream=None,
    paused_seconds=1.25,
    buffered_bytes=0,
    sent_bytes=100,
    gaps=0,
    connected_seconds=9.0,
)
BEHIND = replace(
    PEER, state="behind", behind_rows=1, behind_bytes=90, behind_seconds=2.5, behind_stream="typing"
)
STATUS = ServerStatus(
    "example.com",
    "master",
    12.0,
    [StreamStatus("typing", "master", 5, 2, 1, 40)],
    [PEER, BEHIND, replace(PEER, state="new", name="")],
    {"peer_closed": 1},
)


def test_lines_say_who_is_behind_and_by_how_much() -> None:
    assert STATUS.lines() == [
        "server example.com, instance master, up 12 s, 3 peers, 1 behind",
        "stream typing of master: position 5, held from 2, 1 row since start",
        "peer 3 worker1 127.0.0.1:4711 1.22: has everything, paused 1.2 s in all",
        "peer 3 worker1 127.0.0.1:4711 1.22: behind by 1 row, 90 bytes, 2.5 s (oldest: typing), "
        "paused 1.2 s in all",
        "peer 3 (no name) 127.0.0.1:4711 1.22: new",
    ]


def test_a_process_on_a_bus_is_told_with_what_it_did() -> None:
    did = ProcessStatus(1, 20, 1, 0, 3, 4)
    peer = replace(PEER, dialect="redis", process=did)
    assert ServerStatus("example.com", "master", 1.0, [], [peer]).lines()[1:] == [
        "peer 3 worker1 127.0.0.1:4711 redis (wrote 1 row, got 20, 1 reconnect, 0 replays, "
        "cache 3 of 7): has everything, paused 1.2 s in all"
    ]
    counts = {"rows_in": 1, "rows_out": 15, "subscribed": 2, "cache_hits": 3, "cache_misses": 4}
    assert process_status(counts, 5) == did
    assert process_status({}, 0) == ProcessStatus(0, 0, 0, 0, 0, 0)


def test_as_dict_is_plain_values() -> None:
    told = STATUS.as_dict()
    assert told["streams"][0]["position"] == 5
    assert told["peers"][1]["behind_stream"] == "typing"
    assert told["closed"] == {"peer_closed": 1}


def test_links_are_told_with_their_gaps() -> None:
    """An upstream that is away says since when and why; gaps have a line each."""
    link = LinkStatus("redis://h", "upstream", False, 61.0, "no answer", 2, 1, 1, ["a of b: x"])
    status = ServerStatus("example.com", "master", 5.0, links=[link])
    assert status.lines()[1:] == [
        "upstream redis://h: away for 61 s (no answer), 1 row, 2 reconnects, 1 gap",
        "gap: a of b: x",
    ]
    assert status.as_dict()["links"][0]["reason"] == "no answer"
    late = replace(link, up=True, newest_gaps=[], idle_seconds=7.4)
    assert late.lines() == [
        "upstream redis://h: up for 61 s, 1 row (the last 7 s ago), 2 reconnects, 1 gap"
    ]
    assert replace(status, links=[late]).as_dict()["links"][0]["idle_seconds"] == 7.4
    up = LinkStatus("redis://h", "redis", True, 3.0, "no answer", 1, 0)
    assert up.lines() == ["redis redis://h: up for 3 s, 0 rows, 1 reconnect, 0 gaps"]


def test_damage_is_named() -> None:
    damage = ["stream s of i: rows in (0, 1] cannot be read", "and 3 more damaged ranges"]
    lines = ServerStatus("x", "m", 1.0, damage=damage).lines()
    assert lines[1:] == [f"damaged: {words}" for words in damage]


def test_a_name_is_shown_and_not_obeyed() -> None:
    """NAME may have any letter, and one that turns the line around is none."""
    peers = [replace(peer, name="a\u202eb") for peer in STATUS.peers]
    told = "".join(replace(STATUS, peers=peers).lines())
    assert "a\\u202eb" in told
    assert "\u202e" not in told
