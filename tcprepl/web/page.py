"""The status page: HTML from a `View`, readable without scripts, on a phone, in the dark.

No external assets. The content security policy allows the one script and the one style sheet
of this page and nothing else. What is inside is made of elements (`twisted.web.template`), in
which a text can be nothing but text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from twisted.web.template import Tag

from tcprepl import __version__
from tcprepl.ids import InstanceName, StreamName
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus, StreamStatus
from tcprepl.web.amounts import duration, number, size
from tcprepl.web.elements import Node, Nodes, element, html, paragraph, pill, quiet, table, warning
from tcprepl.web.plots import plot, scale, spark, time_scale
from tcprepl.web.trends import SPANS, Trend

#: Lag from which a peer is shown as late, not just busy.
LATE_S = 5.0
#: Streams, and peers, that the page lists; there may be thousands, and while somebody looks
#: all of them are drawn every second.
_MOST_STREAMS, _MOST_PEERS = 50, 12
#: Destinations that it lists.
_MOST_DESTINATIONS = 100
_AS_JSON = "in the status as JSON"


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows.

    Attributes:
        status: Streams, peers and links.
        reason: Why the process cannot serve, or None.
        destinations: What the federation sender says of each destination.
        rates: Rows per second of each (stream, instance), oldest first.
        lags: Seconds behind of each peer, by connection.
        trends: Rows per second in all, and the largest lag, over each span.
        log: What is to be told of the log: titles, and what is said of each.
        now_ms: The time of day in ms since 1970.
    """

    status: ServerStatus
    reason: str | None
    destinations: Sequence[Mapping[str, Any]]
    rates: Mapping[tuple[StreamName, InstanceName], Sequence[float]]
    lags: Mapping[int, Sequence[float]]
    trends: Sequence[Trend]
    log: Mapping[str, str]
    now_ms: int


def parts(view: View) -> dict[str, str]:
    """Return the changing parts of the page: the id of an element, and what is inside it."""
    made = {
        "state": _state(view),
        "summary": _summary(view),
        **{f"trend-{trend.span.key}": _trend(trend) for trend in view.trends},
        "links": _links(view.status.links),
        "streams": _streams(view),
        "peers": _peers(view),
        "destinations": _destinations(view),
        "log": _log(view.log),
        "closed": _closed(view.status.closed),
    }
    return {name: html(*inside) for name, inside in made.items()}


def document(server_name: str, content: Mapping[str, str]) -> bytes:
    """Return the whole page with *content* in its places."""
    sections = f'<section id="links">{content["links"]}</section>' + "".join(
        f'<section><h2>{title}</h2><div id="{name}">{content[name]}</div></section>'
        for name, title in (
            ("streams", "Streams"),
            ("peers", "Peers"),
            ("destinations", "Destinations"),
            ("log", "Log"),
            ("closed", "Connections that ended"),
        )
    )
    # The inputs come before what they choose, so that the style alone can show it.
    choices = "".join(
        f'<input type="radio" name="span" id="span-{span.key}"{" checked" * (span is SPANS[0])}>'
        f'<label for="span-{span.key}">{span.title}</label>'
        for span in SPANS
    )
    pictures = "".join(
        f'<div id="trend-{span.key}" class="trend">{content[f"trend-{span.key}"]}</div>'
        for span in SPANS
    )
    trends = f'<section class="trends" aria-label="Trends">{choices}{pictures}</section>'
    return framed(
        server_name,
        f'<p id="state">{content["state"]}</p>',
        f'<div id="summary" class="cards">{content["summary"]}</div>{trends}{sections}',
        live=True,
    )


