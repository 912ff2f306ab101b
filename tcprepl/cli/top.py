"""``tcprepl top``: who reads, and how far behind, looked at again and again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import click

from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, to_options
from tcprepl.errors import TcpreplError
from tcprepl.protocol.display import displayable

#: Clear the screen and go to its top.
CLEAR = "\x1b[H\x1b[2J"

#: Column -> what stands in it.
COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "peer": lambda peer: peer["name"] or "-",
    "address": lambda peer: peer["address"],
    "dialect": lambda peer: peer["dialect"],
    "state": lambda peer: peer["state"],
    "rows": lambda peer: peer["behind_rows"],
    "bytes": lambda peer: peer["behind_bytes"],
    "behind": lambda peer: round(peer["behind_seconds"], 1),
    "paused": lambda peer: round(peer["paused_seconds"], 1),
    "sent": lambda peer: peer["sent_bytes"],
}

#: What is shown of a process of the homeserver, on a bus.
PROCESS = ("rows_in", "rows_out", "reconnects", "replays")


@click.command("top")
@to_options
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option(
    "--sort",
    type=click.Choice(list(COLUMNS)),
    default="behind",
    show_default=True,
    help="The column to sort by; numbers from the largest.",
)
@click.option(
    "--interval", type=SECONDS, default=1.0, show_default=True, help="Seconds between pictures."
)
def command(url: str, token: str | None, once: bool, sort: str, interval: float) -> None:
    """Show the streams and the peers of a server, and who is behind. Ctrl-C ends.

    \b
    Example:
      $ tcprepl top --once --sort rows
      example.com master  up 12 s  1 peer
      PEER          ADDRESS          DIALECT  STATE  ROWS  BYTES  BEHIND  PAUSED  SENT
      tcprepl-tail  127.0.0.1:51016  tcprepl  head   0     0      0.0     0.0     1042
    """
    api = Api(url, token)
    pause = threading.Event()
    while True:
        try:
            text = picture(api.get("/_tcprepl/v1/status"), sort)
        except TcpreplError as error:
            if once:
                raise
            text = f"{error}\n"
        sys.stdout.write(text if once else CLEAR + text)
        sys.stdout.flush()
        if once:
            return
        try:
            pause.wait(interval)
        except KeyboardInterrupt:
            return


def picture(status: dict[str, Any], sort: str) -> str:
    """Return a status as lines of text."""
    peers = status["peers"]
    count = "1 peer" if len(peers) == 1 else f"{len(peers)} peers"
    who = f"{status['server_name']} {status['instance']}"
    lines = [f"{who}  up {status['uptime_seconds']:.0f} s  {count}"]
    key = COLUMNS[sort]
    descending = bool(peers) and not isinstance(key(peers[0]), str)
    ordered = sorted(peers, key=key, reverse=descending)
    lines += table(
        [name.upper() for name in COLUMNS],
        [[displayable(str(cell(peer))) for cell in COLUMNS.values()] for peer in ordered],
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
