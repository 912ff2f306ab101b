"""An operator's two last words: to one connection (kick), and to all, one by one (drain).

protocol.md sections 6.20, 12.3 and 13.7. What is said on a line and what is asked over HTTP
come together here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.errors import CloseReason, LogUnavailable, did_you_mean
from tcprepl.ids import InstanceName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import InfoCommand
from tcprepl.protocol.display import counted, printable
from tcprepl.replication.status import PeerStatus
from tcprepl.streams.gathering import Outcome

if TYPE_CHECKING:
    from tcprepl.replication.serving.peer import Peer
    from tcprepl.replication.serving.server import ReplicationServer

log = get_logger(__name__)

#: How often it is looked who has everything.
LOOK_S: Final = 0.1
#: How long the end waits for who has asked how far it is, and is about to ask again.
ASKS_AGAIN_S: Final = 1.0
#: How often who asked for a drain on a line is told how far it is.
TELL_S: Final = 1.0
#: Why some processes are not drained.
NOT_DRAINED: Final = "this process is not drained: those who talk to it know no other; stop it"
#: The stream whose rows somebody says that they are safe elsewhere.
_FEDERATION: Final = "federation"


def kick(server: ReplicationServer, who: str, why: str) -> list[PeerStatus]:
    """End the connections of *who*, and tell them *why*; they may connect again.

    Args:
        server: Whose connections.
        who: The number of a connection, or the name or address of one or more.
        why: For the peer; empty for nothing more than that it was an operator.

    Returns:
        Those that were ended, as they were; none if there is nobody of that name.
    """
    text = "disconnected by an operator" + (f": {printable(why)}" if why else "")
    found = [
        peer
        for peer in server.peers()
        if peer.state != "closing" and who in (str(peer.conn_id), peer.name, peer.address)
    ]
    for peer in found:
        server.end(peer.conn_id, CloseReason.KICKED, text)
    if found:
        log.info("replication.kicked", who=who, why=why, connections=len(found))
    return found


def in_words(ended: PeerStatus) -> str:
    """Return what an operator is told of a connection that was ended."""
    return f"{ended.name or '-'} ({ended.address}), connection {ended.conn_id}: ended"


def nobody_called(server: ReplicationServer, who: str) -> str:
    """Return what an operator is told who kicks *who*, and there is nobody of that name."""
    # One that was kicked a moment ago may still be on its way out.
    near = did_you_mean(who, {peer.name for peer in server.peers()} - {"", who})
    return (
        f"no peer is called {who}: expected what it calls itself, its address with the port, or "
        f"the number of its connection, as STATUS shows them{near}"
    )


class DrainState(Struct, frozen=True):
    """How far a drain is.

    Attributes:
        peers: Connections that are still there.
        behind: Those of them that do not have everything yet.
        rows: Rows that they do not have; a lower bound.
        seconds_left: Until the others are closed as well.
        over: Whether nothing is waited for any more.
        unserved: Connections that were closed at the end of the time without everything.
        to: Where peers were told to go; empty for nowhere.
        senders: The configured federation senders, here or not, that have not acknowledged
            everything.
    """

    peers: int
    behind: int
    rows: int
    seconds_left: float
    over: bool
    unserved: int
    to: str
    senders: Sequence[InstanceName] = ()

    @property
    def words(self) -> str:
        """How far it is, in words."""
        lacking = []
        if self.unserved:
            who = f"{counted(self.unserved, 'peer')} {'was' if self.unserved == 1 else 'were'}"
            lacking.append(f"{who} closed without everything")
        if self.senders:
            have = "has" if len(self.senders) == 1 else "have"
            lacking.append(f"{', '.join(self.senders)} {have} not acknowledged everything")
        if self.over:
            if lacking:
                return f"drained: {' and '.join(lacking)}, as the time was over"
            return "drained: everybody has everything"
        words = f"{counted(self.peers, 'peer')} left"
        if self.rows:
            words += f", {self.behind} of them behind by {counted(self.rows, 'row')}"
        elif self.behind:  # for an answer to them, or an acknowledgement
            words += f", {self.behind} of them waited for"
        if self.senders:
            words += f", {lacking[-1]}"
        return f"draining: {words}, {self.seconds_left:.0f} s to go"


class Shut:
    """The publisher of a server that is being drained: it refuses, for whoever tries elsewhere."""

    def __init__(self, why: str) -> None:
        self._why = why

    def publish_json(self, *_: Any, **__: Any) -> Deferred[Any]:
        """Refuse."""
        return fail(LogUnavailable(self._why))

    def publish_each(
        self, stream: str, rows: bytes, count: int, *_: Any
    ) -> Deferred[list[Outcome]]:
        """Refuse all of them."""
        return succeed([(count, Failure(LogUnavailable(self._why)))])


class Drain:
    """Lets everybody go who has everything, and takes nothing new.

    Invariant: a row that was answered reaches every peer that asked for it, and each configured
    federation sender has said that it is safe with it, unless the time is over first; who has
    everything is told where to go, and closed; nobody new is let in.

    Args:
        server: What is drained.
        flush: Returns what fires once all rows that were taken are on disk, or refused.
        within_s: How long peers have.
        to: Where they are told to go; empty for nowhere.
        senders: Returns the configured federation senders that have not acknowledged everything:
            one that is away is not less to be waited for.

    Attributes:
        text: Why nothing is taken any more.
        done: Fires when nobody is waited for any more: the process may end.
    """

    def __init__(
        self,
        server: ReplicationServer,
        flush: Callable[[], Deferred[None]],
        within_s: float,
        to: str = "",
        senders: Callable[[], Sequence[InstanceName]] = lambda: (),
    ) -> None:
        self.text = "the server is being drained" + (f"; go to {printable(to)}" if to else "")
        self.done: Deferred[None] = Deferred()
        self._server = server
        self._to = to
        self._senders = senders
        self._deadline = server.reactor.seconds() + within_s
        self._flushed = False
        self._over = False
        self._unserved = 0
        self._waiters: list[Deferred[DrainState]] = []
        self._asked = False
        self._watchers: set[Peer] = set()
        self._told_at = server.reactor.seconds()
        log.info("drain.began", peers=server.connections, within_s=within_s, to=to)
        server.shut(self.text, Shut(self.text))
        _ = flush().addBoth(self._safe)
        self._looping: LoopingProcess | None = looping_background_process(
            server.reactor, "drain", LOOK_S, self._look
        )

    def stop(self) -> None:
        """Wait for nobody any more; `done` does not fire."""
        if self._looping is not None:
            looping, self._looping = self._looping, None
            _ = looping.stop()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(self.state())

    def state(self) -> DrainState:
        """Return how far it is."""
        peers = [peer for peer in self._peers() if self._awaited(peer)]
        owed = [peer for peer in peers if self._owes(peer)]
        now = self._server.reactor.seconds()
        return DrainState(
            peers=len(peers),
            behind=len(owed),
            rows=sum(peer.status(now).behind_rows for peer in owed),
            seconds_left=round(max(0.0, self._deadline - now), 3),
            over=self._over,
            unserved=self._unserved,
            to=self._to,
            senders=self._senders(),
        )

    def watch(self, peer: Peer) -> None:
        """Tell *peer* how far it is, now, each second and at the end; it is the last to go."""
        self._watchers.add(peer)
        peer.send(InfoCommand(self.state().words))

    def wait(self, seconds: float) -> Deferred[DrainState]:
        """Return the state when it is over, or after *seconds*."""
        self._asked = True
        waiter: Deferred[DrainState] = Deferred(self._waiters.remove)
        if self._looping is None:
            waiter.callback(self.state())
            return waiter

        def told() -> None:
            self._waiters.remove(waiter)
            waiter.callback(self.state())

        def settled(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        self._waiters.append(waiter)
        timer = self._server.reactor.callLater(seconds, told)
        return waiter.addBoth(settled)

    def _safe(self, result: object) -> None:
        self._flushed = True

    def _peers(self) -> list[Peer]:
        return [peer for peer in self._server.connected() if peer.closing is None]

    def _awaited(self, peer: Peer) -> bool:
        """Whether *peer* is to go before it is over: all but those who watch and want no more."""
        return peer not in self._watchers or self._owes(peer)

    def _owes(self, peer: Peer) -> bool:
        """Whether *peer* waits for something, or has not said that it is safe with it."""
        acked = peer.acked
        if acked is not None:
            head = self._server.hub.heads.get((_FEDERATION, self._server.instance))
            if head is not None and acked < head.token:
                return True
        return peer.is_behind or peer.unanswered or peer.name in self._senders()

    def _look(self) -> None:
        server = self._server
        server.hub.flush()
        now = server.reactor.seconds()
        late = now >= self._deadline
        if self._flushed or late:
            for peer in self._peers():
                if not self._awaited(peer):
                    continue
                if not self._owes(peer):
                    peer.close(CloseReason.DRAINED, self.text)
                elif late:
                    self._unserved += 1
                    peer.close(CloseReason.DRAINED, f"{self.text}; not everything was sent in time")
            awaited = any(map(self._awaited, server.connected())) or self._senders()
            self._over = late or not awaited
        if self._over or now >= self._told_at + TELL_S:
            self._told_at = now
            self._tell()
        if self._over:
            log.info("drain.over", unserved=self._unserved, senders=self._senders())
            about_to_ask = self._asked and not self._waiters
            self.stop()
            # Who waits for the state is answered before the process begins to end.
            end_in_s = ASKS_AGAIN_S if about_to_ask else 0
            server.reactor.callLater(end_in_s, self.done.callback, None)

    def _tell(self) -> None:
        """Tell those who watch how far it is; the end is their end, too."""
        words = InfoCommand(self.state().words)
        for peer in self._watchers.intersection(self._peers()):
            peer.send(words)
            if self._over:
                peer.close(CloseReason.DRAINED, self.text)
