"""What ``tcprepl top`` shows at a terminal, and what its keys do; no terminal is needed here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from tcprepl.cli.fitting import columns_in, curve_in, facts_in, late_in, thin, wrapped
from tcprepl.cli.screen import Line, Span, cells, cut, shortened
from tcprepl.protocol.display import counted, displayable
from tcprepl.web.amounts import duration, number, size

Peer = dict[str, Any]

#: Pictures of which a small curve is made.
CURVE_LOOKS: Final = 60
#: From which lag on somebody is late, and badly so.
LATE_S, BAD_S = 1.0, 60.0
#: Columns that a narrow terminal does without, this one first.
SPARED: Final = (
    "PAUSED", "HELD FROM", "DIALECT", "ADDRESS", "INSTANCE", "BYTES/S", "SENT/S", "BYTES",
    "STATE", "ROWS/S", "POSITION", "ROWS",
)  # fmt: skip

HELP: Final = (
    ("↑ ↓ j k PgUp PgDn Home End", "choose a peer or a stream"),
    ("Enter →", "look closer at it"),
    ("Esc ←", "back"),
    ("Tab", "from the peers to the streams, and back"),
    ("s  S", "sort by the next column, by the one before"),
    ("r", "the other way round"),
    ("/", "show only what has a text in it; Enter keeps it, Esc drops it"),
    ("p  space", "pause: the picture stays as it is"),
    ("?  h", "this page"),
    ("q  Ctrl-C", "end"),
)


def seconds_of(name: str) -> Callable[[Peer], float]:
    """Return what tells one time of a peer, in seconds."""
    return lambda peer: round(peer[name], 1)


#: Column of the peers -> what it is sorted by.
COLUMNS: dict[str, Callable[[Peer], Any]] = {
    "peer": lambda peer: peer["name"] or "-",
    "address": lambda peer: peer["address"],
    "dialect": lambda peer: peer["dialect"],
    "state": lambda peer: peer["state"],
    "behind": lambda peer: peer["behind_seconds"],
    "rows": lambda peer: peer["behind_rows"],
    "bytes": lambda peer: peer["behind_bytes"],
    "sent": lambda peer: peer["sent_bytes"],
    "paused": lambda peer: peer["paused_seconds"],
}


class Top:
    """Where a person is, and what there is to be seen there.

    Args:
        sort: The column that the peers are sorted by.
        wanted: Text that has to be in the name or address of what is shown.

    Attributes:
        over: Whether the end was asked for.
    """

    def __init__(self, sort: str = "behind", wanted: str = "") -> None:
        self.over = False
        self._sort = sort
        self._reverse = False
        self._wanted = wanted
        self._typing: str | None = None
        self._paused = False
        self._helping = False
        self._on_streams = False
        self._chosen = {"peers": 0, "streams": 0}
        #: What is looked at closely: the number of a peer, or the name of a stream.
        self._closer: int | str | None = None
        self._page = 10
        self._status: dict[str, Any] | None = None
        self._trouble = ""
        self._rates: dict[int, float] = {}
        self._stream_rates: dict[tuple[str, str], float] = {}
        self._curves: dict[int | str, deque[float]] = {}

    # -- what is seen ------------------------------------------------------------------

    def see(self, found: dict[str, Any] | str) -> None:
        """Take a status, or the reason why there is none; while it pauses, nothing changes."""
        if self._paused:
            return
        if isinstance(found, str):
            self._trouble = found
            return
        before, self._status, self._trouble = self._status, found, ""
        elapsed = 0.0 if before is None else found["uptime_seconds"] - before["uptime_seconds"]
        self._rates, self._stream_rates = {}, {}
        if before is not None and elapsed > 0:
            sent = {peer["conn_id"]: peer["sent_bytes"] for peer in before["peers"]}
            for peer in found["peers"]:
                more = peer["sent_bytes"] - sent.get(peer["conn_id"], peer["sent_bytes"])
                self._rates[peer["conn_id"]] = max(0.0, more / elapsed)
            held = {(s["stream"], s["instance"]): s["bytes"] for s in before["streams"]}
            for stream in found["streams"]:
                pair = (stream["stream"], stream["instance"])
                more = stream["bytes"] - held.get(pair, stream["bytes"])
                self._stream_rates[pair] = max(0.0, more / elapsed)
        self._draw_curves(found)

    def _draw_curves(self, status: dict[str, Any]) -> None:
        now: dict[int | str, float] = {p["conn_id"]: p["behind_seconds"] for p in status["peers"]}
        for stream in status["streams"]:
            rate = stream.get("rows_per_second", 0.0)
            now[stream["stream"]] = now.get(stream["stream"], 0.0) + rate
        self._curves = {key: self._curves.get(key, deque(maxlen=CURVE_LOOKS)) for key in now}
        for key, value in now.items():
            self._curves[key].append(value)

    def peers(self) -> list[Peer]:
        """Return the peers that are shown, in order: numbers from the largest."""
        if self._status is None:
            return []
        found = [
            peer for peer in self._status["peers"] if self._shown(peer["name"], peer["address"])
        ]
        key = COLUMNS[self._sort]
        numbers = bool(found) and not isinstance(key(found[0]), str)
        return sorted(found, key=key, reverse=numbers is not self._reverse)

    def streams(self) -> list[dict[str, Any]]:
        """Return the streams that are shown: those that have rows."""
        if self._status is None:
            return []
        return [
            stream
            for stream in self._status["streams"]
            if stream["position"] and self._shown(stream["stream"], stream["instance"])
        ]

    def _shown(self, *names: str) -> bool:
        wanted = self._wanted.casefold()
        return any(wanted in name.casefold() for name in names)

    # -- keys --------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key asks for."""
        if self._typing is not None:
            self._type(key)
        elif key == "q":
            self.over = True
        elif self._helping:
            self._helping = False
        elif key in ("?", "h"):
            self._helping = True
        elif key in ("p", " "):
            self._paused = not self._paused
        elif key in ("escape", "left", "backspace"):
            self._closer = None
        elif self._closer is None:
            self._press_in_list(key)

    def _press_in_list(self, key: str) -> None:
        which = "streams" if self._on_streams else "peers"
        moves = {
            "up": -1,
            "k": -1,
            "down": 1,
            "j": 1,
            "page up": -self._page,
            "page down": self._page,
            "home": -(10**9),
            "end": 10**9,
        }
        if key in moves:
            self._chosen[which] = self._within(which, self._chosen[which] + moves[key])
        elif key in ("enter", "right"):
            self._look_closer(which)
        elif key in ("tab", "back tab"):
            self._on_streams = not self._on_streams
        elif key in ("s", "S"):
            names = list(COLUMNS)
            step = 1 if key == "s" else -1
            self._sort = names[(names.index(self._sort) + step) % len(names)]
        elif key == "r":
            self._reverse = not self._reverse
        elif key == "/":
            self._typing = self._wanted

    def _within(self, which: str, at: int) -> int:
        count = len(self.streams() if which == "streams" else self.peers())
        return max(0, min(at, count - 1))

    def _look_closer(self, which: str) -> None:
        found: Sequence[dict[str, Any]] = self.streams() if which == "streams" else self.peers()
        if found:
            one = found[self._within(which, self._chosen[which])]
            self._closer = one["stream"] if which == "streams" else one["conn_id"]

    def _type(self, key: str) -> None:
        assert self._typing is not None
        if key == "enter":
            self._wanted, self._typing = self._typing, None
        elif key == "escape":
            self._wanted, self._typing = "", None
        elif key == "backspace":
            self._typing = self._wanted = self._typing[:-1]
        elif len(key) == 1 and key.isprintable():
            self._typing = self._wanted = self._typing + key

    # -- pictures ----------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Line]:
        """Return the picture for a terminal of so many columns and rows."""
        body = max(0, height - 2)
        if self._helping:
            shown = _help()
        elif self._status is None:
            shown = [[Span((self._trouble and "no answer yet") or "looking ...", "dim")]]
        elif isinstance(self._closer, int):
            shown = self._peer_lines(self._closer, width)
        elif self._closer is not None:
            shown = self._stream_lines(self._closer, width)
        else:
            shown = self._list_lines(width, body)
        filler: list[Line] = [[]] * max(0, body - len(shown))
        return [self._head(width), *shown[:body], *filler, self._foot(width)][:height]

    def _head(self, width: int) -> Line:
        """Return who it is and how it goes; uptime and rates give way to what is wrong."""
        if self._trouble:
            return [Span(displayable(self._trouble), "bad")]
        status = self._status
        if status is None:
            return [Span("tcprepl", "head")]
        lag = _lag(status["peers"], width)
        wrong = _wrong(status)
        name = displayable(f"{status['server_name']} {status['instance']}")
        up = f"up {thin(duration(status['uptime_seconds']))}"
        count = counted(len(status["peers"]), "peer")
        rate = f"{thin(number(status.get('rows_per_second', 0.0)))} rows/s"
        facts = [up, count, rate]
        for spared in (up, rate, count):
            between = "  ".join(["", *facts, ""])
            if cells(name + between) + sum(cells(text) for text, _ in (lag, *wrong)) > width:
                facts.remove(spared)
        name = shortened(name, width - cells(lag.text) - 2)
        begin = [Span(name, "head"), Span("  ".join(["", *facts, ""]))] if name else []
        return [*begin, lag, *wrong]

    def _foot(self, width: int) -> Line:
        if self._typing is not None:
            return [
                Span(
                    cut(f" only with: {self._typing}_   Enter keeps it, Esc drops it", width), "bar"
                )
            ]
        words = [
            "q end",
            "? help",
            f"s sort: {self._sort}{' (reversed)' if self._reverse else ''}",
            f"/ only: {self._wanted}" if self._wanted else "/ filter",
            "p go on (PAUSED)" if self._paused else "p pause",
        ]
        if self._closer is not None:
            words.insert(2, "Esc back")
        else:
            words += ["Tab peers" if self._on_streams else "Tab streams", "Enter closer"]
        return [Span(cut(f" {'   '.join(words)}", width), "bar")]

    def _list_lines(self, width: int, height: int) -> list[Line]:
        peers, streams = self.peers(), self.streams()
        for which, found in (("peers", peers), ("streams", streams)):
            self._chosen[which] = max(0, min(self._chosen[which], len(found) - 1))
        # Each list has its head; what one does not need is the other's.
        room = max(2, height - 3)
        for_streams = min(len(streams), max(room // 3, room - len(peers)))
        for_peers = max(1, room - for_streams)
        self._page = max(1, (for_streams if self._on_streams else for_peers) - 1)
        lines = self._table(
            "peers",
            ["PEER", "ADDRESS", "DIALECT", "STATE", "BEHIND", "ROWS", "BYTES", "SENT/S", "PAUSED"],
            [self._peer_cells(peer) for peer in peers],
            [_style(peer["behind_seconds"], peer["state"]) for peer in peers],
            (width, for_peers),
        )
        lines.append([])
        lines += self._table(
            "streams",
            ["STREAM", "INSTANCE", "POSITION", "HELD FROM", "ROWS/S", "BYTES/S"],
            [self._stream_cells(stream) for stream in streams],
            [""] * len(streams),
            (width, for_streams),
        )
        return lines

    def _peer_cells(self, peer: Peer) -> list[str]:
        return [
            displayable(peer["name"] or "-"),
            displayable(peer["address"]),
            peer["dialect"],
            peer["state"],
            _seconds(peer["behind_seconds"]),
            number(peer["behind_rows"]),
            size(peer["behind_bytes"]),
            size(self._rates.get(peer["conn_id"], 0.0)),
            _seconds(peer["paused_seconds"]),
        ]

    def _stream_cells(self, stream: dict[str, Any]) -> list[str]:
        return [
            displayable(stream["stream"]),
            displayable(stream["instance"]),
            number(stream["position"]),
            number(stream["floor"]),
            number(stream.get("rows_per_second", 0.0)),
            size(self._stream_rates.get((stream["stream"], stream["instance"]), 0.0)),
        ]

    def _table(
        self,
        which: str,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Sequence[str],
        room: tuple[int, int],
    ) -> list[Line]:
        """Return the part of a table that has the chosen row in it, and columns that fit."""
        width, height = room
        active = which == ("streams" if self._on_streams else "peers")
        chosen = self._chosen[which]
        first = max(0, min(chosen - height // 2, len(rows) - height))
        shown = [[thin(cell) for cell in row] for row in rows[first : first + height]]
        widths = [max(map(cells, column)) for column in zip(head, *shown, strict=True)]
        columns = columns_in(width, head, widths, SPARED)
        title, *texts = (
            "  ".join(cut(shortened(row[at], room), room) for at, room in columns.items())
            for row in (head, *shown)
        )
        more = f"  {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
        lines: list[Line] = [
            [Span(title, "head"), Span(more if cells(title + more) <= width else "", "dim")]
        ]
        for at, (text, style) in enumerate(zip(texts, styles[first:], strict=False), first):
            lines.append([Span(text, "selected" if active and at == chosen else style)])
        return lines

    def _peer_lines(self, conn_id: int, width: int) -> list[Line]:
        assert self._status is not None
        found = next((p for p in self._status["peers"] if p["conn_id"] == conn_id), None)
        if found is None:
            ended = wrapped(f"connection {conn_id} has ended", width)
            return [[Span(line, "late")] for line in ended]
        facts = [
            ("peer", found["name"] or "(no name)"),
            ("connection", f"{conn_id}, from {found['address']}, for {_age(found)}"),
            ("dialect", found["dialect"]),
            ("state", _why(found)),
            ("behind", f"{_rows(found['behind_rows'])}, {size(found['behind_bytes'])}"),
            ("sent", f"{size(found['sent_bytes'])}, {size(self._rates.get(conn_id, 0.0))}/s"),
            ("waits here", f"{size(found.get('buffered_bytes', 0))} for its socket"),
            ("paused", f"{_seconds(found['paused_seconds'])} in all"),
            ("gaps", f"{found.get('gaps', 0)} told"),
        ]
        if found.get("acked") is not None:
            facts.append(("acknowledged", f"federation up to {found['acked']}"))
        did = found.get("process")
        if did:
            text = f"wrote {_rows(did['rows_in'])}, got {number(did['rows_out'])}"
            facts.append(("process", f"{text}, {counted(did['reconnects'], 'reconnect')}"))
        curve = curve_in(width, "lag in seconds", self._curves.get(conn_id, ()))
        return [*_facts(facts, width), [], *curve]

    def _stream_lines(self, name: str, width: int) -> list[Line]:
        assert self._status is not None
        lines: list[Line] = [[Span(shortened(displayable(name), width), "head")]]
        behind = [p for p in self._status["peers"] if p.get("behind_stream") == name]
        if behind:
            late = [
                (displayable(p["name"] or p["address"]), _seconds(p["behind_seconds"]))
                for p in sorted(behind, key=COLUMNS["behind"], reverse=True)[:10]
            ]
            lines += [[], *late_in(width, late)]
        for stream in self._status["streams"]:
            if stream["stream"] == name:
                lines += [[], *_facts(self._of_writer(stream), width)]
        return [*lines, [], *curve_in(width, "rows a second", self._curves.get(name, ()))]

    def _of_writer(self, stream: dict[str, Any]) -> list[tuple[str, str]]:
        rate = size(self._stream_rates.get((stream["stream"], stream["instance"]), 0.0))
        return [
            ("writer", stream["instance"]),
            ("position", number(stream["position"])),
            ("held from", number(stream["floor"])),
            ("since start", f"{_rows(stream['rows'])}, {size(stream['bytes'])}"),
            ("now", f"{number(stream.get('rows_per_second', 0.0))} rows/s, {rate}/s"),
        ]


def _facts(facts: Iterable[tuple[str, str]], width: int) -> list[Line]:
    return facts_in(width, [(name, displayable(text)) for name, text in facts])


def _help() -> list[Line]:
    width = max(len(keys) for keys, _ in HELP)
    return [[Span(f"{keys:{width}}  ", "head"), Span(text)] for keys, text in HELP]


def _style(seconds: float, state: str = "") -> str:
    if state == "closing":
        return "dim"
    return "bad" if seconds >= BAD_S else "late" if seconds >= LATE_S else ""


def _lag(peers: Sequence[Peer], width: int) -> Span:
    """Return who is how late, in so many cells: names are shortened, and left out, figures not."""
    late = [peer for peer in peers if peer["behind_seconds"] >= LATE_S]
    if not late:
        return Span("nobody is late", "good")
    worst = max(late, key=lambda peer: peer["behind_seconds"])
    count, seconds = f"{len(late)} late", _seconds(worst["behind_seconds"])
    room = width - cells(f"{count},  by {seconds}")
    who = shortened(displayable(worst["name"] or worst["address"]), room)
    text = f"{count}, {who} by {seconds}" if who else f"{count} by {seconds}"
    return Span(text if cells(text) <= width else seconds, _style(worst["behind_seconds"]))


def _wrong(status: dict[str, Any]) -> list[Span]:
    """Return what is wrong with a server itself."""
    away = [link for link in status.get("links", ()) if not link["up"]]
    found = [displayable(f"  {link['kind']} {link['name']} is away") for link in away]
    if status.get("damage"):
        found.append("  damaged: `tcprepl log verify` on a copy says what")
    if not status.get("ready", True):
        found.append(f"  not ready: {displayable(str(status.get('reason')))}")
    return [Span(text, "bad") for text in found]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _age(peer: Peer) -> str:
    return duration(peer.get("connected_seconds", 0.0))


def _rows(count: int) -> str:
    return counted(count, "row", number(count))


def _why(peer: Peer) -> str:
    """Return the state of a peer in words, and why it is behind."""
    if peer["state"] == "head":
        return "has everything"
    if peer["state"] != "behind":
        return str(peer["state"])
    text = f"behind by {_seconds(peer['behind_seconds'])} in {peer.get('behind_stream')}"
    if peer.get("buffered_bytes"):
        return f"{text}: its socket takes no more"
    return f"{text}: it is being served from the log"
