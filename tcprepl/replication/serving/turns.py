"""Who works when: what peers ask for is done in turns of bounded length (protocol.md 10.3).

A read of a socket may hold tens of thousands of lines, and a line may ask for much. So the
work of one turn of the reactor is counted, in lines, and timed; who is not done when its share
is used up goes on in a later turn, after those who have just come. Rows go out, timers run and
other sockets are read in between.

The threads of the disk have to get on, too. One that waits for the interpreter's lock may ask
for it after `sys.getswitchinterval`, which begins again each time that the reactor's thread
gives the lock back for a moment, as it does for each system call: a row that was published
beside peers who ask for much, and read nothing, was not on disk before they were done. As long
as peers have more to do than a turn takes, the interval is `CROWDED_SWITCH_S`.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, NamedTuple, Protocol

from tcprepl.clocks import Reactor
from tcprepl.limits import PEER_TURN_LINES, TURN_LINES, TURN_S
from tcprepl.logger import get_logger

log = get_logger(__name__)

#: How long another thread waits at most for the interpreter while there is more to do than a
#: turn takes: less than between two system calls of the reactor's thread.
CROWDED_SWITCH_S = 0.0001
_USUAL_SWITCH_S = sys.getswitchinterval()


class Worked(NamedTuple):
    """What a worker did with its share: what it cost, and whether it has more to do."""

    lines: int
    more: bool


class Worker(Protocol):
    """Who works in turns; hashed by what it is."""

    def work(self, lines: int, ends_at: float) -> Worked:
        """Do what costs about *lines*, and begin nothing more at *ends_at*.

        A single piece of work may cost more, and the first is done in any case.
        """
        ...

    def failed(self) -> None:
        """End: something that nobody expected came out of `work`, and was logged."""
        ...


class Turns:
    """Shares out each turn of the reactor.

    Invariant: whoever asked to be served and is not done waits in exactly one of the queues,
    and while somebody waits a turn is scheduled.

    Args:
        reactor: For the next turn.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._left = TURN_LINES
        self._left_s = TURN_S
        self._next_turn: Any = None
        #: Whether the last turn was not enough.
        self._crowded = False
        #: Those who came when the turn was used up; they go before those who have had a share.
        self._new: deque[Worker] = deque()
        self._begun: deque[Worker] = deque()
        self._waiting: set[Worker] = set()

    def serve(self, worker: Worker) -> None:
        """Let *worker* work: now if the turn has room, else in a turn to come."""
        if worker in self._waiting:
            return
        if self._has_room:
            self._share(worker)
        else:
            self._waiting.add(worker)
            self._new.append(worker)

    def awaits(self, worker: Worker) -> bool:
        """Return whether *worker* has something to do in a turn to come."""
        return worker in self._waiting

    def forget(self, worker: Worker) -> None:
        """Let *worker* work no more."""
        if worker in self._waiting:
            self._waiting.discard(worker)
            queue = self._new if worker in self._new else self._begun
            queue.remove(worker)

    def close(self) -> None:
        """Let nobody work any more."""
        for queue in (self._new, self._begun, self._waiting):
            queue.clear()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._make_way(crowded=False)

    @property
    def _has_room(self) -> bool:
        return self._left > 0 and self._left_s > 0.0

    def _share(self, worker: Worker) -> None:
        if self._next_turn is None:
            self._next_turn = self._reactor.callLater(0, self._turn)
        began = self._reactor.seconds()
        try:
            worked = worker.work(min(PEER_TURN_LINES, self._left), began + self._left_s)
        except Exception:
            log.exception("replication.peer.failed")
            worker.failed()
            return
        self._left -= worked.lines
        self._left_s -= self._reactor.seconds() - began
        if worked.more:
            self._waiting.add(worker)
            self._begun.append(worker)

    def _turn(self) -> None:
        self._next_turn = None
        self._left, self._left_s = TURN_LINES, TURN_S
        for queue in (self._new, self._begun):
            for _ in range(len(queue)):
                if not self._has_room:
                    break
                worker = queue.popleft()
                self._waiting.discard(worker)
                self._share(worker)
        self._make_way(crowded=bool(self._waiting))

    def _make_way(self, *, crowded: bool) -> None:
        """Let the other threads of the process have the interpreter sooner while it is crowded."""
        if crowded is not self._crowded:
            self._crowded = crowded
            sys.setswitchinterval(CROWDED_SWITCH_S if crowded else _USUAL_SWITCH_S)