def framed(server_name: str, below: str, main: str, *, live: bool = False) -> bytes:
    """Return a page: *below* its title, then *main*, both of them HTML.

    A page that is not live is fetched again every ten seconds, but not under somebody's typing.
    """
    seconds = 5 if live else 10
    refresh = f'<noscript><meta http-equiv="refresh" content="{seconds}"></noscript>'
    shown = '<p id="live" class="quiet" role="status">still picture</p>' if live else ""
    # The frame is ours to the last character, and the policy has the digests of its script and
    # its style: it is no place for a template, which would escape them.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html(server_name)} · tcprepl</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style>{refresh}</head><body>"
        f'<header><div><h1><a href="/">{html(server_name)}</a></h1>{below}</div>{shown}</header>'
        f"<main>{main}</main>"
        '<footer><a href="/peers">peers</a><a href="/_tcprepl/v1/status">status as JSON</a>'
        '<a href="/metrics">metrics</a><a href="/openapi.json">OpenAPI</a>'
        f"<span>tcprepl {html(__version__)}</span></footer>"
        f"<script>{_SCRIPT}</script></body></html>"
    ).encode()


# -- Parts ----------------------------------------------------------------------------------


def _state(view: View) -> Nodes:
    status = view.status
    ready = view.reason is None
    yield pill("good", "ready") if ready else pill("bad", "not ready")
    if view.reason is not None:
        yield f" {view.reason}"
    yield " instance "
    yield element("b", status.instance)
    yield f", up {duration(status.uptime_seconds)}"
    late = max(status.peers, key=lambda peer: peer.behind_seconds, default=None)
    if late is not None and late.behind_seconds >= LATE_S:
        who = f" {late.name or late.address} by {duration(late.behind_seconds)}"
        yield element("span", pill("bad", "behind"), who, class_="away")
    for words in status.damage:
        yield element("span", pill("bad", "damaged"), f" {words}", class_="away")
    for link in status.links:
        if not link.up:
            reason = f": {link.reason}" if link.reason else ""
            away = f" {link.name} for {duration(link.seconds)}{reason}"
            yield element("span", pill("bad", f"{link.kind} away"), away, class_="away")


def _summary(view: View) -> Nodes:
    peers = view.status.peers
    behind = [peer for peer in peers if peer.behind_rows]
    worst = max((peer.behind_seconds for peer in peers), default=0.0)
    waiting = [found for found in view.destinations if found.get("queued_edus")]
    queued = sum(int(found.get("queued_edus", 0)) for found in view.destinations)
    rates = view.trends[0].rates
    not_sent = sum(peer.behind_rows for peer in peers)
    held = sum(stream.bytes for stream in view.status.streams)
    yield _card(
        "Rows a second", number(rates[-1] if rates else 0.0), quiet(f"{size(held)} since the start")
    )
    yield _card("Peers", number(len(peers)), _note(len(behind), "behind", "all at the head"))
    yield _card("Largest lag", duration(worst), _note(not_sent, "rows not sent", "nothing waits"))
    yield _card(
        "Destinations waiting",
        number(len(waiting)),
        _note(queued, "EDUs queued", "nothing queued"),
    )


def _trend(trend: Trend) -> Nodes:
    yield plot("Rows a second", list(trend.rates), trend.span, number, scale)
    yield plot("Largest lag", list(trend.lags), trend.span, duration, time_scale)


def _log(said: Mapping[str, str]) -> Nodes:
    pairs = [(element("dt", title), element("dd", text)) for title, text in said.items()]
    yield element("dl", *(node for pair in pairs for node in pair))


def _card(title: str, value: str, below: Tag) -> Tag:
    return element("div", element("h3", title), element("strong", value), below)


def _note(count: int, what: str, otherwise: str) -> Tag:
    return quiet(otherwise) if count <= 0 else warning(f"{number(count)} {what}")


def _more(count: int, where: str) -> Nodes:
    if count > 0:
        yield warning(f"{number(count)} more are {where}")


