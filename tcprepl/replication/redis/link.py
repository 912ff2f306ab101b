"""A lasting link to one Redis server: subscribe, be sure of it, publish (protocol.md 15.4).

Redis wants two connections: one that is subscribed, and one that may publish. A link is the
pair: when either is lost, both are given up and made anew, for ever, so that whoever uses
the link hears of one thing only: up, lines, down. Each connection is asked for a sign of life
of its own, since a half-dead one says nothing by itself.

Being connected is not being heard. A Redis that was made a replica keeps its connections and
takes what is published, and passes it on to nobody; one behind a proxy may be another one than
the one that is subscribed. So who publishes asks the server for its role, and waits for its
own lines to come back.

`tcprepl.replication.following.reconnecting` has another loop, and stays apart: a connection there
is one, with a greeting and a dialect, of a service that counts each attempt; a link is a pair that
is up or down, and stands below it (this room knows nothing of who follows). What both have to agree
on, how long to wait after so many failures, is `backoff_s`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from tcprepl import limits
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_as_background_process,
)
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConnectionFailed, LogError
from tcprepl.logger import get_logger
from tcprepl.replication.failures import backoff_s
from tcprepl.replication.redis.connection import DEAD_AFTER_S, RedisConnection
from tcprepl.replication.redis.resp import encode_publish
from tcprepl.replication.transport import Outlet

log = get_logger(__name__)

#: How often the connections are looked at.
SWEEP_INTERVAL_S: Final = 2.0


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
        on_up: Called when the subscription is confirmed and publishing works; if it raises, the
            link is made anew.
        on_down: Called with the reason when the link, which was up, is lost.
        on_drained: Called when the socket takes more again after it was full.
        also: Further channels to subscribe to.
        publishes: Whether to make the connection that publishes at all.
        to_others: Whether what is published has to reach others: then a Redis that is not the
            primary will not do, and neither will one that does not bring our lines back.
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
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        channel: str,
        *,
        on_lines: Callable[[list[bytes]], None],
        on_up: Callable[[], object],
        on_down: Callable[[str], object],
        on_drained: Callable[[], None] = lambda: None,
        also: Sequence[str] = (),
        publishes: bool = True,
        to_others: bool = False,
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
        self._to_others = to_others
        #: A line of ours that has to come back, and since when it has been on its way.
        self._expected: tuple[bytes, float] | None = None
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
        self.expect(lines[-1])
        return True

    def expect(self, line: bytes) -> None:
        """Note that *line* has been published: everybody hears every line, and so shall we."""
        if self._expected is None and self._to_others:
            self._expected = (line, self._reactor.seconds())

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
        self._expected = None
        self.changed_at = self._reactor.seconds()
        log.info("redis.up", channel=self.channel.decode())
        early, self._early = self._early, []
        try:
            self._on_up()
        except Exception as error:  # noqa: BLE001 - the next connection may be taken up
            words = {"error": str(error)} if isinstance(error, LogError) else {"exc_info": error}
            log.error("redis.not_taken_up", **words)
            self._give_up("it was not taken up")
            early = []
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
                if self._to_others:
                    await self._answer(self._publisher.check_role())
            for channel in self._channels:
                await self._answer(self._subscriber.ask(b"SUBSCRIBE", channel))
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
            words = (word.encode() for word in (self._user, self._password) if word is not None)
            try:
                await self._answer(connection.ask(b"AUTH", *words))
            except Exception:
                connection.abort("not let in")
                raise
        return connection

    async def _answer(self, answer: Awaitable[Any]) -> Any:
        """Wait for *answer*, not for ever."""
        waiting = ensureDeferred(answer) if isinstance(answer, Coroutine) else answer
        self._pending = waiting.addTimeout(limits.HANDSHAKE_TIMEOUT_S, self._reactor)  # type: ignore[attr-defined]
        try:
            return await self._pending
        finally:
            self._pending = None

    def _take(self, payloads: list[bytes]) -> None:
        if self.up:
            if self._expected is not None and self._expected[0] in payloads:
                self._expected = None
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
            self._expected = None
        for connection in (self._subscriber, self._publisher):
            if connection is not None:
                connection.look(now)
        if self._expected is not None and self._publisher is not None:
            line, since = self._expected
            assert self._publisher.outlet is not None
            if self._publisher.outlet.busy:
                self._expected = (line, now)  # it may still be with us
            elif now - since >= DEAD_AFTER_S:
                self._publisher.abort(f"what we publish has not come back for {now - since:.0f} s")

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
            self._subscriber.pause()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._subscriber is not None:
            self._paused = False
            self._subscriber.resume()


def _explained(error: Exception) -> ConnectionFailed:
    """Return what went wrong while connecting, in words."""
    if isinstance(error, CancelledError | DeferredTimeout | ConnectingCancelledError):
        text = f"no answer within {limits.HANDSHAKE_TIMEOUT_S:.0f} s"
        return ConnectionFailed(text, reason=CloseReason.HANDSHAKE_TIMEOUT)
    return ConnectionFailed(str(error) or repr(error), reason=CloseReason.CONNECTION_LOST)
