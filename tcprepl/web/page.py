"""The status page: HTML from a `View`, readable without scripts, on a phone, in the dark.

No external assets. The content security policy allows the one script and the one style sheet
of this page and nothing else. What is inside is made of elements (`twisted.web.template`), in
which a text can be nothing but text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

from twisted.python.failure import Failure
from twisted.web.template import Tag, flatten

from tcprepl import __version__
from tcprepl.ids import InstanceName, StreamName
from tcprepl.protocol.display import displayable
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus, StreamStatus

#: Samples that a plot has room for: one a second, the newest at the right.
HISTORY = 120
#: Size of a sparkline in its own units.
_WIDTH, _HEIGHT = 120, 28
#: Lag from which a peer is shown as late, not just busy.
_LATE_S = 5.0
#: Streams, and peers, that the page lists; there may be thousands, and while somebody looks
#: all of them are drawn every second.
_MOST_ROWS = 50
#: Destinations that it lists.
_MOST_DESTINATIONS = 100
_AS_JSON = "in the status as JSON"

#: What is inside an element.
Node: TypeAlias = "str | Tag | list[Node]"
Nodes: TypeAlias = "Iterator[Node]"


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows.

    Attributes:
        status: Streams, peers and links.
        reason: Why the process cannot serve, or None.
        destinations: What the federation sender says of each destination.
        rates: Rows per second of each (stream, instance), oldest first.
        total_rate: Rows per second in all.
        lags: Rows behind of each peer, by connection.
        now_ms: The time of day in ms since 1970.
    """

    status: ServerStatus
    reason: str | None
    destinations: Sequence[Mapping[str, Any]]
    rates: Mapping[tuple[StreamName, InstanceName], Sequence[float]]
    total_rate: Sequence[float]
    lags: Mapping[int, Sequence[float]]
    now_ms: int


def parts(view: View) -> dict[str, str]:
    """Return the changing parts of the page: the id of an element, and what is inside it."""
    made = {
        "state": _state(view),
        "summary": _summary(view),
        "links": _links(view.status.links),
        "streams": _streams(view),
        "peers": _peers(view),
        "destinations": _destinations(view),
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
            ("closed", "Connections that ended"),
        )
    )
    # The frame is ours to the last character, and the policy has the digests of its script and
    # its style: it is no place for a template, which would escape them.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html(server_name)} · tcprepl</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style>"
        '<noscript><meta http-equiv="refresh" content="5"></noscript></head><body>'
        f'<header><div><h1>{html(server_name)}</h1><p id="state">{content["state"]}</p></div>'
        '<p id="live" class="quiet" role="status">still picture</p></header><main>'
        f'<div id="summary" class="cards">{content["summary"]}</div>{sections}</main>'
        '<footer><a href="/_tcprepl/v1/status">status as JSON</a>'
        '<a href="/metrics">metrics</a><a href="/openapi.json">OpenAPI</a>'
        f"<span>tcprepl {html(__version__)}</span></footer>"
        f"<script>{_SCRIPT}</script></body></html>"
    ).encode()


# -- Elements -------------------------------------------------------------------------------


def element(name: str, *children: Node, **attributes: str) -> Tag:
    """Return an element; what is text in it is escaped, whoever it came from."""
    safe: Any = {key.rstrip("_"): displayable(value) for key, value in attributes.items()}
    return Tag(name, safe)(*map(_safe, children))


def html(*nodes: Node) -> str:
    """Return *nodes* as HTML."""
    pieces: list[bytes] = []
    failures: list[Failure] = []
    # Nothing here is a Deferred, so that it is done when this returns.
    _ = flatten(None, list(map(_safe, nodes)), pieces.append).addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    return b"".join(pieces).decode()


def _safe(node: Node) -> Node:
    if isinstance(node, str):
        return displayable(node)
    return list(map(_safe, node)) if isinstance(node, list) else node


def _quiet(*children: Node) -> Tag:
    return element("span", *children, class_="quiet")


def _warning(*children: Node) -> Tag:
    return element("span", *children, class_="warn")


def _pill(kind: str, text: str) -> Tag:
    return element("span", text, class_=f"pill {kind}")


def _paragraph(*children: Node) -> Tag:
    return element("p", *children, class_="quiet")


