"""A lasting link to one Redis server: subscribe, be sure of it, publish (protocol.md 15.4).

Redis wants two connections: one that is subscribed, and one that may publish. A link is the
pair: when either is lost, both are given up and made anew, for ever, so that whoever uses
the link hears of one thing only: up, lines, down. Each connection is asked for a sign of life
of its own, since a half-dead one says nothing by itself.

The commands are `txredisapi`'s, its factory is not: that connects on the global reactor and
gives up for good when a password is refused. Its reading of replies is replaced by
`tcprepl.replication.redis.resp`, which takes every message of a read at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
import txredisapi
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_as_background_process,
)
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.protocol.display import snippet
from tcprepl.replication.failures import close_reason_of
from tcprepl.replication.following.delivery import backoff_s
from tcprepl.replication.redis.resp import (
    BadReply,
    ErrorReply,
    Message,
    RespReader,
    encode,
    encode_publish,
)
from tcprepl.replication.transport import Outlet, make_outlet

log = structlog.get_logger()

#: How often the connections are looked at.
SWEEP_INTERVAL_S: Final = 2.0
#: A connection is asked for a sign of life after this long without one.
PING_AFTER_S: Final = 10.0
#: A connection that has given no sign of life for this long is dead.
DEAD_AFTER_S: Final = 25.0

_PING: Final = encode(b"PING")


class RedisConnection(txredisapi.SubscriberProtocol):  # type: ignore[misc]  # it has no types
    """One of the two connections.

    Attributes:
        gone: Fires with the reason, in words, when the connection has ended.
        heard_at: When the last byte came (seconds of the reactor).
        ended: Why it ended, in words; None while it lives.
    """

    def __init__(
        self,
        reactor: Any,
        channel: bytes,
        take: Callable[[list[bytes]], None],
        drained: Callable[[], None],
    ) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.gone: Deferred[str] = Deferred()
        self.ended: str | None = None
        self.heard_at: float = reactor.seconds()
        self.outlet: Outlet | None = None
        self._reactor = reactor
        self._reader = RespReader(channel)
        self._take = take
        self._drained = drained
        self._silent = False
        self._asked_at: float = reactor.seconds()
        self._reason: str | None = None

    def connectionMade(self) -> Any:
        """Note that we are connected (Twisted calls this)."""
        made = super().connectionMade()
        if hasattr(self.transport, "setTcpKeepAlive"):
            self.transport.setTcpKeepAlive(True)
        return made

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """Hand on messages, answer questions (Twisted calls this)."""
        self.heard_at = self._reactor.seconds()
        try:
            payloads, others = self._reader.feed(data)
        except BadReply as error:
            self.abort(str(error))
            return
        for value in others:
            if isinstance(value, Message):
                payloads.append(value.payload)
            elif not self._silent:
                refused = isinstance(value, ErrorReply)
                self.replyReceived(txredisapi.ResponseError(str(value)) if refused else value)
            elif isinstance(value, ErrorReply):
                self.abort(f"Redis refuses: {value}")
                return
        if payloads:
            self._take(payloads)

    def connectionLost(self, why: Failure) -> None:
        """Say why it ended (Twisted calls this)."""
        self.ended = self._reason or f"{close_reason_of(why).value}: {why.getErrorMessage()}"
        super().connectionLost(why)
        self.gone.callback(self.ended)

    def abort(self, reason: str) -> None:
        """End the connection at once, for *reason*."""
        if self._reason is None:
            self._reason = reason
            self.transport.abortConnection()

    def go_silent(self) -> None:
        """Take no more notice of replies but errors; write past txredisapi from now on."""
        self._silent = True
        self.outlet = make_outlet(self.transport, self._drained)

    def write(self, data: bytes) -> bool:
        """Write *data*; return whether the socket is ready for more."""
        assert self.outlet is not None
        return self.outlet.write(data)

    def look(self, now: float) -> None:
        """Ask for a sign of life, or give the connection up for want of one."""
        silence = now - self.heard_at
        if silence >= DEAD_AFTER_S:
            self.abort(f"no sign of life for {silence:.0f} s")
        elif now - max(self.heard_at, self._asked_at) >= PING_AFTER_S:
            self._asked_at = now
            self.write(_PING)


class _Factory(Factory):
    noisy = False

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._connection


class RedisLink:
    """Stays subscribed to channels, and publishes, for as long as it runs.

    Args:
        reactor: The reactor.
        endpoint: Where Redis is.
        channel: The channel that matters; what is published goes there.
        on_lines: Called with the payloads that one read brought, in order.
        on_up: Called when the subscription is confirmed and publishing works.
        on_down: Called with the reason when the link, which was up, is lost.
        on_drained: Called when the socket takes more again after it was full.
        also: Further channels to subscribe to.
        publishes: Whether to make the connection that publishes at all.
        user: For AUTH.
        password: For AUTH.

    Attributes:
        up: Whether the link is there.
        last_error: Why the link was lost or could not be made; None at first.
        changed_at: When it came up or went down (seconds of the reactor).
        reconnects: How often the link was lost.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        channel: str,
        *,
        on_lines: Callable[[list[bytes]], None],
        on_up: Callable[[], object],
        on_down: Callable[[str], object],
        on_drained: Callable[[], None] = lambda: None,
        also: Sequence[str] = (),
        publishes: bool = True,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self.up = False
        self.last_error: str | None = None
        self.changed_at: float = reactor.seconds()
        self.reconnects = 0
        self.publishes = publishes
        self.channel = channel.encode()
        self._reactor = reactor
        self._endpoint = endpoint
        self._channels = [self.channel, *(name.encode() for name in also)]
        self._on_lines = on_lines
        self._on_up = on_up
        self._on_down = on_down
        self._on_drained = on_drained
        self._user = user
        self._password = password
        self._running = False
        self._subscriber: RedisConnection | None = None
        self._publisher: RedisConnection | None = None
        self._early: list[bytes] = []
        #: Lines of ours that Redis has still to bring back: everybody hears every line.
        self._echoes: Counter[bytes] = Counter()
        self._paused = False
        self._delay: Deferred[None] | None = None
        self._pending: Any = None
        self._finished: Deferred[None] | None = None
        self._sweeper: LoopingProcess | None = None

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and connect again, from now on."""
        self._running = True
        self._finished = Deferred()
        self._sweeper = looping_background_process(
            self._reactor, "redis_link_sweep", SWEEP_INTERVAL_S, self._sweep
        )
        run_as_background_process("redis_link", self._run)

    async def stop(self) -> None:
        """Disconnect."""
        if not self._running:
            return
        self._running = False
        if self._sweeper is not None:
            await self._sweeper.stop()
        for waiting in (self._delay, self._pending):
            if waiting is not None:
                waiting.cancel()
        self._give_up("stopping")
        if self._finished is not None:
            await self._finished

    async def _run(self) -> None:
        failures = 0
        try:
            while self._running:
                try:
                    await self._connect()
                except ConnectionFailed as error:
                    if not self._is_stopping():  # else it is we who broke it off
                        self._failed(error, failures)
                else:
                    failures = 0
                    await self._until_lost()
                if self._is_stopping():
                    return
                await self._wait(backoff_s(failures))
                failures += 1
        finally:
            finished, self._finished = self._finished, None
            if finished is not None:
                finished.callback(None)

    def _is_stopping(self) -> bool:
        return not self._running

    def _failed(self, error: ConnectionFailed, failures: int) -> None:
        self.last_error = str(error)
        say = log.warning if error.transient else log.error
        say("redis.unreachable", error=str(error), failures=failures)

    def publish(self, lines: Sequence[bytes]) -> bool:
        """Publish *lines* on the channel; return whether Redis was there to take them."""
        outlet = self.outlet
        if outlet is None:
            return False
        self._echoes.update(lines)
        outlet.write(encode_publish(self.channel, lines))
        return True

    def is_echo(self, line: bytes) -> bool:
        """Return whether *line*, which was heard, is one that we published; each counts once."""
        if not self._echoes[line]:
            return False
        self._echoes[line] -= 1
        if not self._echoes[line]:
            del self._echoes[line]
        return True

    async def _until_lost(self) -> None:
        """Be up until either connection is lost, and say why."""
        assert self._subscriber is not None
        subscriber, publisher = self._subscriber, self._publisher
        lost: Deferred[str] = Deferred()

        def note(which: str, reason: str) -> None:
            if not lost.called:
                lost.callback(f"{which}: {reason}")

        _ = subscriber.gone.addCallback(lambda reason: note("subscription", reason))
        if publisher is not None:
            _ = publisher.gone.addCallback(lambda reason: note("publishing", reason))
        self.up = True
        self._echoes.clear()
        self.changed_at = self._reactor.seconds()
        log.info("redis.up", channel=self.channel.decode())
        self._on_up()
        early, self._early = self._early, []
        if early:
            self._on_lines(early)
        reason = await lost
        self.up = False
        self._paused = False
        self.reconnects += 1
        self.changed_at = self._reactor.seconds()
        self.last_error = reason
        self._give_up("the other connection is gone")
        self._subscriber = self._publisher = None
        log.info("redis.down", reason=reason)
        self._on_down(reason)

    def _give_up(self, reason: str) -> None:
        for connection in (self._subscriber, self._publisher):
            if connection is not None and connection.transport is not None:
                connection.abort(reason)

    async def _wait(self, seconds: float) -> None:
        self._delay = deferLater(self._reactor, seconds)
        try:
            await self._delay
        except CancelledError:
            if self._running:
                raise
        finally:
            self._delay = None

    # -- connecting --------------------------------------------------------------------

    async def _connect(self) -> None:
        """Make both connections and subscribe.

        Raises:
            ConnectionFailed: It did not work; nothing is left open.
        """
        self._early = []
        try:
            self._subscriber = await self._open(self._take)
            if self.publishes:
                self._publisher = await self._open(lambda lines: None)
                self._publisher.go_silent()
            for channel in self._channels:
                await self._answer(self._subscriber.subscribe([channel]))
            self._subscriber.go_silent()
            if not self._running:
                raise ConnectionFailed("stopping", reason=CloseReason.SHUTDOWN)
        except Exception as error:
            ended = self._subscriber.ended if self._subscriber is not None else None
            self._give_up("not connected")
            self._subscriber = self._publisher = None
            if isinstance(error, ConnectionFailed):
                raise
            if ended is not None:
                raise ConnectionFailed(ended, reason=CloseReason.CONNECTION_LOST) from error
            raise _explained(error) from error

    async def _open(self, take: Callable[[list[bytes]], None]) -> RedisConnection:
        connection = RedisConnection(self._reactor, self.channel, take, self._drained)
        await self._answer(self._endpoint.connect(_Factory(connection)))
        if self._password is not None:
            try:
                await self._answer(connection.auth(self._password, self._user))
            except Exception as error:
                if connection.ended is not None:
                    reason = CloseReason.CONNECTION_LOST
                    raise ConnectionFailed(connection.ended, reason=reason) from error
                connection.abort("not let in")
                raise
        return connection

    async def _answer(self, deferred: Any) -> Any:
        self._pending = deferred.addTimeout(limits.HANDSHAKE_TIMEOUT_S, self._reactor)
        try:
            return await deferred
        finally:
            self._pending = None

    def _take(self, payloads: list[bytes]) -> None:
        if self.up:
            self._on_lines(payloads)
        else:
            self._early += payloads

    def _drained(self) -> None:
        if self.up:
            self._on_drained()

    def _sweep(self) -> None:
        now = self._reactor.seconds()
        if not self.up:
            return
        if self._paused and self._subscriber is not None:
            self._subscriber.heard_at = now  # it is we who do not listen
        for connection in (self._subscriber, self._publisher):
            if connection is not None:
                connection.look(now)

    # -- what users may do -------------------------------------------------------------

    @property
    def outlet(self) -> Outlet | None:
        """Where to write commands such as PUBLISH; None while the link is down."""
        publisher = self._publisher if self.up else None
        return None if publisher is None else publisher.outlet

    def pause(self) -> None:
        """Read no more messages for now."""
        if self.up and not self._paused and self._subscriber is not None:
            self._paused = True
            self._subscriber.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._subscriber is not None:
            self._paused = False
            self._subscriber.transport.resumeProducing()


def _explained(error: Exception) -> ConnectionFailed:
    """Return what went wrong while connecting, in words."""
    if isinstance(error, txredisapi.ResponseError):
        text = f"Redis refuses: {snippet(str(error).strip())}"
        return ConnectionFailed(text, reason=CloseReason.PEER_CLOSED, transient=False)
    if isinstance(error, CancelledError | DeferredTimeout | ConnectingCancelledError):
        text = f"no answer within {limits.HANDSHAKE_TIMEOUT_S:.0f} s"
        return ConnectionFailed(text, reason=CloseReason.HANDSHAKE_TIMEOUT)
    return ConnectionFailed(str(error) or repr(error), reason=CloseReason.CONNECTION_LOST)
