"""The status page: HTML from a `View`, readable without scripts, on a phone, in the dark.

No external assets. The content security policy allows the one script and the one style sheet
of this page and nothing else; every value from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from tcprepl import __version__
from tcprepl.ids import InstanceName, StreamName
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus, StreamStatus

#: Samples that a plot has room for: one a second, the newest at the right.
HISTORY = 120
#: Size of a sparkline in its own units.
_WIDTH, _HEIGHT = 120, 28
#: Lag from which a peer is shown as late, not just busy.
_LATE_S = 5.0
#: Destinations that the page lists; there may be thousands.
_MOST_DESTINATIONS = 100


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
    return {
        "state": _state(view),
        "summary": _summary(view),
        "links": _links(view.status.links),
        "streams": _streams(view),
        "peers": _peers(view),
        "destinations": _destinations(view),
        "closed": _closed(view.status.closed),
    }


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
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(server_name)} · tcprepl</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style>"
        '<noscript><meta http-equiv="refresh" content="5"></noscript></head><body>'
        f'<header><div><h1>{escape(server_name)}</h1><p id="state">{content["state"]}</p></div>'
        '<p id="live" class="quiet" role="status">still picture</p></header><main>'
        f'<div id="summary" class="cards">{content["summary"]}</div>{sections}</main>'
        '<footer><a href="/_tcprepl/v1/status">status as JSON</a>'
        '<a href="/metrics">metrics</a><a href="/openapi.json">OpenAPI</a>'
        f"<span>tcprepl {escape(__version__)}</span></footer>"
        f"<script>{_SCRIPT}</script></body></html>"
    ).encode()


# -- Parts ----------------------------------------------------------------------------------


def _state(view: View) -> str:
    status = view.status
    if view.reason is None:
        pill = '<span class="pill good">ready</span>'
    else:
        pill = f'<span class="pill bad">not ready</span> {escape(view.reason)}'
    away = "".join(
        f'<span class="away"><span class="pill bad">{escape(link.kind)} away</span> '
        f"{_whereabouts(link)}</span>"
        for link in status.links
        if not link.up
    )
    return (
        f"{pill} instance <b>{escape(status.instance)}</b>, up "
        f"{duration(status.uptime_seconds)}{away}"
    )


def _whereabouts(link: LinkStatus) -> str:
    reason = f": {escape(link.reason)}" if link.reason else ""
    return f"{escape(link.name)} for {duration(link.seconds)}{reason}"


def _summary(view: View) -> str:
    peers = view.status.peers
    behind = [peer for peer in peers if peer.behind_rows]
    worst = max((peer.behind_seconds for peer in peers), default=0.0)
    waiting = [found for found in view.destinations if found.get("queued_edus")]
    queued = sum(int(found.get("queued_edus", 0)) for found in view.destinations)
    rate = view.total_rate[-1] if view.total_rate else 0.0
    return "".join(
        (
            _card("Rows a second", number(rate), spark(view.total_rate, "rows a second")),
            _card("Peers", number(len(peers)), _note(len(behind), "behind", "all at the head")),
            _card(
                "Largest lag",
                duration(worst),
                _note(sum(peer.behind_rows for peer in peers), "rows not sent", "nothing waits"),
            ),
            _card(
                "Destinations waiting",
                number(len(waiting)),
                _note(queued, "EDUs queued", "nothing queued"),
            ),
        )
    )


def _card(title: str, value: str, below: str) -> str:
    return f"<div><h3>{title}</h3><strong>{value}</strong>{below}</div>"


def _note(count: int, what: str, otherwise: str) -> str:
    if count <= 0:
        return f'<span class="quiet">{otherwise}</span>'
    return f'<span class="warn">{number(count)} {what}</span>'


def _links(links: Sequence[LinkStatus]) -> str:
    """Return the whole section, with its title: most servers have no links, and no section."""
    if not links:
        return ""
    table = _table(
        ("Link", "State", "For", "Last row", "Rows", "Reconnects", "Gaps"),
        (_link_row(link) for link in links),
        numeric=(2, 3, 4, 5, 6),
    )
    return f"<h2>Links</h2>{table}{''.join(_newest_gaps(link) for link in links)}"


def _link_row(link: LinkStatus) -> Sequence[str]:
    kind, state = ("good", "up") if link.up else ("bad", "away")
    reason = ""
    if link.reason:
        reason = (
            f'<span class="quiet">last lost: {escape(link.reason)}</span>'
            if link.up
            else escape(link.reason)
        )
    return (
        f'<b>{escape(link.name)}</b> <span class="quiet">{escape(link.kind)}</span>',
        f'<span class="pill {kind}">{state}</span> {reason}',
        duration(link.seconds),
        "" if link.idle_seconds is None else f"{duration(link.idle_seconds)} ago",
        number(link.rows),
        number(link.reconnects),
        f'<span class="warn">{number(link.gaps)}</span>' if link.gaps else "0",
    )


def _newest_gaps(link: LinkStatus) -> str:
    if not link.newest_gaps:
        return ""
    items = "".join(f"<li>{escape(gap)}</li>" for gap in reversed(link.newest_gaps))
    older = _note(link.gaps - len(link.newest_gaps), "more are not listed", "")
    return f'<h3>Newest gaps of {escape(link.name)}</h3><ul class="gaps">{items}</ul>{older}'


def _streams(view: View) -> str:
    written = [stream for stream in view.status.streams if stream.position]
    silent = sorted({stream.stream for stream in view.status.streams} - {s.stream for s in written})
    table = _table(
        ("Stream", "Instance", "Position", "Held from", "Rows a second", "Last two minutes"),
        (_stream_row(stream, view) for stream in written),
        numeric=(2, 3, 4),
    )
    if not written:
        table = '<p class="quiet">No stream has a row yet.</p>'
    if silent:
        names = " ".join(f"<code>{escape(name)}</code>" for name in silent)
        table += f'<p class="quiet">Not written yet: {names}</p>'
    return table


def _stream_row(stream: StreamStatus, view: View) -> Sequence[str]:
    rates = view.rates.get((stream.stream, stream.instance), ())
    return (
        f"<code>{escape(stream.stream)}</code>",
        escape(stream.instance),
        number(stream.position),
        number(stream.floor),
        number(rates[-1] if rates else 0.0),
        spark(rates, f"rows a second of {stream.stream}"),
    )


def _peers(view: View) -> str:
    if not view.status.peers:
        return '<p class="quiet">Nobody is connected to the line protocol.</p>'
    peers = sorted(view.status.peers, key=lambda peer: (-peer.behind_seconds, peer.conn_id))
    return _table(
        ("Peer", "Dialect", "State", "Rows", "Bytes", "Lag", "Last two minutes", "Paused", "Since"),
        (_peer_row(peer, view.lags.get(peer.conn_id, ())) for peer in peers),
        numeric=(3, 4, 5, 7, 8),
    )


def _peer_row(peer: PeerStatus, lags: Sequence[float]) -> Sequence[str]:
    kind = "good"
    if peer.behind_rows:
        kind = "bad" if peer.behind_seconds >= _LATE_S else "warn"
    where = (
        f' <span class="quiet">in {escape(peer.behind_stream)}</span>'
        if (peer.behind_stream)
        else ""
    )
    return (
        f"<b>{escape(peer.name) or 'no name'}</b> "
        f'<span class="quiet">{escape(peer.address)} #{peer.conn_id}</span>',
        escape(peer.dialect),
        f'<span class="pill {kind}">{escape(peer.state)}</span>{where}',
        number(peer.behind_rows),
        size(peer.behind_bytes),
        duration(peer.behind_seconds),
        spark(lags, f"rows behind of {peer.name or peer.conn_id}", kind),
        duration(peer.paused_seconds),
        duration(peer.connected_seconds),
    )


def _destinations(view: View) -> str:
    if not view.destinations:
        return '<p class="quiet">This process sends to no other server.</p>'
    ordered = sorted(view.destinations, key=lambda found: -float(found.get("oldest_seconds") or 0))
    return _table(
        ("Destination", "State", "Queued", "Oldest", "Next try"),
        (_destination_row(found, view.now_ms) for found in ordered[:_MOST_DESTINATIONS]),
        numeric=(2, 3, 4),
    ) + _note(len(ordered) - _MOST_DESTINATIONS, "more are in the status as JSON", "")


def _destination_row(found: Mapping[str, Any], now_ms: int) -> Sequence[str]:
    queued = float(found.get("queued_edus") or 0)
    kind = "warn" if found.get("failures") else "good"
    next_try_ms = found.get("next_try_ms")
    left_s = max(0.0, (float(next_try_ms) - now_ms) / 1000) if next_try_ms else 0.0
    return (
        f"<b>{escape(str(found.get('destination', '')))}</b>",
        f'<span class="pill {kind}">{escape(str(found.get("state", "")))}</span> '
        f'<span class="quiet">{escape(str(found.get("why", "")))}</span>',
        number(queued),
        duration(float(found.get("oldest_seconds") or 0)),
        f"in {duration(left_s)}" if left_s else "",
    )


def _closed(closed: Mapping[str, int]) -> str:
    if not closed:
        return '<p class="quiet">None so far.</p>'
    items = "".join(
        f"<li><b>{number(count)}</b> {escape(reason.replace('_', ' '))}</li>"
        for reason, count in sorted(closed.items(), key=lambda item: -item[1])
    )
    return f'<ul class="chips">{items}</ul>'


def _table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()
) -> str:
    def kind(index: int) -> str:
        return ' class="n"' if index in numeric else ""

    head = "".join(f"<th{kind(index)}>{title}</th>" for index, title in enumerate(titles))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{kind(index)} data-label="{titles[index]}">{cell}</td>'
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def spark(values: Sequence[float], label: str, kind: str = "") -> str:
    """Return a line plot of *values*, the newest at the right edge, as inline SVG."""
    top = max((*values, 1.0))
    step = _WIDTH / (HISTORY - 1)
    left = _WIDTH - step * (len(values) - 1)
    line = " ".join(
        f"{left + index * step:.1f},{_HEIGHT - 1 - (_HEIGHT - 3) * value / top:.1f}"
        for index, value in enumerate(values)
    )
    drawing = ""
    if len(values) > 1:
        drawing = (
            f'<polygon points="{left:.1f},{_HEIGHT} {line} {_WIDTH},{_HEIGHT}"/>'
            f'<polyline points="{line}"/>'
        )
    return (
        f'<svg class="spark {kind}" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(label)}, at most {number(max(values, default=0.0))}">'
        f"{drawing}</svg>"
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
