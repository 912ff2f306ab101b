"""``tcprepl record``: write what a server sends into a file, exactly and with its time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click
from twisted.internet.defer import CancelledError

from tcprepl.addresses import Address
from tcprepl.cli import logs, recording
from tcprepl.cli.arguments import SECONDS, STREAM, from_option, looking_up
from tcprepl.cli.following import Follower, row_lines
from tcprepl.cli.progress import Progress
from tcprepl.cli.recording import RecordedLine
from tcprepl.cli.running import run_until_done
from tcprepl.cli.tail import SINCE
from tcprepl.clocks import Reactor
from tcprepl.protocol.display import counted


class Recorder:
    """Writes lines with their time.

    Args:
        path: The file. It is made when there is something to write, or by `begin`.
        source: Where the lines come from, for the header.
        reactor: Time.
        force: Whether a file that is there is written anew.
        append: Whether a recording that is there is continued.
        by_name: Whether the file is begun anew when another, or none, has its name by now.

    Attributes:
        lines: Lines written, in all files; None before there was a file.

    Raises:
        BadRecording: The file is there already, or is damaged.
        NoRecording: It is to be continued, and is no recording.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        reactor: Reactor,
        *,
        force: bool = False,
        append: bool = False,
        by_name: bool = False,
    ) -> None:
        self._by_name = by_name
        self._moved_away = False
        self.lines: int | None = None
        self._path = path
        self._source = source
        self._reactor = reactor
        self._began = reactor.seconds()
        self._force = force
        self._file: BinaryIO | None = None
        self._continues = append and path.exists()
        self._before_ms = 0
        if self._continues:
            self._before_ms = max((line.ms for line in recording.read(path)), default=0)
        elif path.exists() and not force:
            raise recording.BadRecording(
                f"{path}: exists; --force writes it anew, --append continues it"
            )

    def begin(self) -> BinaryIO:
        """Make the file, if that has not happened yet."""
        if self._file is None:
            started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            if self._continues:
                self._file = self._path.open("r+b")
                recording.cut_to_whole_lines(self._file)
                self._file.write(f"# continued {started} from {self._source}\n".encode())
            else:
                self._file = self._path.open("wb" if self._force or self._moved_away else "xb")
                self._file.write(recording.header(self._source, started))
            self.lines = self.lines or 0
        return self._file

    def write(self, text: bytes) -> None:
        """Write whole lines; they are with the operating system when this returns."""
        if self._by_name and self._file is not None and self._moved(self._file):
            self.close()
            self._file = None
            self._continues, self._before_ms = False, 0
            # whoever moved the old one away may have made an empty one in its place
            self._moved_away = self._path.exists() and not self._path.stat().st_size
            self._began = self._reactor.seconds()
        file = self.begin()
        ms = self._before_ms + max(0, int((self._reactor.seconds() - self._began) * 1000))
        lines = text[:-1].split(b"\n")
        file.write(b"".join(recording.encode(RecordedLine(ms, line)) for line in lines))
        file.flush()
        self.lines = (self.lines or 0) + len(lines)

    def _moved(self, file: BinaryIO) -> bool:
        """Whether the file that is written does not have its name any more."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("stream", nargs=-1, type=STREAM)
@from_option
@click.option(
    "--since",
    type=SINCE,
    metavar="now|start|TOKEN",
    default="now",
    show_default=True,
    help="Where to begin: with what comes now, with everything held, or after TOKEN.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after this many rows.")
@click.option("--for", "for_s", type=SECONDS, help="End after this many seconds.")
@click.option("--until-head", is_flag=True, help="End when all that is there now was written.")
@click.option("--force", is_flag=True, help="Write a FILE that is there anew.")
@click.option("--append", is_flag=True, help="Continue a FILE that is there.")
@click.option(
    "--follow-name",
    is_flag=True,
    help="Begin FILE anew when it was moved away, as logrotate does; look the context up again for "
    "each connection.",
)
def command(
    file: Path,
    stream: tuple[str, ...],
    source: Address,
    since: str | int,
    count: int | None,
    for_s: float | None,
    until_head: bool,
    force: bool,
    append: bool,
    follow_name: bool,
) -> int:
    """Write the rows and positions of each STREAM (all of them by default) into FILE.

    FILE is text: a line of the wire to a line, after its time in ms and a checksum. It is
    what `tcprepl replay` reads. Access tokens are left out. Ctrl-C ends. A FILE that is there is
    kept, unless --force or --append says what to do with it.

    \b
    Example:
      $ tcprepl record session.rec --since start --until-head
      session.rec: 31 lines
    """
    if isinstance(since, int) and not stream:
        raise click.UsageError("--since TOKEN needs a STREAM: each has tokens of its own")
    if force and append:
        raise click.UsageError("--force and --append exclude each other")
    logs.configure("info")

    async def main(reactor: Reactor) -> int:
        with Progress("lines") as progress:
            return await record(reactor, progress)

    async def record(reactor: Reactor, progress: Progress) -> int:
        def write(text: bytes) -> None:
            recorder.write(text)
            progress.at(recorder.lines or 0)

        recorder = Recorder(
            file, str(source), reactor, force=force, append=append, by_name=follow_name
        )
        follower = Follower(
            reactor,
            source,
            stream or None,
            write,
            since=since,
            render=row_lines,
            commands=True,
            count=count,
            for_s=for_s,
            until_head=until_head,
            on_end=logs.only_warnings,
            name="tcprepl-record",
            look_up=looking_up() if follow_name else None,
        )
        try:
            await follower.run()
            recorder.begin()
        except CancelledError:
            if follower.connected:
                recorder.begin()
            raise
        finally:
            recorder.close()
            if recorder.lines is not None:
                click.echo(f"{file}: {counted(recorder.lines, 'line')}", err=True)
        return 0

    return run_until_done(main)
