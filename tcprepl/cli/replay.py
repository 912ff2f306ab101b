"""``tcprepl replay``: publish the rows of a recording again, batches and instances kept."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from tcprepl.cli import recording
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, to_options
from tcprepl.cli.recording import RecordedRows

#: Most single rows that are published together when nothing asks for their pace.
GROUP_ROWS = 1_000


def grouped(groups: Iterable[RecordedRows]) -> Iterator[RecordedRows]:
    """Join neighbours of one stream and instance that are no batches, for speed."""
    held: RecordedRows | None = None
    for rows in groups:
        if (
            held is not None
            and not held.batch
            and not rows.batch
            and (held.stream, held.instance) == (rows.stream, rows.instance)
            and len(held.rows) < GROUP_ROWS
        ):
            held = replace(held, ms=rows.ms, rows=[*held.rows, *rows.rows])
            continue
        if held is not None:
            yield held
        held = rows
    if held is not None:
        yield held


class SpeedType(click.ParamType[float | None]):
    """SPEED: ``original``, ``max``, or how many times as fast as the original."""

    name = "original|max|N"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """Return the factor; None is as fast as can be."""
        if value == "max" or value is None:
            return None
        if value == "original":
            return 1.0
        try:
            factor = float(str(value))
        except ValueError:
            factor = 0.0
        if not 0.0 < factor < 1e9:
            self.fail(f"{value!r}: expected original, max, or a number above 0", param, ctx)
        return factor


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@to_options
@click.option(
    "--speed",
    type=SpeedType(),
    metavar="original|max|N",
    default="max",
    show_default=True,
    help="Keep the recorded pace, go as fast as can be, or N times the recorded pace.",
)
@click.option(
    "--stream", "streams", multiple=True, help="Only this stream; may be given several times."
)
@click.option(
    "--retry",
    "retry_s",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="Try again for this long while the server is away or busy.",
)
def command(
    file: Path,
    url: str,
    token: str | None,
    speed: float | None,
    streams: tuple[str, ...],
    retry_s: float,
) -> None:
    """Publish the rows of FILE to a server.

    FILE is a recording of `tcprepl record`, or the plain lines that `nc` received. Rows that
    shared a token share one again, and each goes to the instance that wrote it; the tokens
    are the receiving server's own. Each row is answered by a line "STREAM INSTANCE TOKEN".

    \b
    Example:
      $ tcprepl replay session.rec --speed 10
      typing master 1
      receipts master 1
    """
    api = Api(url, token, retry_s)
    transaction = uuid.uuid4()
    clock = threading.Event()
    began = time.monotonic()
    groups = recording.rows(recording.read(file))
    if streams:
        groups = (rows for rows in groups if rows.stream in streams)
    for number, rows in enumerate(grouped(groups) if speed is None else groups):
        if speed is not None:
            clock.wait(max(0.0, began + rows.ms / 1000 / speed - time.monotonic()))
        _, tokens = api.post_rows(
            rows.stream,
            list(rows.rows),
            batch=rows.batch,
            instance=rows.instance,
            transaction_id=f"{transaction}.{number}",
        )
        sys.stdout.write("".join(f"{rows.stream} {rows.instance} {at}\n" for at in tokens))
        sys.stdout.flush()