def _table(
    titles: Sequence[str], rows: Iterable[Sequence[Node]], numeric: Sequence[int] = ()
) -> Tag:
    kinds = [{"class_": "n"} if index in numeric else {} for index in range(len(titles))]
    head = (element("th", title, **kind) for title, kind in zip(titles, kinds, strict=True))
    body = (
        element(
            "tr",
            *(
                element("td", cell, **kind, **{"data-label": title})
                for title, kind, cell in zip(titles, kinds, row, strict=True)
            ),
        )
        for row in rows
    )
    return element("table", element("thead", element("tr", *head)), element("tbody", *body))


def spark(values: Sequence[float], label: str, kind: str = "") -> Tag:
    """Return a line plot of *values*, the newest at the right edge, as inline SVG."""
    top = max((*values, 1.0))
    step = _WIDTH / (HISTORY - 1)
    left = _WIDTH - step * (len(values) - 1)
    line = " ".join(
        f"{left + index * step:.1f},{_HEIGHT - 1 - (_HEIGHT - 3) * value / top:.1f}"
        for index, value in enumerate(values)
    )
    drawing = []
    if len(values) > 1:
        area = f"{left:.1f},{_HEIGHT} {line} {_WIDTH},{_HEIGHT}"
        drawing = [element("polygon", points=area), element("polyline", points=line)]
    return element(
        "svg",
        *drawing,
        class_=f"spark {kind}",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": f"{label}, at most {number(max(values, default=0.0))}"},
    )


# -- Parts ----------------------------------------------------------------------------------


def _state(view: View) -> Nodes:
    status = view.status
    ready = view.reason is None
    yield _pill("good", "ready") if ready else _pill("bad", "not ready")
    if view.reason is not None:
        yield f" {view.reason}"
    yield " instance "
    yield element("b", status.instance)
    yield f", up {duration(status.uptime_seconds)}"
    for words in status.damage:
        yield element("span", _pill("bad", "damaged"), f" {words}", class_="away")
    for link in status.links:
        if not link.up:
            reason = f": {link.reason}" if link.reason else ""
            away = f" {link.name} for {duration(link.seconds)}{reason}"
            yield element("span", _pill("bad", f"{link.kind} away"), away, class_="away")


def _summary(view: View) -> Nodes:
    peers = view.status.peers
    behind = [peer for peer in peers if peer.behind_rows]
    worst = max((peer.behind_seconds for peer in peers), default=0.0)
    waiting = [found for found in view.destinations if found.get("queued_edus")]
    queued = sum(int(found.get("queued_edus", 0)) for found in view.destinations)
    rate = view.total_rate[-1] if view.total_rate else 0.0
    not_sent = sum(peer.behind_rows for peer in peers)
    yield _card("Rows a second", number(rate), spark(view.total_rate, "rows a second"))
    yield _card("Peers", number(len(peers)), _note(len(behind), "behind", "all at the head"))
    yield _card("Largest lag", duration(worst), _note(not_sent, "rows not sent", "nothing waits"))
    yield _card(
        "Destinations waiting",
        number(len(waiting)),
        _note(queued, "EDUs queued", "nothing queued"),
    )


def _card(title: str, value: str, below: Tag) -> Tag:
    return element("div", element("h3", title), element("strong", value), below)


def _note(count: int, what: str, otherwise: str) -> Tag:
    return _quiet(otherwise) if count <= 0 else _warning(f"{number(count)} {what}")


def _more(count: int, where: str) -> Nodes:
    if count > 0:
        yield _warning(f"{number(count)} more are {where}")


