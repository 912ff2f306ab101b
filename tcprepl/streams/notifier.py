"""Who waits for rows: wake-ups by stream, for long polls and catch-up loops."""

from __future__ import annotations

from collections.abc import Collection

from twisted.internet.defer import Deferred

from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.streams.log import Block, Log


class Notifier:
    """Deferreds that fire when a stream has moved.

    A waiter costs nothing for the streams that it did not ask for. It is woken once; look at
    the position first, then wait: between the two nothing can happen in one thread.
    """

    def __init__(self) -> None:
        self._waiters: dict[StreamName, dict[Deferred[None], None]] = {}
        self._any: dict[Deferred[None], None] = {}
        self._wanted: dict[Deferred[None], Collection[StreamName]] = {}

    def attach(self, log: Log) -> None:
        """Notify of everything that *log* publishes from now on."""
        log.add_listener(self._on_block)
        log.add_position_listener(self._on_position)

    def wait(self, streams: Collection[StreamName] | None = None) -> Deferred[None]:
        """Return a Deferred that fires when one of *streams* (or any at all) has moved.

        Cancelling it ends the wait.
        """
        waiter: Deferred[None] = Deferred(self._forget)
        if streams is None:
            self._any[waiter] = None
        else:
            self._wanted[waiter] = streams
            for stream in streams:
                self._waiters.setdefault(stream, {})[waiter] = None
        return waiter

    def notify(self, stream: StreamName) -> None:
        """Wake everybody who waits for *stream*."""
        woken = [*self._waiters.get(stream, ()), *self._any]
        for waiter in woken:
            self._forget(waiter)
        # a waiter that is woken may wait again or cancel another: the books are closed already
        for waiter in woken:
            if not waiter.called:
                waiter.callback(None)

    def notify_all(self) -> None:
        """Wake everybody."""
        for waiter in [*self._any, *self._wanted]:
            self._forget(waiter)
            if not waiter.called:
                waiter.callback(None)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._any) + len(self._wanted)

    def _forget(self, waiter: Deferred[None]) -> None:
        self._any.pop(waiter, None)
        for stream in self._wanted.pop(waiter, ()):
            waiters = self._waiters.get(stream)
            if waiters is not None:
                waiters.pop(waiter, None)
                if not waiters:
                    del self._waiters[stream]

    def _on_block(self, block: Block) -> None:
        self.notify(block.stream)

    def _on_position(
        self, stream: StreamName, instance: InstanceName, before: Token, token: Token
    ) -> None:
        self.notify(stream)
