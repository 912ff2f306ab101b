"""Handing out what is new: from the log to all who are at the head (protocol.md section 10).

A connection is a set of cursors over logs. While its socket takes everything it is *at the
head*: it belongs to a `Group` of readers that want the same lines in the same form, owns no
cursor, and gets the very bytes that the others get. When the socket is full it leaves the
group, and remembers nothing but when that was; nothing is buffered for it. Once the socket
drains it is served from the log (`Behind`) until it is at the head again, and joins the group.

Pokes within one reactor turn are coalesced: one rendering for each form, one write for each
connection. What is published into a quiet hub goes out at once, without waiting for the turn
to end; what follows it in the same turn is coalesced, and so is everything from the next turn
on for as long as turns bring more than one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tcprepl import limits, metrics
from tcprepl.clocks import Reactor
from tcprepl.ids import IncarnationId, InstanceName, Pair, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.replication.serving.behind import Behind, place, say_omitted
from tcprepl.replication.serving.heads import Head, Heads
from tcprepl.replication.serving.readers import (
    ANY,
    Backlog,
    Group,
    Groups,
    Lag,
    Reader,
    Subscription,
    Track,
)
from tcprepl.replication.serving.rendering import (
    WireForm,
    error_line,
    position_line,
    render_rows,
)
from tcprepl.streams.lineage import Places
from tcprepl.streams.log import Block, Log

log = get_logger(__name__)


class _Move(NamedTuple):
    """A position that moved without rows."""

    stream: StreamName
    instance: InstanceName
    before: Token
    now: Token


class Hub:
    """Fans the log out to its readers.

    Invariant: a reader has, for each pair it wants, exactly the rows up to the head of the pair
    (at the head), or up to its cursor or where the head was when it left (behind), in order,
    each once.

    Args:
        reactor: For coalescing within a turn and for the time.
        stream_log: The log; the hub listens to it from now on.
        instance: Our own instance: the one that 2017 peers are told of.

    Attributes:
        heads: How far each pair has been handed out; for looking only.
        behind: Serves those who are behind; for looking only.
    """

    def __init__(self, reactor: Reactor, stream_log: Log, instance: InstanceName) -> None:
        self._reactor = reactor
        self._log = stream_log
        self.instance = instance
        self._heads = Heads()
        self.heads = self._heads.by_pair
        self._groups = Groups()
        self.behind = Behind(
            reactor, stream_log, self._heads, self._join_head, self._leave_head, self._failed
        )
        self._pending: list[Block | _Move] = []
        self._turn_end: Any = None
        self._bursting = False
        self._turn_open = False
        self._events_of_turn = 0
        self._closed = False
        now: float = reactor.seconds()
        for pair in stream_log.pairs():
            # when its rows came is not known: they are at least as old as this
            self._heads.add(pair, stream_log.position(*pair)).sample(now)
        stream_log.add_listener(self._publish)
        stream_log.add_position_listener(self._position_moved)

    @property
    def incarnation(self) -> IncarnationId:
        """The incarnation of the log whose rows readers get."""
        return self._log.history.current

    # -- from the log ------------------------------------------------------------------

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
        self._events_of_turn += 1
        if self._turn_open or self._bursting:
            self._pending.append(event)
        if self._turn_open:
            return
        self._turn_open = True
        try:
            if not self._bursting:
                self._deliver([event])
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
            if segment and size + length > limits.SEGMENT_BYTES:
                self._deliver(segment)
                segment = []
                size = 0
            segment.append(event)
            size += length
        if segment:
            self._deliver(segment)

    def _deliver(self, segment: list[Block | _Move]) -> None:
        """Move the heads and write one segment to every group that wants some of it."""
        heads = self._heads
        now: float = self._reactor.seconds()
        heads.begin()
        fresh: dict[Pair, Token] = {}
        #: How far each head moves: to which token, by how many rows and bytes; the newest last.
        moves: dict[Pair, tuple[Token, int, int]] = {}
        for event in segment:
            pair = (event.stream, event.instance)
            known = moves.pop(pair, None)
            if known is None:
                if pair not in heads.by_pair:
                    fresh[pair] = event.first - 1 if isinstance(event, Block) else event.before
                known = (0, 0, 0)
            if isinstance(event, Block):
                _, rows, size = known
                moves[pair] = (event.last, rows + len(event.tokens), size + len(event.lines))
            else:
                moves[pair] = (event.now, *known[1:])
        wanted: dict[Group, list[Pair]] = {}
        for pair, (token, rows, size) in moves.items():
            head = heads.by_pair.get(pair) or heads.add(pair, fresh[pair])
            heads.move(head, token, rows, size)
            head.sample(now)
            readers = 0
            for group in self._groups.wanting(pair):
                wanted.setdefault(group, []).append(pair)
                readers += len(group.readers)
            if readers:
                head.sent_rows += rows * readers
                head.sent_bytes += size * readers
        rendered: dict[tuple[WireForm, tuple[Pair, ...] | None], bytes] = {}
        for group, wants in wanted.items():
            some = None if len(wants) == len(moves) else tuple(wants)
            key = (group.form, some)
            chunk = rendered.get(key)
            if chunk is None:
                try:
                    chunk = rendered[key] = self._render(group.form, segment, some, fresh)
                except Exception:  # noqa: BLE001 - told of each reader
                    for reader in tuple(group.readers):
                        self._failed(reader)
                    continue
            if chunk:
                self._write(group, chunk, now)

    def _write(self, group: Group, chunk: bytes, now: float) -> None:
        """Write *chunk* to every reader of *group*; those whose socket is full leave it."""
        group.written_at = now
        length = len(chunk)
        full: list[Reader] = []
        for reader in tuple(group.readers):
            reader.served_bytes += length
            try:
                if not reader.outlet.write(chunk):
                    full.append(reader)
            except Exception:  # noqa: BLE001 - told of the reader
                self._failed(reader)
        for reader in full:
            self._leave_head(reader)

    def _render(
        self,
        form: WireForm,
        segment: list[Block | _Move],
        some: Collection[Pair] | None,
        fresh: dict[Pair, Token],
    ) -> bytes:
        """Return the lines of the events of *some*; before those of a new pair its POSITION."""
        parts: list[bytes] = []
        verbatim_bytes = form.verbatim_bytes
        wants = None if some is None else set(some)
        announced: set[Pair] = set()
        for event in segment:
            pair = (event.stream, event.instance)
            if wants is not None and pair not in wants:
                continue
            if pair in fresh and pair not in announced:
                announced.add(pair)
                parts.append(position_line(form, *pair, fresh[pair], fresh[pair]))
            if isinstance(event, _Move):
                if fresh.get(pair) != event.now:
                    parts.append(position_line(form, *event))
            elif len(event.lines) <= verbatim_bytes:  # nearly always
                parts.append(event.lines)
            else:
                result = render_rows(form, *pair, event.tokens, event.lines)
                if result.omitted:
                    say_omitted(form, pair, result.omitted, "every peer")
                parts.append(result.lines)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- readers -----------------------------------------------------------------------

    def subscribe(
        self,
        reader: Reader,
        form: WireForm,
        pattern: Pair,
        asked: Token | None,
        *,
        places: Places = (),
        only_instance: InstanceName | None = None,
        owed: bool = True,
    ) -> None:
        """Add *pattern* to what *reader* gets, from *asked* on.

        The reader leaves its group; call `serve` to bring it to the head again, once for as
        many calls of this as there are.

        Args:
            reader: The reader.
            form: The form of its lines from now on.
            pattern: A stream and an instance, `ANY` standing for all of them that the
                reader has not subscribed by name.
            asked: Serve rows after this token; None is from now on.
            places: In which incarnations of the log it got what it has, if it says.
            only_instance: Tell the reader of this instance alone (2017).
            owed: Whether it is told where each pair stands once it is at the head of it.
        """
        if reader.backlog is None:
            self._leave_head(reader)
        backlog = reader.backlog
        assert backlog is not None
        self.behind.catch_up(reader, backlog)
        had, by_name = reader.subscription, ANY not in pattern
        if by_name and pattern not in self.heads:
            backlog.absent[pattern] = self._absent(reader, form, pattern, asked or 0)
        elif by_name and asked is None:
            backlog.remove(pattern)  # it is at the head of that
        elif asked is not None:
            for head in self._matching(pattern, only_instance):
                if by_name or not had.wants(head.pair):
                    self._ask(backlog, head, asked, places, form)
        reader.form = form
        had.add(pattern)
        had.only_instance = backlog.owed.only_instance = only_instance
        if owed:
            backlog.owed.add(pattern)
        if backlog.told:
            again = Subscription((pattern,))
            backlog.told = {pair for pair in backlog.told if not again.wants(pair)}

    def _matching(self, pattern: Pair, only_instance: InstanceName | None) -> list[Head]:
        found = Subscription((pattern,), only_instance)
        if ANY not in pattern:
            return [self.heads[pattern]] if found.wants(pattern) else []
        return [head for pair, head in self.heads.items() if found.wants(pair)]

    def _ask(
        self, backlog: Backlog, head: Head, asked: Token, places: Places, form: WireForm
    ) -> None:
        """Let the reader go on from *asked*; from the head nothing needs to be done."""
        if asked == head.token and not places:
            backlog.remove(head.pair)
            return
        cursor = self._log.cursor(head.pair, asked, places)
        track = Track(head, cursor, begun=not form.rdata_instance)
        place(track)
        backlog.add(track)

    def _absent(self, reader: Reader, form: WireForm, pair: Pair, asked: Token) -> bytes:
        """Return what is to be said of a pair that nobody has written: a question makes nothing."""
        stream, instance = pair
        where = position_line(form, stream, instance, 0, 0)
        if not asked:
            return where
        reader.gaps += 1
        metrics.GAPS.labels(stream).inc()
        text = f"cannot resume {stream} of {instance} after {asked}: its position is 0"
        return error_line(form, f"{text}; forget its state and read on from 0") + where

    def resume(self, reader: Reader, tokens: Mapping[Pair, Token]) -> None:
        """Let *reader*, which has subscribed and is not served yet, go on after *tokens*.

        It is told nothing before their rows: it knows where it stands.
        """
        backlog = reader.backlog
        assert backlog is not None
        for pair, token in tokens.items():
            head = self.heads.get(pair)
            if head is not None and token < head.token and reader.subscription.wants(pair):
                track = Track(head, self._log.cursor(pair, token), begun=True)
                place(track)
                backlog.add(track)

    def standing(self, reader: Reader) -> dict[Pair, Token]:
        """Return up to where *reader* has been given each pair that it wants."""
        wants, backlog = reader.subscription.wants, reader.backlog
        wanted = [head for pair, head in self.heads.items() if wants(pair)]
        if backlog is None:
            return {head.pair: head.token for head in wanted}
        found = {head.pair: self._heads.at(head, backlog.since).token for head in wanted}
        found.update((track.head.pair, track.cursor.token) for track in backlog.order)
        return found

    def unsubscribe(self, reader: Reader) -> None:
        """Forget *reader*: its connection has ended."""
        reader.live = False
        self._groups.leave(reader)
        backlog, reader.backlog = reader.backlog, None
        if backlog is not None:
            self._heads.forget(backlog.since)

    def _failed(self, reader: Reader) -> None:
        """Let go of *reader*: an error, which is being handled, may have kept rows from it.

        It must get nothing that comes after them. Once it is back it asks for them.
        """
        log.exception("replication.reader.failed", reader=reader.label)
        self.unsubscribe(reader)
        if reader.owner is not None:
            reader.owner.failed()
        else:
            reader.outlet.abort()

    def _leave_head(self, reader: Reader) -> None:
        """Let *reader* leave its group; what it has is what has been handed out so far."""
        self._groups.leave(reader)
        if reader.live:
            moment = self._heads.moment
            self._heads.remember(moment)
            reader.backlog = Backlog(moment, self._reactor.seconds())

    def _join_head(self, reader: Reader, backlog: Backlog) -> None:
        self._heads.forget(backlog.since)
        reader.paused_s += self._reactor.seconds() - backlog.began_at
        reader.backlog = None
        self._groups.join(reader)
        if reader.on_head is not None:
            reader.on_head()

    def drained(self, reader: Reader) -> None:
        """Go on with *reader*: its socket has taken everything."""
        if reader.backlog is not None:
            self.behind.serve(reader)

    def serve(self, reader: Reader) -> None:
        """Give *reader* what it is owed, as much as its socket takes, until it is at the head."""
        self.behind.serve(reader)

    # -- looking -----------------------------------------------------------------------

    def lag(self, reader: Reader) -> Lag:
        """Return how far *reader* is behind, over all its streams; the stream is the oldest."""
        backlog = reader.backlog
        if backlog is None:
            return Lag()
        #: Where the reader is, the rows that it has had, and the bytes that it has not.
        had: dict[Head, tuple[Token, int, int]] = {}
        for track in backlog.order:
            head, cursor, size = track.head, track.cursor, track.size_bytes
            left = cursor.bytes_to(head.token) if size is None else head.size_bytes - size
            had[head] = (cursor.token, track.rows, left)
        for head in self._heads.moved_since(backlog.since):
            if head.pair not in backlog.tracks and reader.subscription.wants(head.pair):
                was = self._heads.at(head, backlog.since)
                had[head] = (was.token, was.rows, head.size_bytes - was.size_bytes)
        now: float = self._reactor.seconds()
        lag = Lag()
        for head, (token, rows, left) in had.items():
            if token >= head.token:
                continue
            age = head.age_of(token, now)
            oldest = lag.stream is None or age > lag.seconds
            lag = Lag(
                lag.rows + max(1, head.rows - rows),
                lag.bytes + max(0, left),
                age if oldest else lag.seconds,
                head.pair[0] if oldest else lag.stream,
            )
        return lag

    def close(self) -> None:
        """Hand out what is pending and stop; the log must not publish any more."""
        self.flush()
        self._closed = True
        self.behind.close()
