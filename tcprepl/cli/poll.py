"""``tcprepl poll``: follow streams over HTTP, where the line protocol cannot be reached."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from tcprepl.cli.api import Api, ApiFailed
from tcprepl.cli.arguments import SECONDS, STREAM, url_option, with_token_reader
from tcprepl.cli.formats import Format, output_options, writer_for
from tcprepl.errors import ConfigError, UnknownStream
from tcprepl.protocol.display import displayable

#: How long one request waits at the server.
POLL_S = 25.0


class Poller:
    """Asks again and again, each time for what is beyond the last answer.

    Args:
        api: The server.
        positions: Where to begin, by the name of the stream or table.
        limit: Most rows of a table in one answer.

    Attributes:
        positions: Where to go on.
    """

    def __init__(self, api: Api, positions: dict[str, str], limit: int) -> None:
        self._api = api
        self._limit = limit
        self.positions = positions

    def ask(self, timeout_s: float) -> list[tuple[str, dict[str, Any]]]:
        """Return the tables of one answer, by name, and go on from their positions.

        Where rows are missing, or the server's log was put back to before them, the server says
        so, and this to stderr; there are no tables then, and it goes on from where it can.

        Raises:
            ApiFailed: refused for another reason, or not answered.
        """
        query = {
            **self.positions,
            "timeout": str(int(timeout_s * 1000)),
            "limit": str(self._limit),
        }
        try:
            answer = self._api.get("/_synapse/replication", query)
        except ApiFailed as error:
            self._pass_over(error)
            if error.refusal.get("errcode") != "TCPREPL_FORKED":
                self._api.incarnation = self._api.heard
            return []
        self._api.incarnation = self._api.heard
        for name, table in answer.items():
            if name in self.positions:
                self.positions[name] = str(table["position"])
        return list(answer.items())

    def _pass_over(self, error: ApiFailed) -> None:
        """Go on behind rows that are missing, and say so; raise any other *error*."""
        told = error.refusal
        name, position = told.get("parameter"), str(told.get("position"))
        if error.status != 410 or self.positions.get(str(name)) in (None, position):
            raise error
        self.positions[str(name)] = position
        click.echo(
            f"tcprepl: {displayable(told['error'])}; poll goes on from {told['held']}", err=True
        )


def now_of(api: Api) -> dict[str, str]:
    """Return the present position of every stream and table."""
    table = api.get("/_synapse/replication", {"streams": "-1"})["streams"]
    return {name: str(position) for name, position in table["rows"]}


def lines_of(
    name: str, table: dict[str, Any], *, as_json: bool, row_format: Format | None = None
) -> Iterator[bytes]:
    """Yield the rows of *table* as lines: ``TABLE POSITION [...]``, or objects, or in a form."""
    columns = table["field_names"]
    for position, *cells in table["rows"]:
        if row_format is not None:
            text = json.dumps(cells, separators=(",", ":")).encode()
            yield row_format.line({"s": name, "t": position}, text) + b"\n"
            continue
        if as_json:
            row = dict(zip(columns[1:], cells, strict=True))
            line = json.dumps({"table": name, "position": position, "row": row})
        else:
            line = f"{name} {position} {json.dumps(cells, separators=(',', ':'))}"
        yield line.encode() + b"\n"


@click.command("poll")
@click.argument("stream", nargs=-1, type=STREAM)
@url_option("--url", "The server to ask")
@with_token_reader
@click.option(
    "--since",
    default="now",
    show_default=True,
    metavar="now|start|POSITION",
    help="Where to begin: with what comes now, with everything held, or after POSITION.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="End after this many rows.")
@click.option("--for", "for_s", type=SECONDS, help="End after this many seconds.")
@click.option("--until-head", is_flag=True, help="End when all that is there now was printed.")
@output_options("row", "strkST")
def command(
    stream: tuple[str, ...],
    url: str,
    token: Callable[[], str] | None,
    since: str,
    limit: int,
    count: int | None,
    for_s: float | None,
    until_head: bool,
    as_json: bool,
    row_format: Format | None,
) -> int:
    """Follow each STREAM or table (all of them by default) by long poll.

    Each row is a line: TABLE POSITION [CELL, ...]. A position is a number, or names several
    writers, as in master~12,persister1~40. A server that is away is waited for. Where rows are
    gone or may be missing, a line on stderr says which, and poll goes on behind them; so it does
    where the server was put back to an older copy, from what both have. Ctrl-C ends.

    \b
    Example:
      $ tcprepl poll typing --since start --count 1
      typing 1 ["!room:example.com","[\\"@alice:example.com\\"]"]
    """
    if since not in ("now", "start") and len(stream) != 1:
        raise click.UsageError("--since POSITION needs one STREAM: each has positions of its own")
    retry_s = 60.0 if for_s is None else for_s
    api = Api(url, token, retry_s=0.0 if until_head else retry_s)
    deadline = None if for_s is None else time.monotonic() + for_s
    try:
        present = now_of(api)
        for name in stream:
            if name not in present:
                raise ConfigError(f"{url}: {UnknownStream(name, present)}")
        asked = stream or tuple(present)
        begin = {"now": present, "start": {}}.get(since)
        if since == "now":
            api.incarnation = api.heard
        # -1 would begin behind the last gap, and say nothing of what is before it.
        default = {"now": "-1", "start": "0"}.get(since, since)
        positions = {name: (begin or {}).get(name, default) for name in asked}
        poller = Poller(api, positions, limit)
        left = count
        while deadline is None or time.monotonic() < deadline:
            wait_s = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
            before = dict(poller.positions)
            answer = poller.ask(0.0 if until_head else max(0.0, wait_s))
            for name, table in answer:
                lines = list(lines_of(name, table, as_json=as_json, row_format=row_format))[:left]
                writer_for(row_format)(b"".join(lines))
                if left is not None:
                    left -= len(lines)
            if left == 0 or (until_head and poller.positions == before):
                break
    except KeyboardInterrupt:
        return 0
    finally:
        api.close()
    return 0