def _links(links: Sequence[LinkStatus]) -> Nodes:
    """Yield the whole section, with its title: most servers have no links, and no section."""
    if not links:
        return
    yield element("h2", "Links")
    yield table(
        ("Link", "State", "For", "Last row", "Rows", "Reconnects", "Gaps"),
        map(_link_row, links),
        numeric=(2, 3, 4, 5, 6),
    )
    for link in links:
        if link.newest_gaps:
            yield element("h3", f"Newest gaps of {link.name}")
            items = (element("li", gap) for gap in reversed(link.newest_gaps))
            yield element("ul", *items, class_="gaps")
            yield from _more(link.gaps - len(link.newest_gaps), "not listed")
        if link.silent_moves:
            yield element("h3", f"Moved without rows, at {link.name}")
            items = (element("li", move) for move in reversed(link.silent_moves))
            yield element("ul", *items, class_="gaps")


def _link_row(link: LinkStatus) -> Sequence[Node]:
    reason: Node = link.reason or ""
    if link.reason and link.up:
        reason = quiet(f"last lost: {link.reason}")
    return (
        [element("b", link.name), " ", quiet(link.kind)],
        [pill("good", "up") if link.up else pill("bad", "away"), " ", reason],
        duration(link.seconds),
        "" if link.idle_seconds is None else f"{duration(link.idle_seconds)} ago",
        number(link.rows),
        number(link.reconnects),
        warning(number(link.gaps)) if link.gaps else "0",
    )


def _streams(view: View) -> Nodes:
    written = [stream for stream in view.status.streams if stream.position]
    silent = sorted({stream.stream for stream in view.status.streams} - {s.stream for s in written})
    if written:
        yield table(
            ("Stream", "Instance", "Position", "Held from", "Rows a second", "Last two minutes"),
            (_stream_row(stream, view) for stream in written[:_MOST_STREAMS]),
            numeric=(2, 3, 4),
        )
        yield from _more(len(written) - _MOST_STREAMS, _AS_JSON)
    else:
        yield paragraph("No stream has a row yet.")
    if silent:
        shown = silent[:_MOST_STREAMS]
        names = (node for name in shown for node in (" ", element("code", name)))
        yield paragraph("Not written yet:", *names)
        yield from _more(len(silent) - _MOST_STREAMS, _AS_JSON)


def stream_link(stream: StreamName) -> Tag:
    """Return the name of a stream, which leads to its page."""
    return element(
        "a", element("code", stream), href=f"/streams/{quote(stream, '', errors='replace')}"
    )


def _stream_row(stream: StreamStatus, view: View) -> Sequence[Node]:
    rates = view.rates.get((stream.stream, stream.instance), ())
    return (
        stream_link(stream.stream),
        stream.instance,
        number(stream.position),
        number(stream.floor),
        number(rates[-1] if rates else 0.0),
        spark(rates, f"rows a second of {stream.stream}", number(max(rates, default=0.0))),
    )


def _peers(view: View) -> Nodes:
    if not view.status.peers:
        yield paragraph("Nobody is connected to the line protocol.")
        return
    ordered = sorted(view.status.peers, key=ORDERS["lag"])
    yield peer_table(ordered[:_MOST_PEERS], view.lags)
    if len(ordered) > _MOST_PEERS:
        yield paragraph(
            element("a", f"All {number(len(ordered))} peers", href="/peers"),
            ", sorted and searched",
        )
    yield from _processes(ordered)


#: How peers may be sorted, and by what.
ORDERS: Mapping[str, Callable[[PeerStatus], Any]] = {
    "lag": lambda peer: (-peer.behind_seconds, -peer.behind_rows, peer.conn_id),
    "name": lambda peer: (peer.name, peer.conn_id),
    "rows": lambda peer: (-peer.behind_rows, peer.conn_id),
    "paused": lambda peer: (-peer.paused_seconds, peer.conn_id),
    "newest": lambda peer: -peer.conn_id,
}


