"""A service that is connected to a server, or tries to be (protocol.md section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater

from tcprepl.background import run_as_background_process
from tcprepl.clocks import make_steady
from tcprepl.errors import ConnectionFailed
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger
from tcprepl.protocol.dialects import Dialect
from tcprepl.protocol.grammar import LABEL_SHAPE, is_label
from tcprepl.replication.failures import backoff_s
from tcprepl.replication.following.connection import ClientConnection, Ended, Token, connect

T = TypeVar("T")

log = get_logger(__name__)


class Reconnecting(Service):
    """Connects, and connects again whenever the connection is gone, for as long as it runs.

    Who inherits has `_take` called with the events of each read, `_greeted` once a connection is
    past its greeting, `_left` once it is gone, and `_over` when no other follows.

    Attributes:
        reactor: The reactor; it measures time evenly from now on (`tcprepl.clocks`).
        reconnects: How often a connection was tried after the first.
        last_error: Why the newest connection ended or could not be made; None at first.
        away_since: When the newest connection that served us ended (seconds of the reactor), or
            when all began.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        what: str,
        *,
        name: str,
        server_name: ServerName | None,
        token: Token | None,
    ) -> None:
        """Begin with no connection; *what* this is, is said in the log.

        Raises:
            ValueError: An argument is not what it has to be.
        """
        if not callable(getattr(endpoint, "connect", None)):
            raise ValueError(f"{endpoint!r} is no endpoint to connect to")
        if not is_label(name):
            raise ValueError(f"the name {name!r} is not {LABEL_SHAPE}")
        if not (token is None or isinstance(token, str) or callable(token)):
            raise ValueError(f"token is of type {type(token).__name__}; expected a str")
        make_steady(reactor)
        self.reactor = reactor
        self.reconnects = 0
        self.last_error: str | None = None
        self.away_since = 0.0
        self._what = what
        self._connect = partial(
            connect, reactor, endpoint, worker_name=name, server_name=server_name, token=token
        )
        self._dialect = "auto"
        self._connection: ClientConnection | None = None
        #: Connections that could not be made, or did not come to anything, one after the other.
        self._failures: int
        #: What was begun is told to end, or has ended; who starts us meanwhile waits for that.
        self._ending = False
        #: What a stop need not wait for.
        self._pending: set[Deferred[Any]] = set()
        self._finished: Deferred[None] | None = None

    # -- for who inherits ----------------------------------------------------------------------

    def _beginning(self) -> None:
        """Do nothing more before the first connection of a start; nothing of before is left."""

    def _take(self, events: Sequence[object]) -> None:
        raise NotImplementedError

    def _greeted(self, dialect: Dialect) -> None:
        raise NotImplementedError

    async def _left(self, ended: Ended) -> None:
        """Do nothing more about a connection that is gone."""

    async def _over(self) -> None:
        """Do nothing more when no other connection follows."""

    def _goes_on(self) -> bool:
        """Whether another connection follows."""
        return bool(self.running) and not self._ending

    # -- life ----------------------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to connect (Twisted calls this).

        After a stop that has not ended yet, once it has: one connection follows the other, and
        what it brings is worked through after what the other has brought.
        """
        if not self.running:
            self.running = True
            if self._finished is None:
                self._begin()

    def _begin(self) -> None:
        self._ending = False
        self.away_since = self.reactor.seconds()
        self._failures = 0
        self._finished = Deferred()
        self._beginning()
        run_as_background_process(f"replication_{self._what}", self._run)

    def stopService(self) -> Deferred[None]:
        """Stop; fires once the connection is gone."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self.running:
            self.running = False
            self._ending = True
            for pending in tuple(self._pending):
                pending.cancel()
            if self._connection is not None:
                self._connection.close(f"{self._what} stopping")
        if self._finished is not None:
            await self._finished

    async def _run(self) -> None:
        try:
            await self._follow()
        except GeneratorExit:
            raise  # thrown away with the program: nothing can be awaited
        except BaseException:
            await self._end()
            raise
        await self._end()

    async def _end(self) -> None:
        await self._over()
        finished, self._finished = self._finished, None
        if finished is not None:
            finished.callback(None)
        if self.running and self._ending and self._finished is None:
            self._begin()

    async def _follow(self) -> None:
        unreachable = f"replication.{self._what}.unreachable"
        disconnected = f"replication.{self._what}.disconnected"
        while self._goes_on():
            try:
                connection = await self._attempt()
            except ConnectionFailed as error:
                self.last_error = str(error)
                # who has never been connected may be told nowhere else
                say = log.info if self.reconnects else log.warning
                say(unreachable, error=str(error), failures=self._failures)
            except CancelledError:
                raise
            except Exception as error:  # whatever it is, who waits for us waits for the next one
                self.last_error = f"{type(error).__name__}: {error}"
                log.exception(unreachable, error=self.last_error, failures=self._failures)
            else:
                ended = await connection.lost
                self._connection = None
                self.last_error = ended.text
                if ended.served:
                    self.away_since = self.reactor.seconds()
                await self._left(ended)
                if not self._ending:
                    log.info(disconnected, reason=ended.reason.value, text=ended.text)
            if self._goes_on():
                await self._wait(backoff_s(self._failures))
                self._failures += 1
            if self._goes_on():
                self.reconnects += 1

    async def _attempt(self) -> ClientConnection:
        connection = await self._unless_stopped(
            Deferred.fromCoroutine(
                self._connect(dialect=self._dialect, deliver=self._take, ready=self._up)
            )
        )
        self._connection = connection
        if self._ending:
            connection.close(f"{self._what} stopping")
        return connection

    def _up(self, connection: ClientConnection, dialect: Dialect) -> None:
        self._connection = connection
        self._greeted(dialect)

    async def _wait(self, seconds: float) -> None:
        """Wait; stopping the service ends it early."""
        try:
            await self._unless_stopped(deferLater(self.reactor, seconds))
        except CancelledError:
            if not self._ending:
                raise

    async def _unless_stopped(self, pending: Deferred[T]) -> T:
        self._pending.add(pending)
        try:
            return await pending
        finally:
            self._pending.discard(pending)
