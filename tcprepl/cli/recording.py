"""The file format of ``record`` and ``replay``: exact lines, with their time and a checksum.

The file is UTF-8 text, one line of the wire to a line::

    # tcprepl recording 1
    # from 127.0.0.1:9092
    # started 2026-11-23T01:30:00.000Z
    0 8e318c19 SERVER example.com
    1520 d0dddc49 RDATA typing master 1 ["!r:example.com",["@a:example.com"]]

A line is the time in ms since the start, the CRC-32 (IEEE, eight hex digits) of the time, a
space and the line, and then the line as it was received, without its LF. A recording that
was cut off in the middle of a line is good up to there.

A recording is recognised by its first line. A capture made by ``nc`` (bare lines of the wire) is
read as well when the caller says that it is one; all its lines have time 0. A byte order mark at
the start of either does not count.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tcprepl.errors import ConfigError, TcpreplError

MAGIC = b"# tcprepl recording 1"
#: What some editors put before the first line.
BOM = b"\xef\xbb\xbf"


class BadRecording(TcpreplError):
    """A recording that cannot be read, or is damaged: says where and how."""


class NoRecording(ConfigError):
    """A file that is something else than a recording."""


@dataclass(frozen=True, slots=True)
class RecordedLine:
    """One line of the wire.

    Attributes:
        ms: When it came, in ms since the start.
        line: The line, without its LF.
        place: Where it stands: the file and the number of the line.
    """

    ms: int
    line: bytes
    place: str = field(default="", compare=False)


def header(source: str, started: str) -> bytes:
    """Return the first lines of a recording."""
    return MAGIC + f"\n# from {source}\n# started {started}\n".encode()


def checksum(ms: int, line: bytes) -> bytes:
    """Return the checksum of a line and its time."""
    return b"%08x" % zlib.crc32(b"%d %s" % (ms, line))


def encode(recorded: RecordedLine) -> bytes:
    """Return a line of the file, ended by LF."""
    return b"%d %s %s\n" % (recorded.ms, checksum(recorded.ms, recorded.line), recorded.line)


def read(path: Path, *, bare: bool = False) -> Iterator[RecordedLine]:
    """Yield the lines of a recording.

    Args:
        path: The file.
        bare: Whether a file that is no recording is taken as lines of the wire.

    Raises:
        NoRecording: the file is something else.
        BadRecording: the file cannot be read, or a line other than a cut-off last one does
            not match its checksum.
    """
    try:
        with path.open("rb") as file:
            first = file.readline().removeprefix(BOM)
            if first.rstrip(b"\r\n") == MAGIC:
                yield from _read_recording(file, path)
            elif bare:
                yield from _read_capture(file, first, path)
            else:
                raise NoRecording(f"{path}: is no recording of `tcprepl record`")
    except OSError as error:
        raise BadRecording(f"{path}: {error.strerror}") from None


def _read_capture(file: BinaryIO, first: bytes, path: Path) -> Iterator[RecordedLine]:
    line, number = first, 1
    while line:
        text = line.rstrip(b"\r\n")
        if text:
            yield RecordedLine(0, text, f"{path}:{number}")
        line, number = file.readline(), number + 1


def _read_recording(file: BinaryIO, path: Path) -> Iterator[RecordedLine]:
    for number, line in enumerate(file, 2):
        if line.startswith(b"#"):
            continue
        if not line.endswith(b"\n"):
            return
        try:
            time, crc, text = line[:-1].split(b" ", 2)
            ms = int(time)
        except ValueError:
            raise BadRecording(
                f"{path}:{number}: expected a time in ms, a checksum and a line"
            ) from None
        if checksum(ms, text) != crc:
            raise BadRecording(f"{path}:{number}: does not match its checksum {crc!r:.40}")
        yield RecordedLine(ms, text, f"{path}:{number}")


def cut_to_whole_lines(file: BinaryIO) -> None:
    """Leave out a last line that was cut off, and go to the end of *file*."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    file.truncate(end)
    file.seek(end)


@dataclass(frozen=True, slots=True)
class RecordedRows:
    """Rows that were published together: one instance, one stream, one moment.

    Attributes:
        ms: When the last of them came, in ms since the start.
        stream: Name of the stream.
        instance: Name of the instance.
        batch: Whether they share one token.
        rows: The rows as JSON.
        places: Where each of them stands.
    """

    ms: int
    stream: str
    instance: str
    batch: bool
    rows: Sequence[bytes]
    places: Sequence[str] = field(default=(), compare=False)


def rows(lines: Iterable[RecordedLine]) -> Iterator[RecordedRows]:
    """Yield the rows of RDATA lines, in order, with rows that share a token kept together.

    The older form without an instance counts as written by ``master``. Rows of a batch whose
    end was not recorded are not complete and are left out.
    """
    pending: dict[tuple[str, str], list[tuple[bytes, str]]] = {}
    for recorded in lines:
        word, _, rest = recorded.line.partition(b" ")
        if word != b"RDATA":
            continue
        parts = rest.split(b" ", 3)
        if len(parts) > 2 and (parts[1] == b"batch" or parts[1].lstrip(b"-").isdigit()):
            stream, token, row = rest.split(b" ", 2)
            instance = b"master"
        elif len(parts) == 4:
            stream, instance, token, row = parts
        else:
            raise BadRecording(f"{recorded.place}: not a row: {recorded.line[:60]!r}")
        pair = (stream.decode("utf-8", "replace"), instance.decode("utf-8", "replace"))
        if token == b"batch":
            pending.setdefault(pair, []).append((row, recorded.place))
            continue
        together, places = zip(*pending.pop(pair, ()), (row, recorded.place), strict=True)
        batch = len(together) > 1
        yield RecordedRows(recorded.ms, *pair, batch, list(together), list(places))
