"""``tcprepl replay``: publish the rows of a recording again, batches and instances kept."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from tcprepl.addresses import Address
from tcprepl.cli import recording
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, STREAM, rows_to_option
from tcprepl.cli.posting import Posting
from tcprepl.cli.progress import Progress
from tcprepl.cli.recording import RecordedLine, RecordedRows
from tcprepl.errors import ConfigError, did_you_mean

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
            held = replace(
                held,
                ms=rows.ms,
                rows=[*held.rows, *rows.rows],
                places=[*held.places, *rows.places],
            )
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
@rows_to_option
@click.option(
    "--speed",
    type=SpeedType(),
    metavar="original|max|N",
    default="max",
    show_default=True,
    help="Keep the recorded pace, go as fast as can be, or N times the recorded pace.",
)
@click.option(
    "--stream",
    "streams",
    type=STREAM,
    multiple=True,
    help="Only this stream; may be given several times.",
)
@click.option(
    "--retry",
    "retry_s",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="Try again for this long while the server is away or busy.",
)
@click.option(
    "--lines", "bare", is_flag=True, help="FILE is lines of the wire, as nc received them."
)
@click.option("--dry-run", is_flag=True, help="Publish nothing; say what would be.")
def command(
    file: Path,
    url: str | Address,
    token: Callable[[], str] | None,
    speed: float | None,
    streams: tuple[str, ...],
    retry_s: float,
    bare: bool,
    dry_run: bool,
) -> None:
    """Publish the rows of FILE to a server.

    FILE is a recording of `tcprepl record`, or with --lines what `nc` received. Rows that
    shared a token share one again, and each goes to the instance that wrote it; the tokens
    are the receiving server's own. Each row is answered by a line "STREAM INSTANCE TOKEN"; a
    summary at the end goes to stderr.

    \b
    Example:
      $ tcprepl replay session.rec --speed 10
      typing master 1
      receipts master 1
      session.rec: 2 rows of 2 streams published
    """
    seen: Counter[str] = Counter()
    published: set[str] = set()
    progress = Progress("bytes", file.stat().st_size if file.is_file() else None, beside_rows=True)
    lines = counted(read(file, bare=bare), progress)
    groups = chosen(recording.rows(lines), seen, streams)
    groups = grouped(groups) if speed is None or dry_run else paced(groups, speed)
    groups = noted(groups, published)
    with progress:
        if dry_run:
            taken = sum(len(rows.rows) for rows in groups)
        elif isinstance(url, Address):
            from tcprepl.cli.writing import write_rows  # and Twisted, which HTTP does without

            taken = write_rows(url, groups, retry_s, quiet=False, told=False)
        else:
            posting = Posting(Api(url, token, retry_s), str(uuid.uuid4()))
            for rows in groups:
                _, tokens = posting.post(
                    rows.stream, rows.rows, rows.places, batch=rows.batch, instance=rows.instance
                )
                sys.stdout.write("".join(f"{rows.stream} {rows.instance} {at}\n" for at in tokens))
                sys.stdout.flush()
            taken = posting.taken
    if not seen:
        raise recording.BadRecording(f"{file}: there are no rows in it")
    for stream in streams:
        if stream not in seen:
            raise ConfigError(f"{file}: has no rows of {stream}{did_you_mean(stream, seen)}")
    rows_of_streams = f"{count(taken, 'row')} of {count(len(published), 'stream')}"
    what = "would be published" if dry_run else "published"
    click.echo(f"{file}: {rows_of_streams} {what}", err=True)


def read(file: Path, *, bare: bool) -> Iterator[RecordedLine]:
    """Yield the lines of *file*, as `recording.read` does."""
    try:
        yield from recording.read(file, bare=bare)
    except recording.NoRecording as error:
        raise ConfigError(
            f"{error}; lines of the wire, as nc receives them, are taken with --lines"
        ) from None


def counted(lines: Iterable[RecordedLine], progress: Progress) -> Iterator[RecordedLine]:
    """Yield *lines*, and count their bytes in the file."""
    for line in lines:
        yield line
        progress.add(len(recording.encode(line)))


def paced(groups: Iterable[RecordedRows], speed: float) -> Iterator[RecordedRows]:
    """Yield *groups* at *speed* times the pace at which they were recorded."""
    clock = threading.Event()
    began = time.monotonic()
    for rows in groups:
        clock.wait(max(0.0, began + rows.ms / 1000 / speed - time.monotonic()))
        yield rows


def noted(groups: Iterable[RecordedRows], streams: set[str]) -> Iterator[RecordedRows]:
    """Yield *groups*, and note the names of their streams."""
    for rows in groups:
        streams.add(rows.stream)
        yield rows


def count(number: int, noun: str) -> str:
    """Return how many there are, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def chosen(
    groups: Iterable[RecordedRows], seen: Counter[str], streams: Sequence[str]
) -> Iterator[RecordedRows]:
    """Yield the rows of *streams* (none: of all), and count in *seen* what there is."""
    for rows in groups:
        seen[rows.stream] += len(rows.rows)
        if not streams or rows.stream in streams:
            yield rows
