"""``tcprepl publish``: append rows to a stream, from the command line or from stdin."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import click
import msgspec

from tcprepl.addresses import Address
from tcprepl.cli.api import Api
from tcprepl.cli.arguments import SECONDS, STREAM, rows_to_option
from tcprepl.cli.posting import Posting
from tcprepl.cli.progress import Progress
from tcprepl.cli.recording import BOM, RecordedRows
from tcprepl.errors import TcpreplError
from tcprepl.protocol.display import counted

#: Most rows and bytes that go into one request; what a pipe holds at the moment goes at once.
CHUNK_ROWS = 2_000
CHUNK_BYTES = 4 * 2**20
READ_BYTES = 2**20


class NotJson(TcpreplError):
    """A row that is not JSON: says which and where."""


def check_row(text: bytes, place: str) -> bytes:
    """Return *text* when it is one JSON value, on one line.

    Raises:
        NotJson: it is not; the message says where the fault is.
    """
    try:
        msgspec.json.decode(text)
    except RecursionError:
        raise NotJson(f"{place}: nested too deep") from None
    except msgspec.DecodeError:
        # The other parser takes more (lone surrogates), and says where a fault is.
        _check_slowly(text, place)
    if b"\n" in text or b"\r" in text:
        return b" ".join(line.strip() for line in text.splitlines())
    return text


def _check_slowly(text: bytes, place: str) -> None:
    def refuse(word: str) -> None:
        raise NotJson(f"{place}: {word} is not JSON")

    try:
        json.loads(text.decode(), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise NotJson(f"{place}: not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        line = error.doc.split("\n")[error.lineno - 1]
        start = max(0, error.colno - 60)
        raise NotJson(
            f"{place}: not JSON at column {error.colno}: {error.msg}\n"
            f"  {line[start : start + 100]}\n  {' ' * (error.colno - 1 - start)}^"
        ) from None
    except ValueError:
        raise NotJson(f"{place}: an integer of too many digits for anybody to read it") from None


class Given(NamedTuple):
    """A row as it was given, and where."""

    text: bytes
    place: str


def read_lines(descriptor: int) -> Iterator[list[Given]]:
    """Yield the lines of a file descriptor as they come, those at hand together.

    Blank lines are passed over, but counted; a last line without its LF counts; a byte order
    mark before the first does not.
    """
    parts: list[bytes] = []
    number = 0

    def lines(text: bytes) -> list[Given]:
        nonlocal number
        found: list[Given] = []
        for line in text.split(b"\n"):
            number += 1
            if stripped := (line.removeprefix(BOM) if number == 1 else line).strip():
                found.append(Given(stripped, f"line {number}"))
        return found

    while piece := os.read(descriptor, READ_BYTES):
        head, line_end, tail = piece.rpartition(b"\n")
        if line_end:
            parts.append(head)
            yield lines(b"".join(parts))
            parts = []
        parts.append(tail)
    yield lines(b"".join(parts))


def as_they_come(groups: Iterable[list[Given]]) -> Iterator[list[Given]]:
    """Yield chunks of at most the bounds; what is at hand does not wait for more."""
    for group in groups:
        yield from in_full([group])


def in_full(groups: Iterable[list[Given]]) -> Iterator[list[Given]]:
    """Yield chunks up to the bounds, which depend on the rows alone and not on when they came."""
    chunk: list[Given] = []
    size = 0
    for group in groups:
        for line in group:
            if chunk and (len(chunk) >= CHUNK_ROWS or size + len(line.text) > CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(line)
            size += len(line.text)
    if chunk:
        yield chunk


def all_in_one(groups: Iterable[list[Given]]) -> Iterator[list[Given]]:
    """Yield everything as one chunk."""
    together = [line for group in groups for line in group]
    if together:
        yield together


@click.command("publish")
@click.argument("stream", type=STREAM)
@click.argument("row", nargs=-1)
@rows_to_option
@click.option("--batch", is_flag=True, help="Give all rows one token; they travel together.")
@click.option("--instance", help="The instance to publish as; the server's own by default.")
@click.option(
    "--transaction-id",
    help="Makes the whole call safe to repeat: rows that were taken are not taken again. "
    "Over HTTP only.",
)
@click.option(
    "--retry",
    "retry_s",
    type=SECONDS,
    help="Try again for this long while the server is away or busy. "
    "By default 10, once it has answered.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing for each row.")
def command(
    stream: str,
    row: tuple[str, ...],
    url: str | Address,
    token: Callable[[], str] | None,
    batch: bool,
    instance: str | None,
    transaction_id: str | None,
    retry_s: float | None,
    quiet: bool,
) -> None:
    """Append each ROW, a JSON value, to STREAM.

    Without a ROW, or with "-", the rows are read from stdin, one to a line. Each row that
    is safe is answered by a line "STREAM INSTANCE TOKEN".

    \b
    Example:
      $ tcprepl publish typing '["!room:example.com", ["@alice:example.com"]]'
      typing master 1
      $ tcprepl publish caches --batch < rows.jsonl
    """
    if transaction_id == "":
        raise click.BadParameter(
            "expected 1 to 255 characters, others for each call", param_hint="--transaction-id"
        )
    if isinstance(url, Address) and transaction_id is not None:
        raise click.UsageError(
            "--transaction-id goes with HTTP: --to http://HOST:PORT, or HOST:PORT of its listener"
        )
    if row == ("-",):  # as other programs call stdin; it is no JSON
        row = ()
    if not row and sys.stdin.isatty():
        raise click.UsageError("no ROW given, and stdin is a terminal")
    groups: Iterable[list[Given]] = (
        [[Given(text.encode(), f"row {n}") for n, text in enumerate(row, 1)]]
        if row
        else read_lines(sys.stdin.fileno())
    )
    if batch:
        chunks = all_in_one(groups)
    elif transaction_id is not None:
        chunks = in_full(groups)
    else:
        chunks = as_they_come(groups)
    if isinstance(url, Address):
        checked = (_checked(stream, instance, batch, chunk) for chunk in chunks)
        from tcprepl.cli.writing import write_rows  # and Twisted, which HTTP does without

        taken = write_rows(url, checked, retry_s, quiet=quiet)
        if not row:
            click.echo(f"{counted(taken, 'row')} published", err=True)
        return
    api = Api(url, token, retry_s or 0.0)
    posting = Posting(api, transaction_id or str(uuid.uuid4()))
    with Progress("rows", beside_rows=not quiet) as progress:
        for chunk in chunks:
            try:
                rows = _checked(stream, instance, batch, chunk)
            except NotJson as error:
                raise NotJson(f"{error}\n  {posting.story()}") from None
            answered_by, tokens = posting.post(
                stream, rows.rows, rows.places, batch=batch, instance=instance
            )
            progress.at(posting.taken)
            if retry_s is None:
                api.retry_s = 10.0
            if not quiet:
                sys.stdout.write("".join(f"{stream} {answered_by} {token}\n" for token in tokens))
                sys.stdout.flush()


def _checked(stream: str, instance: str | None, batch: bool, chunk: list[Given]) -> RecordedRows:
    """Return a chunk as rows that are JSON.

    Raises:
        NotJson: One is not.
    """
    rows = [check_row(*given) for given in chunk]
    return RecordedRows(0, stream, instance or "", batch, rows, [given.place for given in chunk])
