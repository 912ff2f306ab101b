"""Following a server: reconnect, resume, deliver in order (protocol.md sections 5, 7 and 17).

`ReplicationClient` is a Twisted service. It connects, asks for the chosen streams from the
positions it holds, and calls a handler with each batch in order. The position of a stream
advances only after the handler has succeeded, and a slow handler stops the reading from
the socket, not the memory.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Collection, Sequence
from types import CoroutineType
from typing import Any, TypeAlias

import structlog
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import limits, metrics
from tcprepl.background import run_as_background_process, run_in_background
from tcprepl.errors import BadRow, ConnectionFailed
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.protocol.commands import Command, PositionCommand, ReplicateCommand
from tcprepl.protocol.dialects import DEFAULT_INSTANCE, Dialect
from tcprepl.replication.catchup import CatchUp
from tcprepl.replication.connection import ClientConnection, connect
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore, PositionStore
from tcprepl.streams.registry import Registry

log = structlog.get_logger()

Pair: TypeAlias = tuple[StreamName, InstanceName]

#: Called with (stream, instance, token, rows) for each batch, in order; may be async.
RowHandler: TypeAlias = Callable[[StreamName, InstanceName, Token, Rows], object]
#: Called with (stream, instance, known, token) when a stream cannot go on; may be async.
ResetHandler: TypeAlias = Callable[[StreamName, InstanceName, Token | None, Token], object]
#: Called with (stream, instance, token) when a position was heard; may be async.
PositionHandler: TypeAlias = Callable[[StreamName, InstanceName, Token], object]


class ReplicationClient(Service):
    """Follows a server for as long as the service runs.

    Delivery, per (stream, instance): batches come in order, one at a time; a batch whose
    handler fails is delivered again until it succeeds, and nothing passes it. Positions are
    saved once the handlers of what one read from the socket brought have succeeded: a
    worker that is killed in between sees these batches again, unless its own writes and the
    positions are committed together (see `SqlitePositionStore`), in which case each row of
    a durable stream is seen exactly once.

    A row that does not fit its stream is quarantined: logged, counted, left out; the rest
    of its batch is delivered.

    Args:
        reactor: The reactor.
        endpoint: Where the server is.
        streams: Names of the streams to follow; None follows all.
        handler: Called with each batch; sync or async. Its failure is logged and retried.
        positions: Where positions are kept; in memory by default.
        name: How the server is to call us.
        server_name: The homeserver that it has to be; None takes any.
        since: Where to begin a stream for which no position is known: ``now`` or ``start``.
        on_reset: Called when a stream cannot go on from where we are: rows in
            ``(known, token]`` are lost when *token* is above *known*; state has to be
            forgotten when it is below. What follows begins after *token*.
        on_position: Called with each position heard: the stream is known up to there.
        on_command: Called with every other command received (ERROR, REMOTE_SERVER_UP, ...).
        on_connected: Called with this client when a connection is ready for commands.
        dialect: ``auto``, or the name of the dialect that the server speaks.
        catch_up: Where missed rows are fetched if the server's dialect cannot resume.
        registry: The streams and their rows; the built-in ones by default.
        max_attempts: How often a failing handler is called before the client stops and
            `failed` fires; None is for ever.

    Attributes:
        failed: Fires, with the failure, when a handler has failed for good.
        reconnects: Connections made after the first.
        last_error: Why the newest connection ended or could not be made; None at first.
        quarantined_rows: Rows left out because they do not fit their stream.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        streams: Collection[StreamName] | None,
        handler: RowHandler,
        *,
        positions: PositionStore | None = None,
        name: str = "tcprepl",
        server_name: ServerName | None = None,
        since: str = "now",
        on_reset: ResetHandler | None = None,
        on_position: PositionHandler | None = None,
        on_command: Callable[[Command], object] | None = None,
        on_connected: Callable[[ReplicationClient], object] | None = None,
        dialect: str = "auto",
        catch_up: CatchUp | None = None,
        registry: Registry | None = None,
        max_attempts: int | None = None,
    ) -> None:
        if since not in ("now", "start"):
            raise ValueError(f"since is {since!r}, expected 'now' or 'start'")
        self.reactor = reactor
        self.failed: Deferred[None] = Deferred()
        self.quarantined_rows = 0
        self.reconnects = 0
        self.last_error: str | None = None
        self._endpoint = endpoint
        self._streams = None if streams is None else tuple(streams)
        self._handler = handler
        self._worker_name = name
        self._server_name = server_name
        self._since = since
        self._on_reset = on_reset
        self._on_position = on_position
        self._on_command = on_command
        self._on_connected = on_connected
        self._dialect = dialect
        self._catch_up = catch_up
        self._registry = registry or Registry()
        self._max_attempts = max_attempts
        self._store: PositionStore = positions or MemoryPositionStore()
        self._known: dict[Pair, Token] = {}
        self._dirty: dict[Pair, Token] = {}
        self._connection: ClientConnection | None = None
        self._inbox: deque[object] = deque()
        self._working = False
        self._blocked = False
        self._idle_waiter: Deferred[None] | None = None
        self._delay: Deferred[None] | None = None
        self._finished: Deferred[None] | None = None
        self._received_rows: dict[StreamName, int] = {}
        self._legacy = False
        self._catching_up: dict[Pair, Token] = {}
        self._refused_streams: set[StreamName] = set()
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []

    # -- life --------------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to follow (Twisted calls this)."""
        if self.running:
            return
        self.running = True
        self._known = dict(self._store.load())
        rows = self._received_rows
        self._sources = [
            (
                metrics.INBOUND_RDATA,
                metrics.INBOUND_RDATA.add_source(
                    lambda: [((stream,), float(count)) for stream, count in rows.items()]
                ),
            ),
            (
                metrics.COMMAND_QUEUE,
                metrics.COMMAND_QUEUE.add_source(lambda: [(("*",), float(len(self._inbox)))]),
            ),
        ]
        self._finished = Deferred()
        run_as_background_process("replication_client", self._run)

    def stopService(self) -> Deferred[None]:
        """Stop: let the running handler end, save the positions, disconnect."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if not self.running:
            return
        self.running = False
        if self._delay is not None:
            self._delay.cancel()
        if self._connection is not None:
            self._connection.close("client stopping")
        if self._finished is not None:
            await self._finished

    async def _run(self) -> None:
        """Connect, follow, connect again: until the service stops."""
        failures = 0
        learned: str | None = None
        try:
            while self.running:
                try:
                    connection = await self._connect(learned or self._dialect)
                except ConnectionFailed as error:
                    self.last_error = str(error)
                    log.info("replication.client.unreachable", error=str(error), failures=failures)
                    if not error.transient:
                        log.error("replication.client.refused", error=str(error))
                else:
                    if connection is not None:
                        ended = await connection.lost
                        self._connection = None
                        self.last_error = ended.text
                        self._inbox.clear()
                        await self._idle()
                        if ended.established:
                            failures = 0
                        if ended.speaks_2017:
                            learned = "2017"
                        self._note_refused(ended.text)
                        log.info(
                            "replication.client.disconnected",
                            reason=ended.reason.value,
                            text=ended.text,
                        )
                if not self.running:
                    break
                await self._wait(backoff_s(failures))
                failures += 1
                self.reconnects += 1
        finally:
            self._inbox.clear()
            await self._idle()
            self._save()
            for live, source in self._sources:
                live.remove_source(source)
            finished, self._finished = self._finished, None
            if finished is not None:
                finished.callback(None)

    async def _connect(self, dialect: str) -> ClientConnection | None:
        connection = await connect(
            self.reactor,
            self._endpoint,
            worker_name=self._worker_name,
            server_name=self._server_name,
            dialect=dialect,
            deliver=self._deliver,
            ready=self._subscribe,
        )
        if not self.running:
            connection.close("client stopping")
            await connection.lost
            return None
        self._connection = connection
        return connection

    async def _wait(self, seconds: float) -> None:
        """Wait; stopping the service ends it early."""
        self._delay = deferLater(self.reactor, seconds)
        try:
            await self._delay
        except CancelledError:
            if self.running:
                raise
        finally:
            self._delay = None

    # -- what callers may ask ----------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a connection is up and past its greeting."""
        return self._connection is not None and self._connection.ready

    def positions(self) -> dict[Pair, Token]:
        """Return what is known of each (stream, instance)."""
        return dict(self._known)

    def send(self, command: Command) -> bool:
        """Send *command*; return whether there was a connection to send it on."""
        if self._connection is None or not self._connection.ready:
            metrics.DROPPED.labels("command", "not_connected").inc()
            return False
        self._connection.send(command)
        return True

    # -- asking for streams ------------------------------------------------------------

    def _subscribe(self, connection: ClientConnection, dialect: Dialect) -> None:
        """Ask for what we follow; the greeting is over and the dialect is known."""
        self._connection = connection
        self._legacy = not dialect.rdata_instance
        self._catching_up.clear()
        for command in self._requests(dialect):
            connection.send(command)
        if self._on_connected is not None:
            run_in_background(self._on_connected, self)

    def _requests(self, dialect: Dialect) -> list[ReplicateCommand]:
        if not dialect.in_band_resume:
            return [ReplicateCommand()]
        now = self._since == "now"
        start = None if now else 0
        named = [
            (stream, instance, token)
            for (stream, instance), token in sorted(self._known.items())
            if self._streams is None or stream in self._streams
        ]
        if self._legacy:
            return self._requests_2017({stream: token for stream, _, token in named}, start)
        requests = [ReplicateCommand(s, instance, token) for s, instance, token in named]
        requests += [
            ReplicateCommand(stream, "*", start, now=now) for stream in self._streams or ("*",)
        ]
        return requests

    def _requests_2017(
        self, known: dict[StreamName, Token], start: Token | None
    ) -> list[ReplicateCommand]:
        """Return what to ask a server of the dialect of 2017, which resumes in band.

        It answers an unknown stream with an ERROR and the loss of the connection, so what
        was refused before is left out.
        """
        requests = [] if self._streams is not None else [ReplicateCommand("ALL", now=True)]
        for stream in self._streams or sorted(known):
            if stream in self._refused_streams:
                continue
            token = known.get(stream, start)
            if token is not None:
                self._catching_up[stream, DEFAULT_INSTANCE] = token
            requests.append(ReplicateCommand(stream, token=token, now=token is None))
        return requests

    def _note_refused(self, text: str) -> None:
        if self._legacy and "failed to handle replicate" in text:
            words = set(re.findall(r"\w+", text.partition("failed to handle replicate")[2]))
            refused = words.intersection(self._streams or [pair[0] for pair in self._known])
            self._refused_streams |= refused
            log.error("replication.client.stream_refused", streams=sorted(refused), text=text)

    # -- delivering --------------------------------------------------------------------

    def _deliver(self, events: Sequence[object]) -> None:
        """Take what one read brought; work through it, or stop the reading until it is done."""
        self._inbox.extend(events)
        if not self._working:
            self._work()

    def _work(self) -> None:
        """Work through the inbox until it is empty or a handler takes its time."""
        inbox = self._inbox
        while inbox:
            event = inbox.popleft()
            if isinstance(event, PositionCommand):
                waiting = self._position(event)
            elif isinstance(event, Command):
                if self._on_command is not None:
                    run_in_background(self._on_command, event)
                continue
            else:
                waiting = self._rows(event)
            if waiting is not None and not self._passed(waiting):
                return
        if self._dirty:
            self._save()

    def _passed(self, waiting: Deferred[None]) -> bool:
        """Return whether *waiting* has fired; else stop reading until it does."""
        self._working = True
        _ = waiting.addCallbacks(self._went_well, self._give_up)
        if not self._is_working():
            return True
        self._blocked = True
        if self._connection is not None:
            self._connection.pause()
        return False

    def _is_working(self) -> bool:
        return self._working

    def _went_well(self, _result: None) -> None:
        self._working = False
        if not self._blocked:
            return  # it had fired already, and the loop goes on
        self._blocked = False
        self._tell_idle()
        self._work()
        if not self._blocked and self._connection is not None:
            self._connection.resume()

    def _give_up(self, failure: Failure) -> None:
        """A handler has failed for good, or the service stops: nothing may pass this batch."""
        self._working = False
        self._blocked = False
        self._inbox.clear()
        if not failure.check(_Stopped):
            if self._connection is not None:
                self._connection.close("handler failed")
            self.failed.errback(failure)
            run_in_background(self.stopService)
        self._tell_idle()

    async def _idle(self) -> None:
        """Wait until no handler runs."""
        if self._working:
            self._idle_waiter = Deferred()
            await self._idle_waiter

    def _tell_idle(self) -> None:
        waiter, self._idle_waiter = self._idle_waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _rows(self, event: Any) -> Deferred[None] | None:
        """Deliver one batch; a Deferred when its handler takes time."""
        stream: StreamName = event.stream
        pair = (stream, event.instance)
        token: Token = event.token
        known = self._known.get(pair)
        if self._legacy:
            return self._rows_2017(event, pair, known)
        if known is not None and token <= known:
            metrics.DROPPED.labels("row", "already_known").inc(len(event.rows))
            return None
        if self._streams is not None and stream not in self._streams:
            return None
        return self._hand_on(event, pair, token)

    def _rows_2017(self, event: Any, pair: Pair, known: Token | None) -> Deferred[None] | None:
        """Deliver a batch of the dialect of 2017.

        Between REPLICATE and POSITION a server may send rows in any order; the position is
        known only at the end. Afterwards it may repeat a token without marking a batch.
        """
        asked = self._catching_up.get(pair)
        if asked is not None:
            return None if event.token <= asked else self._hand_on(event, pair, None)
        if known is not None and event.token < known:
            metrics.DROPPED.labels("row", "already_known").inc(len(event.rows))
            return None
        return self._hand_on(event, pair, event.token)

    def _hand_on(self, event: Any, pair: Pair, reached: Token | None) -> Deferred[None] | None:
        """Call the handler with a batch; *reached* is the position that it brings, if any."""
        stream, instance = pair
        token: Token = event.token
        self._received_rows[stream] = self._received_rows.get(stream, 0) + len(event.rows)
        rows = self._registry.rows(stream, event.rows)
        try:
            result = self._handler(stream, instance, token, rows)
            if result is not None and isinstance(result, (Deferred, CoroutineType)):
                return Deferred.fromCoroutine(self._settle(pair, token, rows, result, reached))
            if reached is not None:
                self._dirty[pair] = reached
                if self._store.atomic:
                    self._commit()
                self._known[pair] = reached
        except Exception as error:
            return Deferred.fromCoroutine(self._persist(pair, token, rows, error, reached))
        return None

    async def _settle(
        self, pair: Pair, token: Token, rows: Rows, result: Any, reached: Token | None
    ) -> None:
        try:
            await result
            self._advance(pair, reached)
        except Exception as error:
            await self._persist(pair, token, rows, error, reached)

    async def _persist(
        self, pair: Pair, token: Token, rows: Rows, error: Exception, reached: Token | None
    ) -> None:
        """Deliver a batch again that its handler failed on, until it succeeds."""
        attempt = 1
        while True:
            if isinstance(error, BadRow):
                good, bad = rows.sift()
                if bad:
                    self._quarantine(pair, token, bad)
                    rows = good
                    attempt = 0
            if attempt:
                log.error(
                    "replication.handler.failed",
                    stream=pair[0],
                    instance=pair[1],
                    token=token,
                    rows=len(rows),
                    attempt=attempt,
                    exc_info=error,
                )
                if self._max_attempts is not None and attempt >= self._max_attempts:
                    raise error
                await self._wait(
                    min(
                        limits.HANDLER_RETRY_MAX_S,
                        limits.HANDLER_RETRY_MIN_S * 2 ** min(attempt - 1, 10),
                    )
                )
            if not self.running:
                raise _Stopped
            attempt += 1
            try:
                result = self._handler(*pair, token, rows)
                if isinstance(result, (Deferred, CoroutineType)):
                    await result
                self._advance(pair, reached)
            except Exception as again:
                error = again
            else:
                return

    def _quarantine(self, pair: Pair, token: Token, bad: Sequence[BadRow]) -> None:
        self.quarantined_rows += len(bad)
        metrics.DROPPED.labels("row", "bad").inc(len(bad))
        for error in bad:
            log.error(
                "replication.row.quarantined",
                stream=pair[0],
                instance=pair[1],
                token=token,
                error=str(error),
            )

    def _advance(self, pair: Pair, token: Token | None) -> None:
        """Note that everything up to *token* is dealt with; commit it if that is ours to do."""
        if token is not None:
            self._dirty[pair] = token
            if self._store.atomic:
                self._commit()
            self._known[pair] = token

    def _position(self, command: PositionCommand) -> Deferred[None] | None:
        """Follow a position: go on, reset, or fetch what is missing."""
        pair = (command.stream, command.instance)
        if self._streams is not None and command.stream not in self._streams:
            return None
        known = self._known.get(pair)
        prev = command.token if command.prev is None else command.prev
        dialect = self._connection.dialect if self._connection is not None else None
        if self._legacy:
            # Rows came in band before this line, whatever their tokens were.
            asked = self._catching_up.pop(pair, None)
            prev = min(prev, command.token if known is None else known)
            if asked == 0 and known is None:
                known = 0
        resumable = dialect is not None and dialect.in_band_resume
        if known is None and not resumable and self._since == "start" and self._catch_up:
            known = 0
        if known is None or prev <= known <= command.token:
            if known != command.token:
                self._advance(pair, command.token)
            return self._call(self._on_position, *pair, command.token)
        if resumable or self._catch_up is None:
            return Deferred.fromCoroutine(self._reset(pair, known, command.token))
        return Deferred.fromCoroutine(self._fetch(pair, known, command.token))

    async def _reset(self, pair: Pair, known: Token | None, token: Token) -> None:
        log.warning(
            "replication.client.reset",
            stream=pair[0],
            instance=pair[1],
            known=known,
            token=token,
        )
        metrics.GAPS.labels(pair[0]).inc()
        await self._insist(self._on_reset, *pair, known, token)
        self._advance(pair, token)
        await self._insist(self._on_position, *pair, token)

    async def _fetch(self, pair: Pair, known: Token, token: Token) -> None:
        """Fetch ``(known, token]`` over HTTP; from 0 when the position went back."""
        assert self._catch_up is not None
        if known > token:
            await self._insist(self._on_reset, *pair, known, 0)
            known = 0
        after = known
        attempt = 0
        while after < token:
            if not self.running:
                raise _Stopped
            try:
                page = await self._catch_up.fetch(*pair, after, token)
            except Exception as error:
                attempt += 1
                log.warning(
                    "replication.client.catch_up_failed",
                    stream=pair[0],
                    instance=pair[1],
                    after=after,
                    upto=token,
                    attempt=attempt,
                    error=str(error),
                )
                if isinstance(error, ConnectionFailed) and not error.transient:
                    await self._reset(pair, after, token)
                    return
                await self._wait(backoff_s(attempt))
                continue
            await self._hand_over(pair, after, page.updates)
            if not page.limited or page.upto <= after:
                break
            after = page.upto
        self._advance(pair, token)
        await self._insist(self._on_position, *pair, token)

    async def _hand_over(
        self, pair: Pair, after: Token, updates: Sequence[tuple[Token, bytes]]
    ) -> None:
        """Deliver fetched rows, those that share a token together."""
        index = 0
        while index < len(updates):
            token = updates[index][0]
            raw: list[bytes] = []
            while index < len(updates) and updates[index][0] == token:
                raw.append(updates[index][1])
                index += 1
            if token <= after:
                continue
            rows = self._registry.rows(pair[0], raw)
            self._received_rows[pair[0]] = self._received_rows.get(pair[0], 0) + len(raw)
            try:
                result = self._handler(*pair, token, rows)
                if isinstance(result, (Deferred, CoroutineType)):
                    await result
                self._advance(pair, token)
            except Exception as error:
                await self._persist(pair, token, rows, error, token)

    def _call(self, callback: Callable[..., object] | None, *args: Any) -> Deferred[None] | None:
        if callback is None:
            return None
        return Deferred.fromCoroutine(self._insist(callback, *args))

    async def _insist(self, callback: Callable[..., object] | None, *args: Any) -> None:
        """Call *callback* until it succeeds; its failures are logged."""
        attempt = 0
        while callback is not None:
            try:
                result = callback(*args)
                if isinstance(result, (Deferred, CoroutineType)):
                    await result
            except Exception as error:
                attempt += 1
                log.error(
                    "replication.callback.failed",
                    callback=getattr(callback, "__qualname__", repr(callback)),
                    arguments=args,
                    attempt=attempt,
                    exc_info=error,
                )
                if self._max_attempts is not None and attempt >= self._max_attempts:
                    raise
                await self._wait(backoff_s(attempt))
                if not self.running:
                    raise _Stopped from None
                continue
            return

    # -- positions ---------------------------------------------------------------------

    def _save(self) -> None:
        """Save the positions that moved; what the disk refuses is kept for the next time."""
        try:
            self._commit()
        except Exception as error:
            log.error("replication.positions.not_saved", exc_info=error)

    def _commit(self) -> None:
        dirty, self._dirty = self._dirty, {}
        if dirty:
            try:
                self._store.save(dirty)
            except Exception:
                self._dirty = dirty | self._dirty
                raise


class _Stopped(Exception):
    """The service stopped while a batch was being retried."""


def backoff_s(failures: int) -> float:
    """Return how long to wait after *failures* failures in a row: doubling, jittered, capped."""
    longest = min(limits.RECONNECT_MAX_S, limits.RECONNECT_MIN_S * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
