"""``tcprepl log``: what a data directory holds that nobody uses at the moment."""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from tcprepl.cli import Group
from tcprepl.cli.arguments import STREAM
from tcprepl.cli.following import renderer
from tcprepl.cli.formats import Format, key_of, output_options, writer_for
from tcprepl.cli.progress import Progress
from tcprepl.errors import ConfigError, LogCorrupt, LogUnavailable
from tcprepl.ids import StreamName, Token
from tcprepl.protocol.display import counted, displayable
from tcprepl.replication.relaying.state import FILE_NAME as STATE_NAME
from tcprepl.storage.backup import LIST_NAME, backup_faults
from tcprepl.storage.lock import DirectoryLock, kept_from_others
from tcprepl.streams.blocks import rows_of
from tcprepl.streams.counts import Counts
from tcprepl.streams.database import Database
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.gaps import Gap
from tcprepl.streams.looking import LookedAt, looking_into
from tcprepl.streams.masking import without_access_tokens
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tcprepl.web.amounts import duration, number, size

#: Most different keys that `top` counts at a time; the rarest are forgotten.
MOST_KEYS = 100_000
#: Of each, so much is told.
KEY_BYTES = 100

F = TypeVar("F", bound=Callable[..., Any])


@click.group("log", cls=Group)
def command() -> None:
    """Look into a data directory: what it holds, and whether it is whole.

    The server that has it must be stopped, or look at a copy (`tcprepl backup`). Nothing is
    changed; the directory may be read-only.

    \b
    Example:
      $ tcprepl log ls /backup/monday
      $ tcprepl log verify /backup/monday
    """


def data_option(function: F) -> F:
    """Add ``[DIRECTORY]``, and ``--data DIRECTORY`` for the same."""

    @wraps(function)
    def wrapped(data: Path | None = None, directory: Path | None = None, **others: Any) -> Any:
        if data is not None and directory is not None:
            raise click.UsageError("the directory is named twice: leave out --data")
        chosen = directory or data or Path("tcprepl-data")
        if not chosen.is_dir():
            raise click.UsageError(f"directory {chosen} does not exist: name it")
        return function(data=chosen, **others)

    where = click.Path(path_type=Path, file_okay=False)
    option = click.option(
        "--data",
        type=where,
        show_default="tcprepl-data",
        help="The data directory, or a copy of one.",
    )
    found: Any = click.argument("directory", type=where, required=False)(option(wrapped))
    return cast(F, found)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")


@contextmanager
def opened(directory: Path) -> Iterator[LookedAt]:
    """Open the log in *directory* to be looked at, and keep others out meanwhile.

    Raises:
        ConfigError: There is no log.
        LogLocked: A process has it.
        LogError: It is no log of ours, or an empty file in its place, or cannot be read.
    """
    path = directory / DATABASE_NAME
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        raise ConfigError(
            f"{directory}: no {DATABASE_NAME} is there; expected a data directory"
        ) from None
    except OSError as error:
        raise LogUnavailable(f"cannot read {path}: {error.strerror}") from error
    if not length:
        raise LogCorrupt(f"{path}: an empty file, no log: what was in it is lost; use a backup")
    with _kept(directory), looking_into(directory) as database:
        yield database


@contextmanager
def _kept(directory: Path) -> Iterator[None]:
    """Keep others out of *directory*, under our name if there is a place for it.

    A backup stays as it is.
    """
    lock = None
    if not (directory / LIST_NAME).exists():
        with suppress(LogUnavailable):  # nothing can be written there, and need not be
            lock = DirectoryLock(directory)
    if lock is None:
        with kept_from_others(directory):
            yield
        return
    try:
        yield
    finally:
        lock.release()


def pages(database: Database, pair: StoredPair, after: Token | None = None) -> Iterator[DiskPage]:
    """Yield what there is of a pair, page by page; behind damage it goes on."""
    token = max(pair.floor, pair.floor if after is None else after)
    while token < pair.position:
        page = database.page(pair, token, pair.position)
        yield page
        if page.damage is not None:
            token = max(page.upto, page.damage.upto)
        elif page.upto > token:
            token = page.upto
        else:
            return