def _links(links: Sequence[LinkStatus]) -> Nodes:
    """Yield the whole section, with its title: most servers have no links, and no section."""
    if not links:
        return
    yield element("h2", "Links")
    yield _table(
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
        reason = _quiet(f"last lost: {link.reason}")
    return (
        [element("b", link.name), " ", _quiet(link.kind)],
        [_pill("good", "up") if link.up else _pill("bad", "away"), " ", reason],
        duration(link.seconds),
        "" if link.idle_seconds is None else f"{duration(link.idle_seconds)} ago",
        number(link.rows),
        number(link.reconnects),
        _warning(number(link.gaps)) if link.gaps else "0",
    )


def _streams(view: View) -> Nodes:
    written = [stream for stream in view.status.streams if stream.position]
    silent = sorted({stream.stream for stream in view.status.streams} - {s.stream for s in written})
    if written:
        yield _table(
            ("Stream", "Instance", "Position", "Held from", "Rows a second", "Last two minutes"),
            (_stream_row(stream, view) for stream in written[:_MOST_ROWS]),
            numeric=(2, 3, 4),
        )
        yield from _more(len(written) - _MOST_ROWS, _AS_JSON)
    else:
        yield _paragraph("No stream has a row yet.")
    if silent:
        names = (node for name in silent for node in (" ", element("code", name)))
        yield _paragraph("Not written yet:", *names)


def _stream_row(stream: StreamStatus, view: View) -> Sequence[Node]:
    rates = view.rates.get((stream.stream, stream.instance), ())
    return (
        element("code", stream.stream),
        stream.instance,
        number(stream.position),
        number(stream.floor),
        number(rates[-1] if rates else 0.0),
        spark(rates, f"rows a second of {stream.stream}"),
    )


def _peers(view: View) -> Nodes:
    if not view.status.peers:
        yield _paragraph("Nobody is connected to the line protocol.")
        return
    peers = sorted(view.status.peers, key=lambda peer: (-peer.behind_seconds, peer.conn_id))
    yield _table(
        ("Peer", "Dialect", "State", "Rows", "Bytes", "Lag", "Last two minutes", "Paused", "Since"),
        (_peer_row(peer, view.lags.get(peer.conn_id, ())) for peer in peers[:_MOST_ROWS]),
        numeric=(3, 4, 5, 7, 8),
    )
    yield from _more(len(peers) - _MOST_ROWS, _AS_JSON)


def _peer_row(peer: PeerStatus, lags: Sequence[float]) -> Sequence[Node]:
    kind = "good"
    if peer.behind_rows:
        kind = "bad" if peer.behind_seconds >= _LATE_S else "warn"
    where: list[Node] = []
    if peer.behind_stream:
        where = [" ", _quiet(f"in {peer.behind_stream}")]
    name = element("b", peer.name or "no name")
    return (
        [name, " ", _quiet(f"{peer.address} #{peer.conn_id}")],
        peer.dialect,
        [_pill(kind, peer.state), *where],
        number(peer.behind_rows),
        size(peer.behind_bytes),
        duration(peer.behind_seconds),
        spark(lags, f"rows behind of {peer.name or peer.conn_id}", kind),
        duration(peer.paused_seconds),
        duration(peer.connected_seconds),
    )


def _destinations(view: View) -> Nodes:
    if not view.destinations:
        yield _paragraph("This process sends to no other server.")
        return
    ordered = sorted(view.destinations, key=lambda found: -float(found.get("oldest_seconds") or 0))
    yield _table(
        ("Destination", "State", "Queued", "Oldest", "Next try"),
        (_destination_row(found, view.now_ms) for found in ordered[:_MOST_DESTINATIONS]),
        numeric=(2, 3, 4),
    )
    yield from _more(len(ordered) - _MOST_DESTINATIONS, _AS_JSON)


def _destination_row(found: Mapping[str, Any], now_ms: int) -> Sequence[Node]:
    kind = "warn" if found.get("failures") else "good"
    next_try_ms = found.get("next_try_ms")
    left_s = max(0.0, (float(next_try_ms) - now_ms) / 1000) if next_try_ms else 0.0
    why = _quiet(str(found.get("why", "")))
    return (
        element("b", str(found.get("destination", ""))),
        [_pill(kind, str(found.get("state", ""))), " ", why],
        number(float(found.get("queued_edus") or 0)),
        duration(float(found.get("oldest_seconds") or 0)),
        f"in {duration(left_s)}" if left_s else "",
    )


def _closed(closed: Mapping[str, int]) -> Nodes:
    if not closed:
        yield _paragraph("None so far.")
        return
    yield element(
        "ul",
        *(
            element("li", element("b", number(count)), f" {reason.replace('_', ' ')}")
            for reason, count in sorted(closed.items(), key=lambda item: -item[1])
        ),
        class_="chips",
    )


# -- Numbers for people ---------------------------------------------------------------------


def number(value: float) -> str:
    """Return a count with thin spaces between thousands; small fractions keep one place."""
    if value and abs(value) < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{value:,.0f}".replace(",", "\u202f")


def size(count: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f}\u202f{unit}" if unit == "B" else f"{count:.1f}\u202f{unit}"
        count /= 1000
    return f"{count:.1f}\u202fGB"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}\u202fms" if seconds else "0\u202fs"
    if seconds < 60:
        return f"{seconds:.1f}\u202fs" if seconds < 10 else f"{seconds:.0f}\u202fs"
    whole = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= length:
            return f"{whole // length}\u202f{unit} {whole % length // part}\u202f{smaller}"
    return f"{whole // 60}\u202fmin {whole % 60}\u202fs"


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
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
