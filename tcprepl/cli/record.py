"""``tcprepl record``: write what a server sends into a file, exactly and with its time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from tcprepl.cli import logs, recording
from tcprepl.cli.arguments import SECONDS, from_option
from tcprepl.cli.following import Follower, row_lines
from tcprepl.cli.recording import RecordedLine
from tcprepl.cli.running import run_until_done
from tcprepl.cli.tail import SINCE
from tcprepl.clocks import Reactor
from tcprepl.config import Address


class Recorder:
    """Writes lines with their time.

    Args:
        path: The file; it must not be there yet.
        source: Where the lines come from, for the header.
        reactor: Time.
    """

    def __init__(self, path: Path, source: str, reactor: Reactor) -> None:
        self._reactor = reactor
        self._began = reactor.seconds()
        self._file = path.open("xb")
        self.lines = 0
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(recording.header(source, started.replace("+00:00", "Z")))

    def write(self, text: bytes) -> None:
        """Write whole lines; they are with the operating system when this returns."""
        ms = int((self._reactor.seconds() - self._began) * 1000)
        lines = text[:-1].split(b"\n")
        self._file.write(b"".join(recording.encode(RecordedLine(ms, line)) for line in lines))
        self._file.flush()
        self.lines += len(lines)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("stream", nargs=-1)
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
def command(
    file: Path,
    stream: tuple[str, ...],
    source: Address,
    since: str | int,
    count: int | None,
    for_s: float | None,
    until_head: bool,
) -> int:
    """Write the rows and positions of each STREAM (all of them by default) into FILE.

    FILE is text: a line of the wire to a line, after its time in ms and a checksum. It is
    what `tcprepl replay` reads. Access tokens are left out. Ctrl-C ends.

    \b
    Example:
      $ tcprepl record session.rec --since start --until-head
      session.rec: 31 lines
    """
    if isinstance(since, int) and not stream:
        raise click.UsageError("--since TOKEN needs a STREAM: each has tokens of its own")
    logs.configure("info")

    async def main(reactor: Reactor) -> int:
        recorder = Recorder(file, str(source), reactor)
        follower = Follower(
            reactor,
            source,
            stream or None,
            recorder.write,
            since=since,
            render=row_lines,
            commands=True,
            count=count,
            for_s=for_s,
            until_head=until_head,
            on_end=logs.only_warnings,
            name="tcprepl-record",
        )
        try:
            await follower.run()
        finally:
            recorder.close()
            click.echo(f"{file}: {recorder.lines} lines", err=True)
        return 0

    return run_until_done(main)
