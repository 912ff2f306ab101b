"""Serving those who are behind: page by page, in turns, until they are at the head.

Whoever is not at the head has a `Backlog`. It is served as fast as its socket takes what it
is given, one page at a time, and all who are behind share a budget of bytes for each turn of
the reactor: however many they are, a turn takes no longer, and who is at the head hardly
notices. What comes from the disk is read in a thread; meanwhile others are served.

This is the place where the line protocol words what a cursor answers (protocol.md section 7.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from tcprepl import limits, metrics
from tcprepl.clocks import Reactor
from tcprepl.errors import LogUnavailable
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.display import counted
from tcprepl.replication.serving.heads import Head, Heads
from tcprepl.replication.serving.readers import EVERYTHING, Backlog, Reader, Track
from tcprepl.replication.serving.rendering import (
    WireForm,
    error_line,
    position_line,
    render_rows,
)
from tcprepl.streams.cursor import AT_HEAD, Limits, Restart, Void
from tcprepl.streams.gaps import Cause, Gap, outgrows
from tcprepl.streams.log import Log, Page
from tcprepl.streams.pages import Reading

log = get_logger(__name__)

#: What a turn is charged for a reader at least, in bytes: to look at one takes time, too.
_LEAST_CHARGE = 4_096


class Behind:
    """Brings readers to the head.

    Args:
        reactor: For turns.
        stream_log: What they read.
        heads: How far everything has been handed out.
        join: Called with a reader that has everything, to let it join those at the head.
        leave: Called with a reader that has joined them and whose socket is full.
        failed: Called with a reader that an error, which is being handled, keeps from going on.

    Attributes:
        served_bytes: Bytes of lines that they were given.
        full_turns: Turns at whose end somebody could have been given more.
    """

    def __init__(
        self,
        reactor: Reactor,
        stream_log: Log,
        heads: Heads,
        join: Callable[[Reader, Backlog], object],
        leave: Callable[[Reader], object],
        failed: Callable[[Reader], object],
    ) -> None:
        self._reactor = reactor
        self._log = stream_log
        self._heads = heads
        self._join = join
        self._leave = leave
        self._failed = failed
        self._queue: deque[Reader] = deque()
        self._left = limits.TURN_BYTES
        self._turn_call: Any = None
        self._retries: set[Any] = set()
        self._running = False
        self.served_bytes = 0
        self.full_turns = 0

    # -- turns -------------------------------------------------------------------------

    def serve(self, reader: Reader) -> None:
        """Give *reader* what it is owed: now if this turn has bytes left, else in its turn."""
        if not reader.queued:
            reader.queued = True
            self._queue.append(reader)
        self._run()

    def _told(self, reader: Reader) -> None:
        """Go on with *reader*: a page that it waited for is there, and takes memory."""
        if reader.queued:
            self._queue.remove(reader)
        reader.queued = True
        self._queue.appendleft(reader)
        self._run()

    def _run(self) -> None:
        """Serve those who wait, as far as this turn goes."""
        if self._running:
            return  # a socket that was written to has led back here
        self._running = True
        try:
            while self._queue and self._left > 0:
                reader = self._queue.popleft()
                reader.queued = False
                try:
                    charge = self._serve(reader)
                except Exception:  # noqa: BLE001 - told of the reader
                    charge = 0
                    self._failed(reader)
                self._left -= max(_LEAST_CHARGE, charge)
        finally:
            self._running = False
            if self._left < limits.TURN_BYTES and self._turn_call is None:
                self._turn_call = self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._turn_call = None
        self.full_turns += bool(self._queue)
        self._left = limits.TURN_BYTES
        self._run()

    def close(self) -> None:
        """Serve nobody any more."""
        self._queue.clear()
        for call in (self._turn_call, *self._retries):
            if call is not None:
                call.cancel()
        self._turn_call = None
        self._retries.clear()

    # -- one reader --------------------------------------------------------------------

    def catch_up(self, reader: Reader, backlog: Backlog) -> None:
        """Give *reader* a track for each pair that has moved since it was looked at last."""
        heads, wants = self._heads, reader.subscription.wants
        if backlog.since == heads.moment:
            return
        for head in heads.moved_since(backlog.since):
            pair = head.pair
            if pair in backlog.tracks or not wants(pair):
                continue
            was = heads.at(head, backlog.since)
            new = head.born > backlog.since or (
                reader.form.rdata_instance and backlog.owed.wants(pair) and pair not in backlog.told
            )
            track = Track(head, self._log.cursor(pair, was.token), begun=not new)
            track.rows, track.size_bytes = was.rows, was.size_bytes
            backlog.add(track)
        heads.forget(backlog.since)
        heads.remember(heads.moment)
        backlog.since = heads.moment

    def _serve(self, reader: Reader) -> int:
        """Give *reader* one page; return the bytes to charge for that."""
        backlog = reader.backlog
        if backlog is None or not reader.live or reader.outlet.busy:
            return 0
        self.catch_up(reader, backlog)
        chunk, charge, more = self._chunk(reader, backlog)
        reader.served_bytes += len(chunk)
        self.served_bytes += len(chunk)
        if backlog.tracks:
            if chunk and not reader.outlet.write(chunk):
                return charge  # it calls back when it has drained
            if more and not reader.queued:
                reader.queued = True
                self._queue.append(reader)
            return charge
        chunk += self._where_it_stands(reader, backlog)
        self._join(reader, backlog)
        if chunk and not reader.outlet.write(chunk):
            self._leave(reader)
        return charge

    def _retry(self, reader: Reader, error: LogUnavailable) -> None:
        """Ask the disk, which refuses, again in a while."""
        log.error("replication.reader.waits", reader=reader.label, error=str(error))

        def again() -> None:
            self._retries.discard(call)
            self.serve(reader)

        call = self._reactor.callLater(limits.READ_RETRY_S, again)
        self._retries.add(call)

    def _chunk(self, reader: Reader, backlog: Backlog) -> tuple[bytes, int, bool]:
        """Return lines of as many pairs as fill a page, what they cost, and if there are more."""
        parts = list(backlog.absent.values())
        backlog.absent.clear()
        size, waiting = 0, 0
        for _ in range(len(backlog.order)):
            track = backlog.order.popleft()
            if track.reading is not None and not track.reading.done:
                backlog.order.append(track)
                waiting += 1
                continue
            try:
                said = self._step(reader, track)
            except LogUnavailable as error:
                backlog.order.append(track)
                self._retry(reader, error)
                return b"".join(parts), size, False
            if isinstance(said, Reading):
                track.reading = said
                backlog.order.append(track)
                waiting += 1
                if not said.awaited:
                    size += limits.PAGE_BYTES  # whoever asks first pays for the reading
                said.tell(lambda: self._told(reader))
            else:
                track.reading = None
                parts.append(said)
                size += len(said)
                if track.cursor.token >= track.head.token:
                    parts.append(self._arrived(reader, backlog, track))
                else:
                    backlog.order.append(track)
            if size >= limits.PAGE_BYTES:
                break
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        return chunk, size, waiting < len(backlog.order)

    # -- in words ----------------------------------------------------------------------

    def _step(self, reader: Reader, track: Track) -> bytes | Reading:
        """Return the lines of what the cursor of *track* answers, or what to wait for."""
        cursor, pair = track.cursor, track.head.pair
        before = cursor.token
        answer = cursor.next(Limits(track.head.token, limits.PAGE_ROWS, limits.PAGE_BYTES))
        if isinstance(answer, Reading):
            return answer
        if isinstance(answer, Restart):
            return self._restart(reader, track, answer)
        if isinstance(answer, Gap):
            return self._gap(reader, track, answer)
        if answer is AT_HEAD:
            return b""
        begin = b""
        if not track.begun:
            track.begun = True
            begin = position_line(reader.form, *pair, before, before)
        lines = self._rows(reader, track, answer, before)
        return begin + lines if begin else lines

    def _rows(self, reader: Reader, track: Track, page: Page, before: Token) -> bytes:
        track.rows += len(page.tokens)
        if track.size_bytes is not None:
            track.size_bytes += len(page.lines)
        track.head.sent_rows += len(page.tokens)
        track.head.sent_bytes += len(page.lines)
        if not page.tokens:
            if track.sent is None:
                track.sent = before
            return b""
        last = page.tokens[-1]
        track.sent = last if last < page.upto else None
        result = render_rows(reader.form, *track.head.pair, page.tokens, page.lines)
        if result.omitted:
            say_omitted(reader.form, track.head.pair, result.omitted, reader.label)
        return result.lines

    def _gap(self, reader: Reader, track: Track, gap: Gap) -> bytes:
        form, pair = reader.form, track.head.pair
        stream, instance = pair
        place(track)
        where = position_line(form, stream, instance, gap.upto, gap.upto)
        if gap.cause is Cause.RETENTION:
            track.begun = True
            if not gap.after:
                return where  # it asked for what is held
            self._count(reader, track, gap.after, gap.upto, gap.detail)
            text = (
                f"rows of {stream} of {instance} after {gap.after} up to {gap.upto} "
                f"({counted(gap.upto - gap.after, 'token')}) are gone: {gap.detail}; "
                f"service begins after {gap.upto}"
            )
            return error_line(form, text) + where
        begin = error = b""
        if not track.begun:
            track.begun = True
            begin = position_line(form, stream, instance, gap.after, gap.after)
        if gap.cause is Cause.DAMAGE:
            self._count_damage(reader, track, gap)
            text = f"cannot read {stream} of {instance} after {gap.after}: {gap.words()}"
            error = error_line(form, text)
        else:
            reader.gaps += gap.lost
        return begin + error + where

    def _restart(self, reader: Reader, track: Track, restart: Restart) -> bytes:
        form, (stream, instance) = reader.form, track.head.pair
        place(track)
        track.begun = True
        where = position_line(form, stream, instance, restart.start, restart.start)
        if not restart.after:
            return where  # it has nothing that could be void
        self._count(reader, track, restart.after, restart.start, restart.why.value)
        after, held, start = restart.after, restart.held, restart.start
        if restart.why is Void.AHEAD:
            text = (
                f"cannot resume {stream} of {instance} after {after}: its position is {held}; "
                f"forget its state and read on from {start}"
            )
        elif restart.compacted:
            text = (
                f"cannot resume {stream} of {instance} after {after}: the log begins after "
                f"{held} ({restart.bound}); forget its state, the newest row of each key follows"
            )
        else:
            text = (
                f"cannot resume {stream} of {instance} after {after}: this log shares the "
                f"reader's rows up to {held} only; forget those above and read on from there"
            )
        return error_line(form, text) + where

    def _count_damage(self, reader: Reader, track: Track, gap: Gap) -> None:
        """Count damage; many blocks in a row are logged a few times, from the first on."""
        after, upto = track.damage
        if upto != gap.after:
            after = upto = gap.after
        track.damage = after, gap.upto
        told = outgrows(gap.upto - after, upto - after)
        self._count(reader, track, after, gap.upto, gap.detail, told=told)

    def _count(
        self,
        reader: Reader,
        track: Track,
        after: Token,
        begins_after: Token,
        reason: str,
        *,
        told: bool = True,
    ) -> None:
        stream, instance = track.head.pair
        reader.gaps += 1
        metrics.GAPS.labels(stream).inc()
        if not told:
            return
        log.warning(
            "replication.reader.gap",
            reader=reader.label,
            stream=stream,
            instance=instance,
            after=after,
            begins_after=begins_after,
            reason=reason,
        )

    def _arrived(self, reader: Reader, backlog: Backlog, track: Track) -> bytes:
        """Let go of *track*, which is at the head; return the last that is to be said of it."""
        head = track.head
        del backlog.tracks[head.pair]
        sent = head.token if track.sent is None else track.sent
        if backlog.owed.wants(head.pair) and head.pair not in backlog.told:
            backlog.told.add(head.pair)
        elif track.begun and sent >= head.token:
            return b""
        return position_line(reader.form, *head.pair, sent, head.token)

    def _where_it_stands(self, reader: Reader, backlog: Backlog) -> bytes:
        """Return POSITION of every pair that *reader* is still owed."""
        owed, told = backlog.owed, backlog.told
        heads: Iterable[Head] = self._heads.by_pair.values()
        if not owed.patterns:
            return b""
        if EVERYTHING not in owed.patterns or owed.only_instance is not None:
            heads = (head for head in heads if owed.wants(head.pair))
        if told:
            heads = (head for head in heads if head.pair not in told)
        form = reader.form
        if form.rdata_instance and form.position_tokens == 2:
            return b"".join(
                [b"POSITION %b %d %d\n" % (head.name, head.token, head.token) for head in heads]
            )
        return b"".join([position_line(form, *head.pair, head.token, head.token) for head in heads])


def place(track: Track) -> None:
    """Count from where the cursor is; rows before the hub began by their tokens, a lower bound."""
    head = track.head
    track.sent = None
    track.rows = head.rows - max(0, head.token - track.cursor.token)
    track.size_bytes = None


def say_omitted(form: WireForm, pair: Pair, tokens: Collection[Token], reader: str) -> None:
    """Count and log the rows that were left out because *form* has no lines that long."""
    stream: StreamName
    instance: InstanceName
    stream, instance = pair
    metrics.DROPPED.labels("row", "line_too_long").inc(len(tokens))
    log.warning(
        "replication.row.left_out",
        stream=stream,
        instance=instance,
        tokens=list(tokens)[:10],
        reader=reader,
        limit_bytes=form.max_line_bytes,
        reason="its line is longer than this dialect takes; POSITION announces the gap",
    )