@command.command("ls")
@data_option
@_json_option
def ls(data: Path, as_json: bool) -> None:
    """List streams and writers: what is held, how much, from when.

    A stream in memory, as typing is one, has no rows here, and no position: just the token up to
    which none is given out again, reserved_upto of --json.

    \b
    Example:
      $ tcprepl log ls --data /backup/monday
      STREAM        WRITER  HELD FROM  POSITION   ROWS  BYTES   OLDEST
      device_lists  master  0          812        812   91.3kB  2d 4h
      typing        master  -          in memory  -     -
    """
    with opened(data) as database:
        found = [(pair, _oldest_ms(database, pair)) for pair in database.pairs()]
    relayed = (data / STATE_NAME).exists()
    if as_json:
        for pair, oldest_ms in found:
            in_memory = _is_in_memory(pair, relayed)
            _tell_json(
                stream=pair.stream,
                writer=pair.instance,
                held_from=None if in_memory else pair.floor,
                position=None if in_memory else pair.position,
                rows=pair.rows,
                bytes=pair.size_bytes,
                oldest_ms=oldest_ms,
                **({"reserved_upto": pair.position} if in_memory else {}),
            )
        return
    lines: list[tuple[str, ...]] = [
        ("STREAM", "WRITER", "HELD FROM", "POSITION", "ROWS", "BYTES", "OLDEST")
    ]
    now_ms = time.time() * 1000
    for pair, oldest_ms in found:
        if _is_in_memory(pair, relayed):
            lines.append((pair.stream, pair.instance, "-", "in memory", "-", "-", ""))
            continue
        age = "" if oldest_ms is None else duration(max(0.0, (now_ms - oldest_ms) / 1000))
        held = (pair.floor, pair.position, pair.rows)
        lines.append((pair.stream, pair.instance, *map(str, held), size(pair.size_bytes), age))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (word.ljust(width) for word, width in zip(line, widths, strict=True))
        click.echo(displayable("  ".join(padded).rstrip()).replace("\u202f", ""))


def _is_in_memory(pair: StoredPair, relayed: bool) -> bool:
    """Return whether the position of *pair* is what is reserved for a stream in memory.

    No row of it was ever here. A relay, which has every stream on disk, moves positions without
    rows; nobody else does.
    """
    return pair.position > 0 and not (pair.floor or pair.rows or relayed)


def _oldest_ms(database: Database, pair: StoredPair) -> int | None:
    """Return when the oldest block that is held was written."""
    with closing(database.oldest(pair, pair.floor)) as blocks:
        return next((written_ms for _, _, _, written_ms in blocks), None)


@command.command("show")
@click.argument("stream", type=STREAM)
@data_option
@click.option("--writer", show_default="the only one, else master", help="Whose rows.")
@click.option("--after", type=click.IntRange(min=0), help="Begin after this token.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many rows.")
@output_options("row")
def show(
    stream: str,
    data: Path,
    writer: str | None,
    after: int | None,
    count: int | None,
    as_json: bool,
    row_format: Format | None,
) -> int:
    """Print the rows of STREAM, access tokens left out.

    Rows that cannot be read are named on stderr, and the exit code is 1.

    \b
    Example:
      $ tcprepl log show device_lists --data /backup/monday --after 810
      RDATA device_lists master 811 ["@alice:example.com"]
    """
    render = renderer(as_json, row_format)
    code = 0
    with opened(data) as database:
        pair = _pair(database, data, stream, writer)
        for page in pages(database, pair, after):
            lines: list[bytes] = []
            for token, rows in _batches(page):
                if after is None or token > after:  # a page is whole blocks
                    lines += render(stream, pair.instance, token, rows)
            if count is not None:
                lines, count = lines[:count], count - len(lines)
            writer_for(row_format)(b"".join(b"%b\n" % line for line in lines))
            if page.damage is not None:
                _tell_fault(*_damage(page.damage, pair))
                code = 1
            if count is not None and count <= 0:
                break
    return code


@command.command("verify")
@data_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each fault, and a last one."
)
def verify(data: Path, as_json: bool) -> int:
    """Read every row, compare every checksum, and name what cannot be read.

    What SQLite finds wrong with the file is named too, and counts that are not those of the
    rows. Of a backup every file is compared with what was backed up. The exit code is 1 if
    anything is damaged.

    What is not there is not missed: after a crash the newest rows, or all, are in
    log.sqlite3-wal alone, and a copy without that file is whole, but older. `tcprepl backup`
    makes copies that have everything.

    \b
    Example:
      $ tcprepl log verify --data /backup/monday
      3000 rows of 2 streams: whole
    """
    faults = streams = 0
    said = _tell_fault_json if as_json else _tell_fault

    def tell(text: str, where: Mapping[str, object] | None = None) -> None:
        nonlocal faults
        said(text, where)
        faults += 1

    copied = (data / LIST_NAME).exists()
    if copied:
        with Progress("bytes") as progress:
            for fault in backup_faults(data, progress.of):
                tell(fault)
        if not (data / DATABASE_NAME).exists():  # a federation sender's
            return _verified(faults, "a backup without a log", as_json, rows=0, streams=0)
    progress = Progress("rows")
    try:
        with opened(data) as database, progress:
            for fault in () if copied else database.faults():
                tell(fault)
            whole = database.pairs()
            progress.begin("reading", sum(pair.rows for pair in whole))
            for pair in whole:
                streams += pair.rows > 0
                _verify_pair(database, pair, progress, tell)
    except LogCorrupt as error:  # no log of ours, or the rest of it cannot be read
        tell(str(error))
    found = f"{counted(progress.done, 'row')} of {counted(streams, 'stream')}"
    return _verified(faults, found, as_json, rows=progress.done, streams=streams)


