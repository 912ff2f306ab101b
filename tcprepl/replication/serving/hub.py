"""Log heads to connections: cursors instead of queues (protocol.md section 10).

A connection is a set of cursors over logs. While its socket takes everything it is *at the
head*: it belongs to a `Group` of readers that want the same lines in the same form, owns no
cursor, and gets the very bytes that the others get. When the socket is full it leaves the
group with a cursor for each stream; nothing is buffered for it; once the socket drains it
is served from the log until it is at the head again, and joins the group.

Pokes within one reactor turn are coalesced: one rendering for each form, one write for each
connection. What is published into a quiet hub goes out at once, without waiting for the turn
to end; what follows it in the same turn is coalesced, and so is everything from the next turn
on for as long as turns bring more than one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import structlog

from tcprepl import metrics
from tcprepl.errors import LogCorrupt, TokenTooOld
from tcprepl.ids import IncarnationId, InstanceName, StreamName, Token
from tcprepl.replication.serving.readers import (
    ANY,
    Backlog,
    Group,
    Head,
    Lag,
    Pair,
    Reader,
    Subscription,
)
from tcprepl.replication.serving.rendering import (
    WireForm,
    error_line,
    position_line,
    render_rows,
)
from tcprepl.streams.lineage import Places
from tcprepl.streams.log import Block, Log, Page

log = structlog.get_logger()

#: Most bytes rendered and written as one chunk; what a full socket leaves over is a view of it.
SEGMENT_BYTES = 65_536
#: Most bytes read from the log for one reader at a time.
PAGE_BYTES = 262_144
#: Most rows read from the log for one reader at a time.
PAGE_ROWS = 4_096
#: Most bytes one reader is served in a row before the others have their turn.
SERVE_BYTES = 1_048_576


class _Move(NamedTuple):
    """A position that moved without rows."""

    stream: StreamName
    instance: InstanceName
    before: Token
    now: Token


class Hub:
    """Fans the log out to its readers.

    Invariant: a reader has, for each pair it wants, exactly the rows up to `heads` (at the
    head) or up to its cursor (behind), in order, each once.

    Args:
        reactor: For coalescing within a turn and for the time.
        stream_log: The log; the hub listens to it from now on.
        instance: Our own instance: the one that 2017 peers are told of.
    """

    def __init__(
        self,
        reactor: Any,
        stream_log: Log,
        instance: InstanceName,
    ) -> None:
        self._reactor = reactor
        self._log = stream_log
        self.instance = instance
        self.heads: dict[Pair, Head] = {}
        self._groups: dict[tuple[WireForm, frozenset[Pair], InstanceName | None], Group] = {}
        self._pending: list[Block | _Move] = []
        self._turn_end: Any = None
        self._bursting = False
        self._turn_open = False
        self._events_of_turn = 0
        self._closed = False
        for pair in stream_log.pairs():
            self.heads[pair] = Head(stream_log.position(*pair))
        stream_log.add_listener(self._block_published)
        stream_log.add_position_listener(self._position_moved)

    @property
    def incarnation(self) -> IncarnationId:
        """The incarnation of the log whose rows readers get."""
        return self._log.history.current

    # -- from the log ------------------------------------------------------------------

    def _block_published(self, block: Block) -> None:
        self._publish(block)

    def _position_moved(
        self, stream: StreamName, instance: InstanceName, before: Token, now: Token
    ) -> None:
        if self._log.gaps.covers((stream, instance), before, now):
            before = now  # rows may be missing: whoever is below *now* has to see it
        self._publish(_Move(stream, instance, before, now))

    def announce(self, stream: StreamName, instance: InstanceName) -> None:
        """Tell readers of a pair that the log has come to know, before it has any rows."""
        if (stream, instance) not in self.heads:
            position = self._log.position(stream, instance)
            self._publish(_Move(stream, instance, position, position))

    def _publish(self, event: Block | _Move) -> None:
        if self._closed:
            return
        self._pending.append(event)
        self._events_of_turn += 1
        if self._turn_open:
            return
        self._turn_open = True
        try:
            if not self._bursting:
                self._hand_out()
        finally:
            self._turn_end = self._reactor.callLater(0, self._end_turn)

    def _end_turn(self) -> None:
        """Hand out what came after the first of this turn; note whether it brought more."""
        self._turn_end = None
        self._turn_open = False
        self._bursting = self._events_of_turn > 1
        self._events_of_turn = 0
        self._hand_out()

    def flush(self) -> None:
        """Hand everything published so far to every reader at the head."""
        if self._turn_end is not None:
            self._turn_end.cancel()
            self._end_turn()

    def _hand_out(self) -> None:
        pending = self._pending
        self._pending = []
        if len(pending) == 1:
            self._deliver(pending)
            return
        segment: list[Block | _Move] = []
        size = 0
        for event in pending:
            length = len(event.lines) if type(event) is Block else 64
            if segment and size + length > SEGMENT_BYTES:
                self._deliver(segment)
                segment = []
                size = 0
            segment.append(event)
            size += length
        if segment:
            self._deliver(segment)

    def _deliver(self, segment: list[Block | _Move]) -> None:
        """Write one segment to every group and move the heads."""
        now: float = self._reactor.seconds()
        fresh: dict[Pair, Token] = {}
        for event in segment:
            pair = (event.stream, event.instance)
            head = self.heads.get(pair)
            if head is None:
                before = event.first - 1 if isinstance(event, Block) else event.before
                fresh[pair] = before
                head = self.heads[pair] = Head(before)
            if type(event) is Block:
                head.token = event.last
                head.rows += len(event.tokens)
                head.bytes += len(event.lines)
            elif isinstance(event, _Move):
                head.token = event.now
            head.sample(now)
        rendered: dict[tuple[WireForm, tuple[bool, ...] | None], bytes] = {}
        for key, group in list(self._groups.items()):
            readers = group.readers
            if not readers:
                del self._groups[key]
                continue
            chunk = self._chunk(group, segment, fresh, rendered)
            if not chunk:
                continue
            group.written_at = now
            length = len(chunk)
            full: list[Reader] = []
            for reader in tuple(readers):
                reader.served_bytes += length
                if not reader.outlet.write(chunk):
                    full.append(reader)
            if full:
                self._fall_behind(full, now)

    def _chunk(
        self,
        group: Group,
        segment: list[Block | _Move],
        fresh: dict[Pair, Token],
        rendered: dict[tuple[WireForm, tuple[bool, ...] | None], bytes],
    ) -> bytes:
        """Return the bytes of *segment* for *group*, shared between groups that want the same."""
        if len(segment) == 1 and not fresh and type(event := segment[0]) is Block:
            if group.wants((event.stream, event.instance)):
                return self._render(group.form, event)
            return b""
        wanted = tuple(group.wants((event.stream, event.instance)) for event in segment)
        if not any(wanted):
            return b""
        key = (group.form, None if all(wanted) else wanted)
        chunk = rendered.get(key)
        if chunk is None:
            parts: list[bytes] = []
            announced: set[Pair] = set()
            for event, wants in zip(segment, wanted, strict=True):
                if not wants:
                    continue
                pair = (event.stream, event.instance)
                if pair in fresh and pair not in announced:
                    announced.add(pair)
                    parts.append(position_line(group.form, *pair, fresh[pair], fresh[pair]))
                if isinstance(event, Block):
                    parts.append(self._render(group.form, event))
                elif fresh.get(pair) != event.now:
                    parts.append(position_line(group.form, *event))
            chunk = rendered[key] = parts[0] if len(parts) == 1 else b"".join(parts)
        return chunk

    def _render(self, form: WireForm, block: Block) -> bytes:
        # nearly always these are the very bytes of the log
        result = render_rows(form, block.stream, block.instance, block.tokens, block.lines)
        if result.omitted:
            self._say_omitted(form, block.stream, block.instance, result.omitted, "every peer")
        return result.lines

    def _say_omitted(
        self,
        form: WireForm,
        stream: StreamName,
        instance: InstanceName,
        tokens: Collection[Token],
        reader: str,
    ) -> None:
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

    # -- readers -----------------------------------------------------------------------

    def subscribe(
        self,
        reader: Reader,
        form: WireForm,
        pattern: Pair,
        asked: Token | None,
        *,
        places: Places = (),
        announce: bool = True,
        only_instance: InstanceName | None = None,
    ) -> bytes:
        """Add *pattern* to what *reader* gets, from *asked* on.

        The reader leaves its group until `serve` has brought it to the head again.

        Args:
            reader: The reader.
            form: The form of its lines from now on.
            pattern: A stream and an instance, `ANY` standing for all of them that the
                reader has not subscribed by name.
            asked: Serve rows after this token; None is from now on.
            places: In which incarnations of the log it got what it has, if it says.
            announce: Whether the reader is owed POSITION when it has caught up.
            only_instance: Tell the reader of this instance alone (2017).

        Returns:
            Lines to send before anything else: where service begins, and what is missing.
        """
        before = reader.subscription
        self._leave_head(reader)
        backlog = reader.backlog
        assert backlog is not None
        reader.form = form
        reader.subscription = Subscription(before.patterns | {pattern}, only_instance)
        lines: list[bytes] = []
        if ANY not in pattern and pattern not in self.heads and announce:
            lines.append(self._absent(reader, pattern, asked or 0))
        for pair in self._matching(pattern, reader.subscription):
            if announce:
                backlog.owed.add(pair)
            if pair != pattern and before.wants(pair):
                continue  # it goes on from where it is
            if asked is None:
                self._place(backlog, pair, self.heads[pair].token)
                if announce and form.rdata_instance:
                    backlog.unbegun.add(pair)
            else:
                shared = self._log.history.common(pair, places) if places else asked
                if shared == asked:
                    lines.append(self._begin(reader, backlog, pair, asked))
                else:
                    lines.append(self._fork(reader, backlog, pair, asked, shared))
        return b"".join(lines)

    def _matching(self, pattern: Pair, subscription: Subscription) -> Iterator[Pair]:
        stream, instance = pattern
        for pair in list(self.heads):
            if stream in (ANY, pair[0]) and instance in (ANY, pair[1]) and subscription.wants(pair):
                yield pair

    def _begin(self, reader: Reader, backlog: Backlog, pair: Pair, asked: Token) -> bytes:
        """Place the cursor of *pair* at *asked*, or where service can begin."""
        head = self.heads[pair].token
        floor = self._log.floor(*pair)
        if floor <= asked <= head:
            self._place(backlog, pair, asked)
            if not reader.form.rdata_instance:
                return b""
            if asked == head:
                backlog.unbegun.add(pair)
                return b""
            return position_line(reader.form, *pair, asked, asked)
        return self._restart(reader, backlog, pair, asked)

    def _fork(
        self, reader: Reader, backlog: Backlog, pair: Pair, asked: Token, shared: Token | None
    ) -> bytes:
        """Place the cursor of a reader that has rows which the log never had."""
        stream, instance = pair
        if self._log.restart_point(*pair) < self._log.floor(*pair):
            return self._restart(reader, backlog, pair, asked)  # a state is read again whole
        common = shared or 0
        reader.gaps += 1
        metrics.GAPS.labels(stream).inc()
        log.warning(
            "replication.reader.forked",
            reader=reader.label,
            stream=stream,
            instance=instance,
            asked=asked,
            shared=shared,
            reason="the log was restored from a copy, or is another one",
        )
        begun = self._begin(reader, backlog, pair, common)
        start = backlog.cursors[pair]
        backlog.unbegun.discard(pair)
        text = (
            f"cannot resume {stream} of {instance} after {asked}: this log shares the reader's "
            f"rows up to {common} only; forget those above and read on from there"
        )
        where = position_line(reader.form, *pair, common, common)
        rest = b"" if start == common else begun  # the rows from there on are gone, too
        return error_line(reader.form, text) + where + rest

    def _absent(self, reader: Reader, pair: Pair, asked: Token) -> bytes:
        """Return what is to be said of a pair that nobody has written: a question makes nothing."""
        where = position_line(reader.form, *pair, 0, 0)
        if not asked:
            return where
        reader.gaps += 1
        metrics.GAPS.labels(pair[0]).inc()
        text = f"cannot resume {pair[0]} of {pair[1]} after {asked}: its position is 0"
        return error_line(reader.form, f"{text}; forget its state and read on from 0") + where

    def _restart(self, reader: Reader, backlog: Backlog, pair: Pair, asked: Token) -> bytes:
        """Place the cursor at the restart point and return the lines that say so."""
        stream, instance = pair
        head = self.heads[pair].token
        floor = self._log.floor(*pair)
        start = min(self._log.restart_point(*pair), head)
        self._place(backlog, pair, start)
        if start < floor:
            backlog.compacted.add(pair)
        where = position_line(reader.form, *pair, start, start)
        if asked == 0:
            return where
        reader.gaps += 1
        metrics.GAPS.labels(stream).inc()
        if asked > head:
            text = (
                f"cannot resume {stream} of {instance} after {asked}: its position is {head}; "
                f"forget its state and read on from {start}"
            )
        elif start < asked:
            text = (
                f"cannot resume {stream} of {instance} after {asked}: the log begins after "
                f"{floor} ({self._bound(pair, asked)}); forget its state, the newest row of "
                f"each key follows"
            )
        else:
            text = (
                f"rows of {stream} of {instance} after {asked} up to {floor} "
                f"({floor - asked} tokens) are gone: {self._bound(pair, asked)}; service "
                f"begins after {start}"
            )
        log.warning(
            "replication.reader.gap",
            reader=reader.label,
            stream=stream,
            instance=instance,
            asked=asked,
            floor=floor,
            begins_after=start,
        )
        return error_line(reader.form, text) + where

    def _bound(self, pair: Pair, asked: Token) -> str:
        """Return in words what made the rows after *asked* go: the setting that bounds them."""
        try:
            self._log.read(*pair, asked, asked + 1, limit_rows=1)
        except TokenTooOld as error:
            return error.bound
        return "the retention settings"

    def _place(self, backlog: Backlog, pair: Pair, token: Token) -> None:
        head = self.heads[pair]
        backlog.cursors[pair] = token
        backlog.compacted.discard(pair)
        backlog.sent.pop(pair, None)
        # Rows before the hub began are counted by their tokens: a lower bound.
        backlog.base_rows[pair] = head.rows - max(0, head.token - token)
        backlog.base_bytes[pair] = head.bytes

    def unsubscribe(self, reader: Reader) -> None:
        """Forget *reader*: its connection has ended."""
        reader.live = False
        if reader.group is not None:
            reader.group.readers.pop(reader, None)
            reader.group = None
        reader.backlog = None

    def _leave_head(self, reader: Reader) -> None:
        if reader.group is not None:
            reader.group.readers.pop(reader, None)
            reader.group = None
        if reader.backlog is None:
            reader.backlog = self._backlog_at_head(self._reactor.seconds())

    def _backlog_at_head(self, now: float) -> Backlog:
        heads = self.heads
        return Backlog(
            {pair: head.token for pair, head in heads.items()},
            {pair: head.rows for pair, head in heads.items()},
            {pair: head.bytes for pair, head in heads.items()},
            now,
        )

    def _fall_behind(self, readers: list[Reader], now: float) -> None:
        """Give each of *readers*, whose socket is full, its cursors."""
        for reader in readers:
            if reader.group is not None:
                reader.group.readers.pop(reader, None)
                reader.group = None
            if reader.live:
                reader.backlog = self._backlog_at_head(now)

    def drained(self, reader: Reader) -> None:
        """Go on with *reader*: its socket has taken everything."""
        if reader.backlog is not None:
            self.serve(reader)

    def serve(self, reader: Reader) -> None:
        """Give *reader* what it is owed, as much as its socket takes, until it is at the head."""
        if reader.serving or not reader.live:
            return
        reader.serving = True
        try:
            self._serve(reader)
        finally:
            reader.serving = False

    def _serve(self, reader: Reader) -> None:
        budget = SERVE_BYTES
        while True:
            backlog = reader.backlog
            if backlog is None or not reader.live or reader.outlet.busy:
                return
            chunk = self._next_chunk(reader, backlog)
            if not chunk:
                break
            reader.served_bytes += len(chunk)
            if not reader.outlet.write(chunk):
                return
            budget -= len(chunk)
            if budget <= 0:
                self._reactor.callLater(0, self.serve, reader)
                return
        farewell = self._final_positions(reader, backlog)
        self._join_head(reader, backlog)
        if farewell and not reader.outlet.write(farewell):
            self._fall_behind([reader], self._reactor.seconds())

    def _next_chunk(self, reader: Reader, backlog: Backlog) -> bytes:
        """Return one page of each stream that is behind; empty when none is."""
        parts: list[bytes] = []
        size = 0
        cursors = backlog.cursors
        heads = list(self.heads.items())
        backlog.turn = (backlog.turn + 1) % len(heads) if heads else 0
        for pair, head in heads[backlog.turn :] + heads[: backlog.turn]:
            if not reader.subscription.wants(pair):
                continue
            cursor = cursors.get(pair)
            if cursor is None:
                cursor = head.origin
                self._place(backlog, pair, cursor)
                parts.append(position_line(reader.form, *pair, cursor, cursor))
            if cursor >= head.token:
                continue
            if pair in backlog.unbegun:
                backlog.unbegun.discard(pair)
                parts.append(position_line(reader.form, *pair, cursor, cursor))
            upto = head.token
            gap = self._log.gaps.at(pair, cursor)
            if gap is not None:
                reader.gaps += gap.lost
                self._place(backlog, pair, min(gap.upto, upto))
                parts.append(position_line(reader.form, *pair, gap.upto, gap.upto))
                continue
            upto = self._log.gaps.readable(pair, cursor, upto)
            part = self._read(reader, backlog, pair, cursor, upto)
            parts.append(part)
            size += len(part)
            if size >= PAGE_BYTES:
                break
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _read(
        self, reader: Reader, backlog: Backlog, pair: Pair, cursor: Token, head: Token
    ) -> bytes:
        """Return the next page of *pair* for *reader* and move its cursor."""
        try:
            page = self._log.read(
                *pair,
                cursor,
                head,
                limit_rows=PAGE_ROWS,
                limit_bytes=PAGE_BYTES,
                compacted=pair in backlog.compacted,
            )
        except TokenTooOld:
            return self._restart(reader, backlog, pair, cursor)
        except LogCorrupt as error:
            log.error(
                "replication.log.corrupt",
                reader=reader.label,
                stream=pair[0],
                instance=pair[1],
                after=cursor,
                error=str(error),
            )
            metrics.GAPS.labels(pair[0]).inc()
            reader.gaps += 1
            self._place(backlog, pair, head)
            text = f"cannot read {pair[0]} of {pair[1]} after {cursor}: {error}"
            return error_line(reader.form, text) + position_line(reader.form, *pair, head, head)
        return self._take(reader, backlog, pair, cursor, page)

    def _take(
        self, reader: Reader, backlog: Backlog, pair: Pair, cursor: Token, page: Page
    ) -> bytes:
        backlog.cursors[pair] = page.upto
        backlog.base_rows[pair] += len(page.tokens)
        backlog.base_bytes[pair] += len(page.lines)
        if not page.tokens:
            backlog.sent.setdefault(pair, cursor)
            return b""
        last = page.tokens[-1]
        if last < page.upto:
            backlog.sent[pair] = last
        else:
            backlog.sent.pop(pair, None)
        result = render_rows(reader.form, *pair, page.tokens, page.lines)
        if result.omitted:
            self._say_omitted(reader.form, *pair, result.omitted, reader.label)
        return result.lines

    def _final_positions(self, reader: Reader, backlog: Backlog) -> bytes:
        """Return POSITION for what was just subscribed, and where rows end below the head."""
        parts: list[bytes] = []
        for pair, head in self.heads.items():
            sent = backlog.sent.get(pair, head.token)
            if pair in backlog.owed or sent < head.token:
                parts.append(position_line(reader.form, *pair, sent, head.token))
        return b"".join(parts)

    def _join_head(self, reader: Reader, backlog: Backlog) -> None:
        now: float = self._reactor.seconds()
        reader.paused_s += now - backlog.began_at
        reader.backlog = None
        subscription = reader.subscription
        key = (reader.form, subscription.patterns, subscription.only_instance)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(reader.form, subscription)
        group.readers[reader] = None
        reader.group = group

    # -- looking -----------------------------------------------------------------------

    def lag(self, reader: Reader) -> Lag:
        """Return how far *reader* is behind, over all its streams; the stream is the oldest."""
        backlog = reader.backlog
        if backlog is None:
            return Lag()
        now: float = self._reactor.seconds()
        rows = size = 0
        oldest = 0.0
        where: StreamName | None = None
        for pair, head in self.heads.items():
            if not reader.subscription.wants(pair):
                continue
            cursor = backlog.cursors.get(pair, head.origin)
            if cursor >= head.token:
                continue
            rows += max(1, head.rows - backlog.base_rows.get(pair, 0))
            size += max(0, head.bytes - backlog.base_bytes.get(pair, 0))
            age = head.age_of(cursor, now)
            if where is None or age > oldest:
                oldest, where = age, pair[0]
        return Lag(rows, size, oldest, where)

    def close(self) -> None:
        """Hand out what is pending and stop; the log must not publish any more."""
        self.flush()
        self._closed = True
