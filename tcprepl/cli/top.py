"""``tcprepl top``: who reads, and how far behind; as a picture, as JSON, or to walk about in."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import click

from tcprepl.cli import screen
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, url_option, with_token_reader
from tcprepl.cli.topping import COLUMNS, Top, seconds_of
from tcprepl.errors import TcpreplError
from tcprepl.protocol.display import counted, displayable

#: Column -> what stands in it.
CELLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "peer": lambda peer: peer["name"] or "-",
    "address": lambda peer: peer["address"],
    "dialect": lambda peer: peer["dialect"],
    "state": lambda peer: peer["state"],
    "rows": lambda peer: peer["behind_rows"],
    "bytes": lambda peer: peer["behind_bytes"],
    "behind": seconds_of("behind_seconds"),
    "paused": seconds_of("paused_seconds"),
    "sent": lambda peer: peer["sent_bytes"],
}

#: What is shown of a process of the homeserver, on a bus.
PROCESS = ("rows_in", "rows_out", "reconnects", "replays")


@click.command("top")
@url_option("--to", "The server to ask")
@with_token_reader
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON, a line each time.")
@click.option(
    "--sort",
    type=click.Choice(list(COLUMNS)),
    default="behind",
    show_default=True,
    help="The column to sort by; numbers from the largest.",
)
@click.option("--filter", "wanted", default="", help="Only what has this in its name or address.")
@click.option(
    "--interval", type=SECONDS, default=1.0, show_default=True, help="Seconds between pictures."
)
def command(
    url: str,
    token: Callable[[], str] | None,
    once: bool,
    as_json: bool,
    sort: str,
    wanted: str,
    interval: float,
) -> None:
    """Show the streams and the peers of a server, how fast they go, and who is behind.

    At a terminal it is a program: arrow keys choose, Enter looks closer, s sorts, / filters, p
    pauses, ? tells the rest, q ends. Elsewhere it prints a picture each time.

    \b
    Example:
      $ tcprepl top --once --sort rows
      example.com master  up 12 s  1 peer
      PEER          ADDRESS          DIALECT  STATE  ROWS  BYTES  BEHIND  PAUSED  SENT
      tcprepl-tail  127.0.0.1:51016  tcprepl  head   0     0      0.0     0.0     1042
    """
    api = Api(url, token)

    def look() -> dict[str, Any]:
        status: dict[str, Any] = api.get("/_tcprepl/v1/status")
        return status

    if screen.is_interactive() and not once and not as_json:
        walk(look, Top(sort, wanted), interval)
        return
    pause = threading.Event()
    first = True
    while True:
        try:
            status = look()
            text = f"{json.dumps(status)}\n" if as_json else picture(status, sort, wanted)
        except TcpreplError as error:
            if once or as_json:
                raise
            text = f"{displayable(str(error))}\n"
        sys.stdout.write(text if first or as_json else f"\n{text}")
        sys.stdout.flush()
        first = False
        if once:
            return
        try:
            pause.wait(interval)
        except KeyboardInterrupt:
            return


class Looking:
    """Looks again and again, in a thread: a server that hangs does not hold up the keys.

    Args:
        look: Returns a status.
        interval_s: Time between two looks.
        told: Called in the thread when there is something new.
    """

    def __init__(
        self, look: Callable[[], dict[str, Any]], interval_s: float, told: Callable[[], object]
    ) -> None:
        self._look = look
        self._interval_s = interval_s
        self._told = told
        self._over = threading.Event()
        self._found: deque[dict[str, Any] | str] = deque()
        self._thread = threading.Thread(target=self._run, daemon=True, name="looking")

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # one that waits for a server is not waited for

    def take(self) -> list[dict[str, Any] | str]:
        """Return what was found since the last time: statuses, and why there was none."""
        return [self._found.popleft() for _ in range(len(self._found))]

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._found.append(self._look())
            except TcpreplError as error:
                self._found.append(str(error))
            self._told()
            self._over.wait(self._interval_s)


def walk(look: Callable[[], dict[str, Any]], top: Top, interval_s: float) -> None:
    """Let a person walk about, until the end."""
    try:
        with screen.Screen() as terminal, Looking(look, interval_s, terminal.wake) as looking:
            while not top.over:
                for found in looking.take():
                    top.see(found)
                terminal.draw(top.lines(*terminal.size))
                for key in terminal.keys(60.0):
                    top.press(key)
    except (KeyboardInterrupt, EOFError):
        return


def picture(status: dict[str, Any], sort: str, wanted: str = "") -> str:
    """Return a status as lines of text."""
    top = Top(sort if sort in CELLS else "behind", wanted)
    top.see(status)
    peers = status["peers"]
    count = counted(len(peers), "peer")
    who = f"{status['server_name']} {status['instance']}"
    lines = [displayable(f"{who}  up {status['uptime_seconds']:.0f} s  {count}")]
    lines += table(
        [name.upper() for name in CELLS],
        [[displayable(str(cell(peer))) for cell in CELLS.values()] for peer in top.peers()],
    )
    known = {peer["name"] or peer["address"]: peer.get("process") for peer in peers}
    processes = {name: did for name, did in known.items() if did}
    if processes:
        lines.append("")
        lines += table(
            ["PROCESS", "ROWS IN", "ROWS OUT", "RECONNECTS", "REPLAYS", "CACHE HITS"],
            [
                [displayable(name), *(str(did[key]) for key in PROCESS), cache_of(did)]
                for name, did in sorted(processes.items())
            ],
        )
    moving = [stream for stream in status["streams"] if stream["position"]]
    if moving:
        lines.append("")
        lines += table(
            ["STREAM", "INSTANCE", "POSITION", "HELD FROM", "ROWS"],
            [
                [
                    displayable(str(s[name]))
                    for name in ("stream", "instance", "position", "floor", "rows")
                ]
                for s in moving
            ],
        )
    if status.get("database"):
        lines += ["", *database_of(status["database"])]
    return "\n".join(lines) + "\n"


def database_of(database: dict[str, Any]) -> list[str]:
    """Return how it goes with the database of the log, and who holds which instance of it."""
    away = database["away_seconds"]
    state = "there" if away is None else f"away for {away:.0f} s: {database['reason']}"
    return [
        displayable(f"{database['where']}  {state}"),
        *table(
            ["INSTANCE", "EPOCH", "HOLDER", "HELD", "LEASE ENDS IN"],
            [
                [
                    displayable(one["instance"]),
                    str(one["epoch"]),
                    displayable(one["holder"]),
                    f"{one['held_seconds']:.0f} s",
                    f"{one['left_seconds']:.1f} s" if one["left_seconds"] > 0 else "over",
                ]
                for one in database["holders"]
            ],
        ),
    ]


def cache_of(did: dict[str, Any]) -> str:
    """Return how often the cache had what a process asked for."""
    return f"{did['cache_hits']} of {did['cache_hits'] + did['cache_misses']}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows under a head, in columns as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
