"""USER_SYNC on its way: the worker that reports syncs, a relay between, the server that hears."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl.background import LoopingProcess, looping_background_process, stop_all
from tcprepl.ephemeral.ports import Milliseconds, milliseconds
from tcprepl.ephemeral.presence_states import PresenceTimers
from tcprepl.protocol.commands import ClearUserSyncCommand, Command, UserSyncCommand

#: How long a worker waits before it reports that a sync ended: most begin again at once.
END_DELAY_MS = 10_000
#: How often a worker looks for syncs that ended that long ago.
END_INTERVAL_S = 5.0
#: How often a worker says again which syncs are open, so that it is not taken for dead; and
#: how often a server takes the processes of connected peers for alive.
KEEP_ALIVE_INTERVAL_S = 60.0
#: Processes that one connection keeps alive; it may speak for more, but not by its life alone.
MAX_PROCESSES_PER_PEER = 100
#: After how long a relay misses a process of which it has heard nothing.
PROCESS_EXPIRY_S = PresenceTimers().process_expiry_ms / 1000
#: Processes that a relay can miss.
MAX_PROCESSES_BELOW = 10_000


class PresencePort(Protocol):
    """Who hears of syncs (`tcprepl.ephemeral.presence.PresenceWriter`)."""

    def user_syncing(
        self,
        process_id: str,
        user_id: str,
        syncing: bool,
        last_sync_ms: Milliseconds,
        device_id: str | None = None,
    ) -> object:
        """Note that a sync began or ended."""
        ...

    def clear_process(self, process_id: str) -> object:
        """Note that a process has ended."""
        ...

    def process_alive(self, process_id: str) -> object:
        """Note that a process lives."""
        ...


class Server(Protocol):
    """What commands come from (`tcprepl.replication.serving.server.ReplicationServer`)."""

    def on(self, command: type[Command], handler: Callable[[Any, Any], object]) -> None:
        """Call *handler* with each such command and its peer."""
        ...

    def on_peer_lost(self, handler: Callable[[Any], object]) -> None:
        """Call *handler* with each peer that is gone."""
        ...


class SyncListener:
    """Tells the presence writer what connected workers say of their users' syncs.

    A worker names its process, so that its syncs survive a broken connection. Peers of 2017
    do not: there the connection is the process, and its end ends the syncs.

    Args:
        clock: Time.
        server: Where the commands come from.
        presence: Who hears of them.
    """

    def __init__(self, clock: IReactorTime, server: Server, presence: PresencePort) -> None:
        self._clock = clock
        self._presence = presence
        #: Connection -> the processes that it has spoken for.
        self._processes: dict[int, set[str]] = {}
        self._loop: LoopingProcess | None = None
        server.on(UserSyncCommand, self._user_sync)
        server.on(ClearUserSyncCommand, self._clear_user_sync)
        server.on_peer_lost(self._peer_lost)

    def start(self) -> None:
        """Begin to take the processes of connected peers for alive."""
        self._loop = looping_background_process(
            self._clock, "presence.peers", KEEP_ALIVE_INTERVAL_S, self._keep_alive
        )

    def stop(self) -> Deferred[None]:
        """Stop; fires once nothing runs any more."""
        loop, self._loop = self._loop, None
        return stop_all(() if loop is None else (loop,))

    def _user_sync(self, command: UserSyncCommand, peer: Any) -> None:
        process_id = command.instance_id
        if process_id is None:
            process_id = _connection_process(peer)
        processes = self._processes.setdefault(peer.conn_id, set())
        # 0 is everybody behind Redis: that it is there says nothing of any of them
        if peer.conn_id and len(processes) < MAX_PROCESSES_PER_PEER:
            processes.add(process_id)
        self._presence.user_syncing(
            process_id, command.user_id, command.syncing, command.last_sync_ms, command.device_id
        )

    def _clear_user_sync(self, command: ClearUserSyncCommand, peer: Any) -> None:
        self._processes.get(peer.conn_id, set()).discard(command.instance_id)
        self._presence.clear_process(command.instance_id)

    def _peer_lost(self, peer: Any) -> None:
        processes = self._processes.pop(peer.conn_id, set())
        if _connection_process(peer) in processes:
            self._presence.clear_process(_connection_process(peer))

    def _keep_alive(self) -> None:
        for processes in self._processes.values():
            for process_id in processes:
                self._presence.process_alive(process_id)


class SyncsBelow:
    """Tells upstream what workers below a relay say of syncs, and who of them is gone.

    Up there the relay's connection counts as a sign of life for whoever it spoke for. So it is the
    relay that has to miss those of its own peers who end without a word.

    Args:
        clock: Time.
        server: Where the commands come from.
        send: Sends a command upstream.
    """

    def __init__(
        self, clock: IReactorTime, server: Server, send: Callable[[Command], object]
    ) -> None:
        self._clock = clock
        self._send = send
        #: For peers of 2017, which do not name a process: no other relay has this name.
        self._name = f"relay-{secrets.token_hex(4)}"
        #: Process -> when it was last heard of, in seconds.
        self._heard: dict[str, float] = {}
        self._listener = SyncListener(clock, server, self)
        self._loop: LoopingProcess | None = None

    def start(self) -> None:
        """Begin to miss processes."""
        self._listener.start()
        self._loop = looping_background_process(
            self._clock, "presence.below", KEEP_ALIVE_INTERVAL_S, self._miss
        )

    def stop(self) -> Deferred[None]:
        """Stop; fires once nothing runs any more. Those below are missed upstream."""
        loop, self._loop = self._loop, None
        return stop_all((self._listener,) if loop is None else (self._listener, loop))

    def user_syncing(
        self,
        process_id: str,
        user_id: str,
        syncing: bool,
        last_sync_ms: Milliseconds,
        device_id: str | None = None,
    ) -> None:
        """Pass on that a sync began or ended."""
        name = self._named(process_id)
        if name in self._heard or len(self._heard) < MAX_PROCESSES_BELOW:
            self._heard[name] = self._clock.seconds()
        self._send(UserSyncCommand(name, user_id, device_id, syncing, last_sync_ms))

    def clear_process(self, process_id: str) -> None:
        """Pass on that a process has ended."""
        name = self._named(process_id)
        self._heard.pop(name, None)
        self._send(ClearUserSyncCommand(name))

    def process_alive(self, process_id: str) -> None:
        """Note that a process lives."""
        name = self._named(process_id)
        if name in self._heard:
            self._heard[name] = self._clock.seconds()

    def _named(self, process_id: str) -> str:
        return process_id.replace("connection ", f"{self._name}-")

    def _miss(self) -> None:
        since = self._clock.seconds() - PROCESS_EXPIRY_S
        for name in [name for name, heard in self._heard.items() if heard < since]:
            del self._heard[name]
            self._send(ClearUserSyncCommand(name))


class SyncReporter:
    """Reports from a worker which users have a sync open there.

    Counts the syncs of each user; reports the first one at once and the end of the last one
    when it has lasted, with the time at which it came. Everything open is said again after a
    reconnect (`connected`) and once a minute.

    Args:
        clock: Time, for the loops.
        send: Sends a command to the server, as `ReplicationClient.send`.
        process_id: Names this process; has to be new at each start.
        wall_ms: Returns the time in ms since 1970, by a clock that never jumps; by default
            the clock's.
    """

    def __init__(
        self,
        clock: IReactorTime,
        send: Callable[[Command], object],
        process_id: str,
        *,
        wall_ms: Callable[[], Milliseconds] | None = None,
    ) -> None:
        self._clock = clock
        self._now = wall_ms or partial(milliseconds, clock)
        self._send = send
        self._process_id = process_id
        self._open: dict[str, int] = {}
        #: User -> when the last sync ended, not reported yet.
        self._ended: dict[str, Milliseconds] = {}
        self._loops: list[LoopingProcess] = []

    def start(self) -> None:
        """Begin to report what ended and what is still open."""
        self._loops = [
            looping_background_process(
                self._clock, "presence.report_ends", END_INTERVAL_S, self._report_ends
            ),
            looping_background_process(
                self._clock, "presence.report_open", KEEP_ALIVE_INTERVAL_S, self.connected
            ),
        ]

    def stop(self) -> Deferred[None]:
        """Say that nobody syncs here any more, and stop."""
        self._send(ClearUserSyncCommand(self._process_id))
        self._open.clear()
        self._ended.clear()
        loops, self._loops = self._loops, []
        return stop_all(loops)

    def sync_began(self, user_id: str) -> None:
        """Note that a client of *user_id* has opened a sync."""
        count = self._open.get(user_id, 0)
        self._open[user_id] = count + 1
        if count == 0 and self._ended.pop(user_id, None) is None:
            self._report(user_id, True, self._now())

    def sync_ended(self, user_id: str) -> None:
        """Note that a client of *user_id* has closed a sync."""
        count = self._open.get(user_id, 0)
        if count > 1:
            self._open[user_id] = count - 1
        elif count == 1:
            del self._open[user_id]
            self._ended[user_id] = self._now()

    def connected(self) -> None:
        """Say again which syncs are open: those about to be reported as ended, too."""
        now = self._now()
        for user_id in (*self._open, *self._ended):
            self._report(user_id, True, self._ended.get(user_id, now))

    def _report_ends(self) -> None:
        now = self._now()
        for user_id, ended in list(self._ended.items()):
            if now - ended > END_DELAY_MS:
                del self._ended[user_id]
                self._report(user_id, False, ended)

    def _report(self, user_id: str, syncing: bool, when_ms: Milliseconds) -> None:
        self._send(UserSyncCommand(self._process_id, user_id, None, syncing, when_ms))


def _connection_process(peer: Any) -> str:
    return f"connection {peer.conn_id}"