def peer_table(peers: Sequence[PeerStatus], lags: Mapping[int, Sequence[float]]) -> Tag:
    """Return a table of *peers*, in that order."""
    titles = (
        "Peer", "Dialect", "State", "Rows", "Bytes", "Lag", "Last two minutes", "Paused", "Since"
    )  # fmt: skip
    rows = (_peer_row(peer, lags.get(peer.conn_id, ())) for peer in peers)
    return element("div", table(titles, rows, numeric=(3, 4, 5, 7, 8)), class_="peers")


def _processes(peers: Sequence[PeerStatus]) -> Nodes:
    """Show what each process of the homeserver did, on a bus."""
    known = {peer.name or peer.address: peer.process for peer in peers if peer.process is not None}
    if known:
        yield table(
            ("Process", "Rows in", "Rows out", "Reconnects", "Replays", "Cache hits"),
            (
                (
                    element("b", name),
                    number(did.rows_in),
                    number(did.rows_out),
                    number(did.reconnects),
                    number(did.replays),
                    did.cache,
                )
                for name, did in sorted(known.items())[:_MOST_PEERS]
            ),
            numeric=(1, 2, 3, 4, 5),
        )
        yield from _more(len(known) - _MOST_PEERS, _AS_JSON)


def _peer_row(peer: PeerStatus, lags: Sequence[float]) -> Sequence[Node]:
    kind = "good"
    if peer.behind_rows:
        kind = "bad" if peer.behind_seconds >= LATE_S else "warn"
    where: list[Node] = []
    if peer.behind_stream:
        where = [" ", quiet(f"in {peer.behind_stream}")]
    name = element("a", peer.name or "no name", href=f"/peers/{peer.conn_id}")
    return (
        [name, " ", quiet(f"{peer.address} #{peer.conn_id}")],
        peer.dialect,
        [pill(kind, peer.state), *where],
        number(peer.behind_rows),
        size(peer.behind_bytes),
        duration(peer.behind_seconds),
        spark(
            lags,
            f"lag of {peer.name or peer.conn_id}",
            duration(max(lags, default=0.0)),
            kind,
        ),
        duration(peer.paused_seconds),
        duration(peer.connected_seconds),
    )


def _destinations(view: View) -> Nodes:
    if not view.destinations:
        yield paragraph("This process sends to no other server.")
        return
    ordered = sorted(view.destinations, key=lambda found: -float(found.get("oldest_seconds") or 0))
    yield table(
        ("Destination", "State", "Queued", "Oldest", "Next try"),
        (_destination_row(found, view.now_ms) for found in ordered[:_MOST_DESTINATIONS]),
        numeric=(2, 3, 4),
    )
    yield from _more(len(ordered) - _MOST_DESTINATIONS, _AS_JSON)


def _destination_row(found: Mapping[str, Any], now_ms: int) -> Sequence[Node]:
    kind = "warn" if found.get("failures") else "good"
    next_try_ms = found.get("next_try_ms")
    left_s = max(0.0, (float(next_try_ms) - now_ms) / 1000) if next_try_ms else 0.0
    why = quiet(str(found.get("why", "")))
    return (
        element("b", str(found.get("destination", ""))),
        [pill(kind, str(found.get("state", ""))), " ", why],
        number(float(found.get("queued_edus") or 0)),
        duration(float(found.get("oldest_seconds") or 0)),
        f"in {duration(left_s)}" if left_s else "",
    )


def _closed(closed: Mapping[str, int]) -> Nodes:
    if not closed:
        yield paragraph("None so far.")
        return
    yield element(
        "ul",
        *(
            element("li", element("b", number(count)), f" {reason.replace('_', ' ')}")
            for reason, count in sorted(closed.items(), key=lambda item: -item[1])
        ),
        class_="chips",
    )


def _asset(name: str) -> str:
    return files("tcprepl.web").joinpath(name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE = _asset("page.css")
_SCRIPT = _asset("page.js")

#: Response headers of the page.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
