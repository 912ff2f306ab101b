"""The page, as people get it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from typing import Any

import pytest

from tcprepl.replication.status import (
    LinkStatus,
    PeerStatus,
    ProcessStatus,
    ServerStatus,
    StreamStatus,
)
from tcprepl.web import page
from tcprepl.web.trends import Trends
from tests.unit.web.test_elements import Balanced, text

PEER = PeerStatus(
    conn_id=3,
    name="sender<1>",
    address="127.0.0.1:5",
    dialect="1.22",
    state="behind",
    behind_rows=1234,
    behind_bytes=5_600_000,
    behind_seconds=7.5,
    behind_stream="federation",
    paused_seconds=3.0,
    buffered_bytes=0,
    sent_bytes=1,
    gaps=0,
    connected_seconds=4000.0,
)
HEAD = PeerStatus(4, "", "127.0.0.1:6", "tcprepl", "head", 0, 0, 0.0, None, 0.0, 0, 9, 0, 2.0)


def trends(*samples: tuple[float, float]) -> Any:
    """Return what was measured."""
    made = Trends()
    for rate, lag in samples:
        made.add(rate, lag)
    return made.all


def view(**fields: Any) -> page.View:
    """Return a view of a busy server."""
    status = ServerStatus(
        "example.com",
        "master",
        90.0,
        [
            StreamStatus("typing", "master", 1_234_567, 12, 10, 20),
            StreamStatus("receipts", "master", 0, 0, 0, 0),
        ],
        [HEAD, PEER],
        {"peer_closed": 2, "ping_timeout": 1},
    )
    return page.View(
        **{
            "status": status,
            "reason": None,
            "destinations": [
                {
                    "destination": "matrix.org",
                    "state": "waiting",
                    "why": "2 tries failed: <timeout>",
                    "queued_edus": 7,
                    "oldest_seconds": 60.0,
                    "failures": 2,
                    "next_try_ms": 62_000,
                },
                {"destination": "idle.example", "state": "idle"},
            ],
            "rates": {("typing", "master"): [0.0, 2.5, 5.0]},
            "trends": trends((0.0, 0.0), (2.5, 1.0), (5.0, 7.5)),
            "log": {"Incarnation": "abc", "Gaps": "<none>"},
            "lags": {3: [0.0, 1000.0, 1234.0]},
            "now_ms": 2_000,
            **fields,
        }
    )


AWAY = LinkStatus(
    "redis://h<1>",
    "upstream",
    up=False,
    seconds=61.0,
    reason="no <answer>",
    reconnects=2,
    rows=1234,
    gaps=3,
    newest_gaps=["receipts of w1: rows in (5, 8] may be missing", "a of <b>: newest"],
    idle_seconds=75.0,
)
UP = LinkStatus("redis://own", "redis", True, 5.0, None, 0, 7)


def with_links(*links: LinkStatus) -> page.View:
    """Return a view of a server that has links."""
    return view(status=ServerStatus("example.com", "master", 9.0, links=list(links)))


def test_writers_that_moved_without_rows_are_listed() -> None:
    link = replace(UP, silent_moves=["to_device of <tw>: 2 times"])
    html = page.parts(with_links(link))["links"]
    assert "Moved without rows" in html
    assert "to_device of &lt;tw&gt;: 2 times" in html


def test_damage_on_the_disk_is_named_at_the_top() -> None:
    status = ServerStatus("example.com", "master", 9.0, damage=["stream a of b: rows in (1, 2]"])
    assert "damaged stream a of b: rows in (1, 2]" in text(page.parts(view(status=status))["state"])


def test_links_say_how_it_goes_and_what_was_lost() -> None:
    """Away is bad, and says why; the newest gap comes first."""
    html = page.parts(with_links(AWAY, UP))["links"]
    told = text(html)
    assert told.startswith("Links Link State For Last row Rows Reconnects Gaps redis://h")
    assert (
        "redis://h&lt;1&gt; upstream away no &lt;answer&gt; 1 min 1 s 1 min 15 s ago 1 234 2 3"
    ) in told
    assert "redis://own redis up 5.0 s 7 0 0 Newest gaps" in told
    assert told.endswith(
        "Newest gaps of redis://h&lt;1&gt; a of &lt;b&gt;: newest receipts of w1: rows in (5, 8] "
        "may be missing 1 more are not listed"
    )
    assert html.count('class="pill bad"') == html.count('class="pill good"') == 1


def test_a_link_that_is_back_says_quietly_why_it_was_lost() -> None:
    """It is no alarm any more."""
    html = page.parts(with_links(replace(AWAY, up=True, gaps=0, newest_gaps=[])))["links"]
    assert '<span class="quiet">last lost: no &lt;answer&gt;</span>' in html
    assert 'class="pill good"' in html
    assert 'class="warn"' not in html
    assert "Newest gaps" not in html


def test_a_link_that_is_away_is_seen_at_once() -> None:
    """In the line below the name, whatever else there is to see."""
    html = page.parts(with_links(AWAY, UP))["state"]
    assert '<span class="pill bad">upstream away</span>' in html
    assert text(html).endswith("upstream away redis://h&lt;1&gt; for 1 min 1 s: no &lt;answer&gt;")
    fresh = page.parts(with_links(replace(AWAY, reason=None), UP))["state"]
    assert text(fresh).endswith("redis://h&lt;1&gt; for 1 min 1 s")
    assert "away" not in page.parts(with_links(UP))["state"]


def test_a_server_without_links_shows_no_section_for_them() -> None:
    """Its place is there, for the day when it has some."""
    parts = page.parts(view())
    assert parts["links"] == ""
    html = page.document("x", parts).decode()
    assert '<section id="links"></section>' in html
    assert "<h2>Links</h2>" not in html


def test_streams_have_position_rate_and_plot() -> None:
    """Those without a row are listed, not tabulated."""
    html = page.parts(view())["streams"]
    assert "typing master 1 234 567 12 5" in text(html)
    assert "Not written yet: receipts" in text(html)
    assert '<polyline points="118.0,27.0 119.0,14.5 120.0,2.0"></polyline>' in html


def test_only_so_many_streams_without_a_row_are_listed() -> None:
    """A configuration may name thousands."""
    silent = [StreamStatus(f"s{n:02}", "master", 0, 0, 0, 0) for n in range(53)]
    html = page.parts(view(status=ServerStatus("example.com", "master", 9.0, silent)))["streams"]
    assert "s49 3 more are in the status as JSON" in text(html)
    assert "s50" not in html


def test_peers_have_their_lag_and_the_latest_comes_first() -> None:
    """Rows, bytes, seconds, the time paused; and which stream."""
    html = page.parts(view())["peers"]
    told = text(html)
    assert told.index("sender&lt;1&gt; 127.0.0.1:5 #3") < told.index("no name 127.0.0.1:6 #4")
    assert "1.22 behind in federation 1 234 5.6 MB 7.5 s 3.0 s 1 h 6 min" in told
    assert 'class="pill bad"' in html
    assert 'class="pill good"' in html
    assert 'class="spark bad"' in html


def test_destinations_say_why_they_wait() -> None:
    """Queue, age, next try."""
    told = text(page.parts(view())["destinations"])
    assert "matrix.org waiting 2 tries failed: &lt;timeout&gt; 7 1 min 0 s in 1 min 0 s" in told
    assert "idle.example idle 0 0 s" in told


def test_only_so_many_destinations_are_listed() -> None:
    """There may be thousands; the oldest come first."""
    many = [{"destination": f"d{n}.example", "oldest_seconds": n} for n in range(103)]
    html = page.parts(view(destinations=many))["destinations"]
    assert "d102.example" in html
    assert "d2.example<" not in html
    assert "3 more are in the status as JSON" in text(html)


def test_only_so_many_peers_and_streams_are_listed() -> None:
    """Who is furthest behind comes first: ten thousand idle ones cost nothing."""
    peers = [replace(HEAD, conn_id=n, name=f"w{n}.") for n in range(60)] + [PEER]
    streams = [StreamStatus("typing", f"i{n}.", 1, 0, 1, 1) for n in range(55)]
    shown = page.parts(view(status=ServerStatus("x", "m", 1.0, streams, peers)))
    assert "sender&lt;1&gt;" in shown["peers"]
    assert "w10." in shown["peers"]
    assert "w11." not in shown["peers"]
    assert '<a href="/peers">All 61 peers</a>' in shown["peers"]
    assert "5 more are in the status as JSON" in text(shown["streams"])


@pytest.mark.parametrize(
    "evil", ["<script>", '" onload="x', "a\x1b[2J", "\u202eb", "\ud800", "\x9b"]
)
def test_what_comes_from_outside_is_text_wherever_it_stands(evil: str) -> None:
    """In an element, in an attribute; and nothing turns the page around."""
    peer = replace(PEER, name=evil, address=evil, dialect=evil, state=evil, behind_stream=evil)
    link = replace(AWAY, name=evil, reason=evil, kind=evil, newest_gaps=[evil])
    status = ServerStatus(
        evil, evil, 1.0, [StreamStatus(evil, evil, 1, 0, 1, 1)], [peer], {evil: 1}, [link]
    )
    destination = {"destination": evil, "state": evil, "why": evil}
    shown = page.parts(view(status=status, destinations=[destination], reason=evil))
    whole = page.document(evil, shown).decode()
    inside = whole.replace(f"<script>{page._SCRIPT}</script>", "")
    assert "<script>" not in inside
    assert not re.search(r'<[^>]*" onload="', inside)
    if evil[0] not in '<"':
        assert evil not in whole
    parser = Balanced()
    parser.feed(whole.replace("<!doctype html>", ""))
    assert parser.open == []


def test_the_summary_has_what_matters() -> None:
    """Rate, peers, the largest lag, what waits."""
    told = text(page.parts(view())["summary"])
    assert "Rows a second 5 20 B since the start" in told
    assert "Peers 2 1 behind" in told
    assert "Largest lag 7.5 s 1 234 rows not sent" in told
    assert "Destinations waiting 1 7 EDUs queued" in told


def test_an_idle_server_says_so() -> None:
    """Nothing is blank."""
    status = ServerStatus("example.com", "master", 0.4)
    parts = page.parts(
        view(status=status, destinations=[], rates={}, trends=trends(), lags={}, reason="a <b>")
    )
    assert text(parts["streams"]) == "No stream has a row yet."
    assert text(parts["peers"]) == "Nobody is connected to the line protocol."
    assert text(parts["destinations"]) == "This process sends to no other server."
    assert text(parts["closed"]) == "None so far."
    assert "at most 0 " in text(parts["trend-24h"])
    assert text(parts["state"]) == "not ready a &lt;b&gt; instance master , up 400 ms"
    assert "all at the head" in parts["summary"]


def test_who_is_late_is_named_at_the_top() -> None:
    """By the time that it is behind, and not before it is worth a word."""
    late = replace(PEER, behind_seconds=5.0)
    for peer, named in ((late, True), (replace(late, behind_seconds=4.9), False)):
        state = page.parts(view(status=ServerStatus("x", "m", 1.0, [], [HEAD, peer])))["state"]
        assert ("sender&lt;1&gt; by 5.0" in state) is named


def test_the_log_is_told_of() -> None:
    told = text(page.parts(view())["log"])
    assert told == "Incarnation abc Gaps &lt;none&gt;"


def test_close_reasons_are_counted() -> None:
    """The most frequent first."""
    assert text(page.parts(view())["closed"]) == "2 peer closed 1 ping timeout"


def test_a_peer_that_is_a_little_behind_is_no_alarm() -> None:
    """Yellow below five seconds."""
    peers = [replace(PEER, behind_seconds=0.5)]
    html = page.parts(view(status=ServerStatus("x", "m", 1.0, [], peers)))["peers"]
    assert 'class="pill warn"' in html
    assert "500 ms" in text(html)


def test_the_document_is_whole_and_allows_only_itself() -> None:
    """Balanced, without foreign assets, and the policy fits the script and the style."""
    shown = page.parts(with_links(AWAY, UP)) | {"streams": page.parts(view())["streams"]}
    html = page.document("a&b", shown).decode()
    parser = Balanced()
    parser.feed(html.replace("<!doctype html>", ""))
    assert parser.open == []
    assert "<title>a&amp;b" in html
    assert "http://" not in html
    assert "https://" not in html
    assert " style=" not in html
    assert not re.search(r"\son\w+=", html.partition("<script>")[0])
    policy = page.HEADERS["Content-Security-Policy"]
    for tag in ("style", "script"):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for name in page.parts(view()):
        assert f'id="{name}"' in html


def test_processes_on_a_bus_are_shown_with_what_they_did() -> None:
    shown = view()
    assert "Reconnects" not in page.parts(shown)["peers"]
    status = replace(
        shown.status, peers=[HEAD, replace(PEER, process=ProcessStatus(11, 200, 3, 1, 8, 2))]
    )
    told = page.parts(view(status=status))["peers"]
    for cell in ("<b>sender&lt;1&gt;</b>", "11", "200", "3", "1", "8 of 10"):
        assert f">{cell}</td>" in told
