"""Rows in over the line protocol: what `publish` and `replay` do where ``--to`` says so.

Each chunk is one line, and many are under way at a time, so that a million rows are a matter of
seconds. What was cut off is said again; each row gets in once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.background import looping_background_process
from tcprepl.cli import logs
from tcprepl.cli.output import write_out
from tcprepl.cli.posting import NotTaken, refused, story
from tcprepl.cli.progress import Progress
from tcprepl.cli.recording import RecordedRows
from tcprepl.cli.running import pool_aside, run_until_done
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed, PublishRefused, TcpreplError
from tcprepl.protocol.commands import Reason
from tcprepl.replication.following.writer import ReplicationWriter
from tcprepl.streams.log import Appended

#: Most bytes of rows on one line.
LINE_BYTES: Final = 262_144
#: How often a person is told how far it is, and how often it is looked whether anything goes on.
LOOK_S: Final = 0.5


def line_sized(chunks: Iterable[RecordedRows]) -> Iterator[RecordedRows]:
    """Yield *chunks* in pieces that fit on a line; a batch is not parted."""
    for chunk in chunks:
        begin = size = 0
        for index, row in enumerate(chunk.rows):
            if index > begin and not chunk.batch and size + len(row) > LINE_BYTES:
                yield _piece(chunk, begin, index)
                begin, size = index, 0
            size += len(row)
        yield _piece(chunk, begin, len(chunk.rows))


def _piece(chunk: RecordedRows, begin: int, end: int) -> RecordedRows:
    return replace(chunk, rows=chunk.rows[begin:end], places=chunk.places[begin:end])


class Writing:
    """Publishes chunks until there are no more.

    Args:
        reactor: The reactor.
        address: The server.
        retry_s: For how long it may be away or busy; None is 10 s, once it has answered.
        quiet: Whether no line is printed for each row.
        progress: Is told how far it is.

    Attributes:
        taken: Rows that are safe.
    """

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        retry_s: float | None,
        *,
        quiet: bool = False,
        progress: Progress,
    ) -> None:
        self.taken = 0
        self._reactor = reactor
        self._retry_s = retry_s
        self._quiet = quiet
        self._progress = progress
        self._heard_at = reactor.seconds()
        self._writer = ReplicationWriter(
            reactor,
            client_endpoint(reactor, address),
            server_name=address.server_name,
            token=address.token,
        )
        self._stuck: Deferred[None] = Deferred()
        self._last: Deferred[Any] | None = None
        self._failure: Exception | None = None
        self._broken: BaseException | None = None
        self._pool = pool_aside(1, "reading")
        #: Fires with the next rows, or when there is no use for them.
        self._reading: Deferred[None] | None = None

    async def run(self, chunks: Iterable[RecordedRows]) -> None:
        """Publish *chunks*, which are taken in a thread: they may wait for a pipe.

        Raises:
            NotTaken: They are not all safe; the message says how many are.
            ConfigError: There is no such stream.
            TcpreplError: What *chunks* raised.
        """
        writer = self._writer
        watching = looping_background_process(self._reactor, "writing", LOOK_S, self._look)
        writer.startService()
        self._pool.start()
        try:
            await self._or_stuck(writer.claimed)
            pieces = line_sized(chunks)
            while self._failure is None:
                try:
                    piece = await self._next(pieces)
                except TcpreplError as error:
                    if self._last is not None:
                        await self._or_stuck(self._last)
                    error.args = (f"{error}\n  {story(self.taken)}",)
                    raise
                if piece is None:
                    break
                await self._or_stuck(writer.when_room())
                self._publish(piece)
            if self._last is not None:
                await self._or_stuck(self._last)
            if self._failure is not None:
                raise self._failure
        finally:
            await watching.stop()
            await writer.stopService()

    async def _next(self, pieces: Iterator[RecordedRows]) -> RecordedRows | None:
        """Wait for what is to be published next; None at the end, or as soon as rows are refused.

        A pipe may be silent for hours: nobody is to learn only then that nothing goes in.
        """
        found: list[RecordedRows | Failure | None] = []

        def keep(result: RecordedRows | Failure | None) -> None:
            found.append(result)
            if not reading.called:
                reading.callback(None)

        reading: Deferred[None] = Deferred()
        self._reading = reading
        _ = deferToThreadPool(self._reactor, self._pool, next, pieces, None).addBoth(keep)
        await self._or_stuck(reading)
        piece = found[0] if found else None
        if isinstance(piece, Failure):
            piece.raiseException()
        return piece

    def _publish(self, piece: RecordedRows) -> None:
        def taken(answer: Appended) -> None:
            self._heard_at = self._reactor.seconds()
            count = len(piece.rows)
            self.taken += count
            self._progress.at(self.taken)
            if not self._quiet:
                tokens = (
                    [answer.last] * count if piece.batch else range(answer.first, answer.last + 1)
                )
                start = f"{answer.stream} {answer.instance}"
                write_out("".join(f"{start} {token}\n" for token in tokens).encode())

        def failed(failure: Failure) -> None:
            if self._failure is None:
                self._failure = self._explained(failure, piece)
                if self._reading is not None and not self._reading.called:
                    self._reading.callback(None)

        self._last = self._writer.publish(
            piece.stream, piece.rows, batch=piece.batch, instance=piece.instance or None
        ).addCallbacks(taken, failed)

    def _explained(self, failure: Failure, piece: RecordedRows) -> Exception:
        """Return a failure with the place in the input that it is about."""
        error = failure.value
        if isinstance(error, PublishRefused):
            if error.reason == Reason.STREAM.value:
                return ConfigError(str(error))
            if error.reason == Reason.ROW.value and error.value < len(piece.places):
                told = refused(error, error.value, piece.places[error.value])
                return NotTaken(f"{told}\n  {story(self.taken)}")
        return NotTaken(f"{error}\n  {story(self.taken)}")

    def _look(self) -> None:
        """Find out that nothing goes on."""
        writer = self._writer
        patience = self._retry_s
        if patience is None:
            patience = 10.0 if writer.claimed.called else 0.0
        if writer.connected or not writer.last_error:
            self._heard_at = self._reactor.seconds()
        elif self._reactor.seconds() - self._heard_at >= patience and not self._stuck.called:
            self._stuck.errback(
                ConnectionFailed(writer.last_error, reason=CloseReason.CONNECTION_LOST)
            )

    async def _or_stuck(self, waited: Deferred[Any]) -> Any:
        """Wait for *waited*, or until the server was away for too long."""
        done: Deferred[None] = Deferred()

        def tell(result: Any) -> Any:
            if isinstance(result, Failure):
                self._broken = result.value
            if not done.called:
                done.callback(None)
            return None if isinstance(result, Failure) else result

        for deferred in (waited, self._stuck, self._writer.failed):
            _ = deferred.addBoth(tell)
        if self._broken is None:
            await done
        if self._broken is not None:
            raise self._failure or NotTaken(f"{self._broken}\n  {story(self.taken)}")


def write_rows(
    address: Address,
    chunks: Iterable[RecordedRows],
    retry_s: float | None,
    *,
    quiet: bool,
    told: bool = True,
) -> int:
    """Publish *chunks* over the line protocol, and return how many rows that were.

    Args:
        address: The server.
        chunks: The rows.
        retry_s: For how long it may be away or busy; None is 10 s, once it has answered.
        quiet: Whether no line is printed for each row.
        told: Whether a person is told how far it is.

    Raises:
        NotTaken: They are not all safe.
        ConfigError: There is no such stream.
    """
    logs.configure("error")
    taken = 0

    async def main(reactor: Reactor) -> int:
        nonlocal taken
        out = None if told else io.StringIO()
        with Progress("rows", out=out, beside_rows=not quiet) as progress:
            writing = Writing(reactor, address, retry_s, quiet=quiet, progress=progress)
            try:
                await writing.run(chunks)
            finally:
                taken = writing.taken
        return 0

    run_until_done(main)
    return taken