def _verify_pair(
    database: LookedAt, pair: StoredPair, progress: Progress, tell: Callable[..., None]
) -> None:
    """Read all rows of *pair*, and tell what is wrong with them and with what is counted."""
    counts = Counts(database, pair)
    for page in pages(database, pair):
        progress.add(0 if page.block is None else len(page.block.tokens))
        for fault in counts.of(page):
            tell(*_of_pair(fault, pair))
        if page.damage is not None:
            tell(*_damage(page.damage, pair))
    for fault in counts.ended():
        tell(*_of_pair(fault, pair))


def _verified(faults: int, found: str, as_json: bool, **counts: int) -> int:
    if as_json:
        _tell_json(kind="result", whole=not faults, faults=faults, **counts)
    else:
        click.echo(f"{found}: {'damaged' if faults else 'whole'}")
    return int(faults > 0)


@command.command("top")
@data_option
@click.option(
    "--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many."
)
@_json_option
def top(data: Path, count: int, as_json: bool) -> None:
    """Name the largest rows, and the keys with the most rows.

    The key of a row is its first element: a room, a user, a destination.

    \b
    Example:
      $ tcprepl log top --data /backup/monday --count 1
      The largest rows
         1.2kB  to_device master 7  ["@alice:example.com", ...
      The keys with the most rows
           812  device_lists  @alice:example.com
    """
    largest: list[tuple[int, int, StoredPair, Token, bytes]] = []
    keys: Counter[tuple[StreamName, bytes]] = Counter()
    seen = 0
    with opened(data) as database:
        for pair in database.pairs():
            for page in pages(database, pair):
                for token, rows in _batches(page):
                    for row in rows:
                        seen += 1
                        entry = (len(row), seen, pair, token, row)
                        if len(largest) < count:
                            heapq.heappush(largest, entry)
                        elif entry > largest[0]:
                            heapq.heapreplace(largest, entry)
                        key = key_of(without_access_tokens(pair.stream, row))[:KEY_BYTES]
                        keys[pair.stream, key] += 1
                if len(keys) > MOST_KEYS:
                    keys = Counter(dict(keys.most_common(MOST_KEYS // 2)))
    if as_json:
        for length, _, pair, token, row in sorted(largest, reverse=True):
            shown = without_access_tokens(pair.stream, row).decode("utf-8", "replace")
            pair_of = {"stream": pair.stream, "writer": pair.instance}
            _tell_json(kind="row", **pair_of, token=token, bytes=length, row=shown)
        for (stream, key), rows_of_key in keys.most_common(count):
            shown = key.decode("utf-8", "replace")
            _tell_json(kind="key", stream=stream, key=shown, rows=rows_of_key)
        return
    click.echo("The largest rows")
    for length, _, pair, token, row in sorted(largest, reverse=True):
        text = without_access_tokens(pair.stream, row)[:60].decode("utf-8", "replace")
        where = f"{pair.stream} {pair.instance} {token}"
        click.echo(displayable(f"{size(length):>8}  {where}  {text}").replace("\u202f", ""))
    click.echo("The keys with the most rows")
    for (stream, key), rows_of_key in keys.most_common(count):
        text = key.decode("utf-8", "replace")
        click.echo(displayable(f"{number(rows_of_key):>8}  {stream}  {text}").replace("\u202f", ""))


def _tell_json(**values: object) -> None:
    click.echo(json.dumps(values, separators=(",", ":")))


def _pair(database: Database, data: Path, stream: str, writer: str | None) -> StoredPair:
    found = database.pairs()
    if writer is None:
        writers = [pair.instance for pair in found if pair.stream == stream and pair.rows]
        writer = writers[0] if len(writers) == 1 else "master"
    for pair in found:
        if (pair.stream, pair.instance) == (stream, writer):
            return pair
    known = sorted({f"{pair.stream} of {pair.instance}" for pair in found if pair.rows})
    raise ConfigError(
        f"{data}: no rows of {stream} by {writer}; there are {', '.join(known) or 'none at all'}"
    )


def _batches(page: DiskPage) -> Iterator[tuple[Token, list[bytes]]]:
    """Yield the rows of a page, those that share a token together."""
    if page.block is None:
        return
    rows: list[bytes] = []
    before: Token | None = None
    for token, row in zip(page.block.tokens, rows_of(page.block), strict=True):
        if token != before and before is not None:
            yield before, rows
            rows = []
        rows.append(row)
        before = token
    if before is not None:
        yield before, rows


def _damage(damage: Gap, pair: StoredPair) -> tuple[str, dict[str, object]]:
    """Return what cannot be read, in words and for programs."""
    text, place = _of_pair(damage.words(), pair)
    return text, {**place, "after": damage.after, "upto": damage.upto}


def _of_pair(text: str, pair: StoredPair) -> tuple[str, dict[str, object]]:
    """Return what is said of a pair, in words and for programs."""
    place: dict[str, object] = {"stream": pair.stream, "writer": pair.instance}
    return f"{pair.stream} of {pair.instance}: {text}", place


def _tell_fault(text: str, _: Mapping[str, object] | None = None) -> None:
    click.echo(displayable(text), err=True)


def _tell_fault_json(text: str, where: Mapping[str, object] | None = None) -> None:
    _tell_json(kind="fault", **(where or {}), text=text)
