"""The pages behind the status page: peers, one peer, one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcprepl.access import ALL, Grant
from tcprepl.ids import Pair
from tcprepl.replication.serving.readers import Reader
from tcprepl.replication.status import PeerStatus, ServerStatus, StreamStatus
from tcprepl.web.pages import CURSORS, NEWEST_ROWS, PEERS_A_PAGE, READERS, ROW_CHARS
from tests.log_kit import DURABLE, LateWorker, SqliteStore, add, row
from tests.unit.web.test_elements import Balanced, text
from tests.unit.web.test_page import HEAD, PEER
from tests.web_site import Stage


class Server:
    """A replication server that tells what the test wants."""

    def __init__(self) -> None:
        self.peers: list[PeerStatus] = []
        self.streams: list[StreamStatus] = []
        self.hub = self
        self.heads: dict[Pair, Any] = {}
        self.stands: dict[Reader, dict[Pair, int]] = {}
        self.reading: list[tuple[int, Reader]] = []

    def readers(self) -> list[tuple[int, Reader]]:
        """Return what reads."""
        return self.reading

    def standing(self, reader: Reader) -> dict[Pair, int]:
        """Return where *reader* is, as the hub would say."""
        return self.stands[reader]

    def reads(self, conn_id: int, pattern: Pair, stands: dict[Pair, int]) -> None:
        """Let a connection read, and stand somewhere."""
        reader = Reader(None, "somebody")  # type: ignore[arg-type]
        reader.subscription.patterns.add(pattern)
        self.reading.append((conn_id, reader))
        self.stands[reader] = stands

    def status(self) -> ServerStatus:
        """Return it."""
        return ServerStatus("example.com", "master", 5.0, self.streams, self.peers)

    def lags(self, also: Iterable[int]) -> dict[int, float]:
        """Return who is behind."""
        return {peer.conn_id: peer.behind_seconds for peer in self.peers if peer.behind_rows}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def stage(server: Server) -> Iterator[Stage]:
    made = Stage(replication_server=server)
    made.site.startFactory()
    yield made
    made.close()


def shown(stage: Stage, path: str, status: int = 200) -> str:
    """Return what a person reads of a page."""
    answer = stage.get(path)
    assert answer.status == status
    if status != 200:
        return answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    whole = answer.body.decode()
    parser = Balanced()
    parser.feed(whole.replace("<!doctype html>", ""))
    assert parser.open == []
    return text(whole.partition("<main>")[2])


def test_a_thousand_peers_are_turned_sorted_and_found(stage: Stage, server: Server) -> None:
    server.peers = [replace(HEAD, conn_id=n, name=f"w{n:04}.") for n in range(1_000)]
    server.peers[700] = replace(PEER, conn_id=700, name="late<1>")
    first = shown(stage, "/peers")
    assert "page 1 of 20 next" in first
    assert first.index("late&lt;1&gt;") < first.index("w0000.")
    assert first.count("w0") == PEERS_A_PAGE - 1
    assert "w0999." in shown(stage, "/peers?sort=newest")
    last = shown(stage, "/peers?sort=name&page=20")
    assert "before page 20 of 20" in last
    assert "w0999." in last
    assert "None." in shown(stage, "/peers?page=21")
    found = stage.get("/peers?find=LATE%3C&sort=rows").body.decode()
    assert "1 of 1\u202f000 peers" in found
    assert 'value="LATE&lt;"' in found
    assert '<option selected="" value="rows">' in found or 'value="rows" selected=""' in found
    assert "M_INVALID_PARAM" in shown(stage, "/peers?sort=size", 400)


def test_a_peer_says_why_it_is_behind(stage: Stage, server: Server) -> None:
    server.peers = [replace(PEER, buffered_bytes=128_000, acked=7), replace(PEER, conn_id=4), HEAD]
    server.peers[2] = replace(HEAD, conn_id=5)
    stage.clock.advance(1)
    slow = shown(stage, "/peers/3")
    assert "1 234 rows, the oldest of them 7.5 s old, in federation" in slow
    assert "Its socket takes no more" in slow
    assert "Acknowledged 7" in slow
    assert "it catches up" in shown(stage, "/peers/4")
    assert "It has everything." in shown(stage, "/peers/5")
    server.peers[1] = replace(PEER, conn_id=4, behind_seconds=1.0)
    assert "catches up" not in shown(stage, "/peers/4")
    assert "its connection may have ended" in shown(stage, "/peers/6", 404)


def test_a_peer_shows_where_it_stands(stage: Stage, server: Server) -> None:
    """In each stream that it reads, the farthest behind first; on a bus by its slowest part."""
    server.heads = {("audit", f"w{n:02}"): SimpleNamespace(token=100) for n in range(CURSORS + 5)}
    server.peers = [HEAD, replace(PEER, conn_id=7)]
    assert "Where it stands" not in shown(stage, f"/peers/{HEAD.conn_id}")
    server.reads(7, ("*", "*"), dict.fromkeys(server.heads, 100))
    server.reads(7, ("audit", "w03"), {("audit", "w03"): 60})
    server.reads(8, ("*", "*"), {("audit", "w04"): 1})
    told = shown(stage, "/peers/7").partition("Where it stands")[2]
    assert "To go audit w03 60 100 40 audit w00 100 100 0" in told
    assert "5 more have less to go." in told


def test_a_stream_shows_who_reads_it(stage: Stage, server: Server) -> None:
    """The slowest first, and no more than fit on a page."""
    server.streams = [StreamStatus("audit", "master", 1, 0, 1, 9)]
    assert "Nobody reads it at the moment." in shown(stage, "/streams/audit")
    server.peers = [replace(HEAD, conn_id=n, name=f"r{n}.") for n in range(READERS + 4)]
    server.peers[5] = replace(PEER, conn_id=5, name="slow.", behind_stream="other")
    for n in range(READERS + 3):
        server.reads(n, ("audit", "*"), {})
    server.reads(READERS + 3, ("other", "*"), {})
    told = shown(stage, "/streams/audit").partition("Readers")[2]
    assert told.index("slow.") < told.index("r0.")
    assert f"r{READERS + 3}." not in told
    assert "3 more read it." in told


def test_lag_is_drawn_alike_wherever_a_peer_is_shown(stage: Stage, server: Server) -> None:
    """On each page with a table of peers stands the line of the last two minutes."""
    server.streams = [StreamStatus("federation", "master", 1, 0, 1, 9)]
    server.peers = [PEER]
    server.reads(PEER.conn_id, ("federation", "*"), {})
    stage.clock.pump([1.0] * 3)
    for path, times in (("/peers", 1), ("/peers/3", 1), ("/streams/federation", 2)):
        drawn = stage.get(path).body.decode()
        assert drawn.count('class="spark bad"') == times
        assert drawn.count(", at most 7.5\u202fs") == times, path
        assert drawn.count("<polyline") == times, path


def test_a_browser_is_told_on_a_page_that_something_is_not_there(
    stage: Stage, server: Server
) -> None:
    """Programs get what they get everywhere."""
    for path in ("/peers/6", "/streams/nonsense"):
        answer = stage.ask("GET", path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert answer.status == 404
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "no s" in text(answer.body.decode().partition("<main>")[2])
        assert stage.get(path).json["errcode"] == "M_NOT_FOUND"


def test_a_peer_that_came_this_moment(stage: Stage, server: Server) -> None:
    server.peers = [HEAD]
    assert "It has everything." in shown(stage, f"/peers/{HEAD.conn_id}")


def test_a_stream_shows_its_writers_and_newest_rows(stage: Stage, server: Server) -> None:
    stage.publish("audit", *(f"<{n}>" for n in range(NEWEST_ROWS + 5)))
    stage.publish("audit", "x" * 1_000)
    server.streams = [
        StreamStatus("audit", "master", NEWEST_ROWS + 6, 0, 26, 99),
        StreamStatus("audit", "other", 0, 0, 0, 0),
    ]
    server.peers = [replace(PEER, behind_stream="audit"), HEAD]
    told = shown(stage, "/streams/audit")
    assert "Behind in it" in told
    assert "&lt;6&gt;" in told
    assert "&lt;5&gt;" not in told
    assert f"{'x' * 300}" in told
    assert "x" * ROW_CHARS not in told
    assert "Newest rows of other None is held." in told
    server.peers = []
    assert "Behind in it" not in shown(stage, "/streams/audit")
    assert "no stream of that name" in shown(stage, "/streams/nonsense", 404)


def test_rows_on_the_disk_are_waited_for_and_others_are_served(
    tmp_path: Path, server: Server
) -> None:
    """A person who looks at a stream holds nobody up, however slow the disk is."""
    store = SqliteStore(tmp_path)
    add(store, DURABLE, row("a"), row("b"))
    store.close()
    worker = store.reading_worker = LateWorker()
    store.open()
    server.streams = [StreamStatus(DURABLE, "w", 2, 0, 2, 99)]
    stage = Stage(replication_server=server, log=store.log)
    stage.site.startFactory()
    asked = stage.open("GET", f"/streams/{DURABLE}")
    assert not asked.answered
    assert len(worker.jobs) == 1
    assert stage.get("/peers").status == 200
    worker.run()
    assert "@b:x" in asked.answer.body.decode()
    stage.close()
    store.close()


def test_rows_that_cannot_be_read_are_said_to_be_missing(stage: Stage, server: Server) -> None:
    stage.publish("audit", "before")
    stage.lose("audit", 3)
    stage.publish("audit", "behind")
    server.streams = [StreamStatus("audit", "master", 4, 0, 2, 99)]
    told = shown(stage, "/streams/audit")
    assert "before" in told
    assert "rows in (1, 3]" in told
    assert "behind" in told


def test_what_is_secret_in_rows_is_masked(stage: Stage, server: Server) -> None:
    """Of built-in streams for everybody, of others for who may only inspect them."""
    stage.publish("caches", ["get_user_by_access_token", ["secret"], 5])
    server.streams = [StreamStatus("caches", "master", 1, 0, 1, 99)]
    told = shown(stage, "/streams/caches")
    assert "get_user_by_access_token" in told
    assert "secret" not in told
    made = Stage(replication_server=server, grants=[("word", Grant("inspector", inspect=ALL))])
    made.publish("audit", "private")
    server.streams = [StreamStatus("audit", "master", 1, 0, 1, 9)]
    answer = made.ask("GET", "/streams/audit", headers={"Authorization": "Bearer word"})
    assert "redacted" in answer.body.decode()
    assert "private" not in answer.body.decode()
    made.close()


def test_rows_that_have_gone_meanwhile(stage: Stage, server: Server) -> None:
    stage.publish("audit", 1, 2, 3)
    stage.log.trim("audit", "master", 3)
    server.streams = [StreamStatus("audit", "master", 3, 0, 3, 99)]
    assert "audit" in shown(stage, "/streams/audit")


def test_rows_are_for_who_may_read_them(server: Server) -> None:
    """Who may look at the server alone sees where its streams are."""
    made = Stage(replication_server=server, grants=[("word", Grant("operator", operate=True))])
    made.publish("audit", "row")
    server.streams = [StreamStatus("audit", "master", 1, 0, 1, 9)]
    answer = made.ask("GET", "/streams/audit", headers={"Authorization": "Bearer word"})
    assert "this token may not read the stream" in answer.body.decode()
    made.close()
