"""What the simulated worlds are worth: faults of old put back one by one, and found.

``python -m tests.simulation.unmended`` takes each mend out, runs seeds until a promise is broken,
makes the schedule smaller and prints a table. A mend that can be taken out and nothing breaks is
one that the worlds do not know of; the exit code says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from tcprepl.ephemeral.presence_peers import SyncsBelow
from tcprepl.federation.sending.intake import EduIntake
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.protocol.client_session import ClientSession
from tcprepl.replication.following.delivery import Delivery
from tcprepl.replication.relaying.lines import LineReader
from tcprepl.replication.relaying.state import SET_LINEAGE, RelayState
from tcprepl.streams import database, stored
from tcprepl.streams.history import History
from tcprepl.streams.lineage import NEW, Lineage
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.producing import Producing
from tcprepl.web.longpoll import LongPoll
from tests.simulation import universe
from tests.simulation.world import HAPPENINGS, ROUNDS, Failed, play, schedule, shrunk

#: Seeds that are tried before a mend counts as not known to the worlds.
MOST_SEEDS = 40


class Mend(NamedTuple):
    """A mend.

    Attributes:
        removed: Takes it out for as long as it is entered.
        seed: A seed that shows it.
        only: What is enough to happen to show it, so that it is found sooner; empty for
            everything.
    """

    removed: Callable[[], AbstractContextManager[object]]
    seed: int = 0
    only: tuple[str, ...] = ()


def replaced(owner: object, name: str, by: Any) -> Callable[[], AbstractContextManager[object]]:
    """Return what replaces an attribute."""
    return partial(mock.patch.object, owner, name, by)


def answers_at_once(self: Any, item: Any) -> None:
    """Answer an append before it is on disk."""
    if isinstance(item, stored.Append):
        waiting, item.waiting = item.waiting, []
        for waiter in waiting:
            self._reactor.callLater(0, waiter.callback, item.answer)
    _enqueue(self, item)


_enqueue = stored.StoredLog._enqueue


def claims_nothing(self: Any, pair: Any, token: int) -> None:
    """Give tokens of an ephemeral stream out without a note on disk."""
    pair.claimed = max(pair.claimed, token)


@contextmanager
def _no_claims() -> Iterator[None]:
    with (
        mock.patch.object(stored.StoredLog, "_claim", claims_nothing),
        mock.patch.object(stored.StoredLog, "_claim_ahead"),
    ):
        yield


def early(self: Any, entries: Any, now_ms: int, positions: Any, *rest: Any) -> None:
    """Acknowledge EDUs before they are in the outbox on disk."""
    for (_stream, instance), token in positions.items():
        self._acknowledge(instance, token)
    _attempt(self, entries, now_ms, positions, *rest)


_attempt = EduIntake._attempt


def anybody(self: Any, name: str | None, token: int) -> None:
    """Let the acknowledgement of anybody count."""
    self._log.trim("federation", "master", token)


def holds_nothing(self: Any, senders: Any) -> None:
    """Take other senders up by their names, and go on counting by those of before."""
    self._senders = tuple(senders)


def resumes(self: Any, pair: Any, known: Any, prev: int, token: int) -> Any:
    """Take each position as if nothing had been between."""
    return self._tell_position(pair, token)


def in_one_state(self: Any, stored_pair: Any) -> Any:
    """Let an ephemeral stream begin at the highest token of the process before."""
    pair = _add(self, stored_pair)
    if isinstance(pair, stored.EphemeralStream) and stored_pair.position:
        pair.position = stored_pair.position
    return pair


_add = stored.StoredLog._add


def waits_for_ever(self: Any, now: float) -> Any:
    """Take no silence for a sign."""
    self._armed = False
    return _tick(self, now)


_tick = ClientSession.tick


def met_at_first(self: Any) -> Any:
    """Look once for the streams that can be asked for."""
    return self._made if self._streams else _known(self)


_known = LongPoll._known


def forgets(self: Any) -> bool:
    """Listen to an upstream as if for the first time."""
    _follow(self)
    return False


_follow = RelayState.follow


def enters_at_once(self: Any, pair: Any, incarnation: Any, before: int, token: int) -> None:
    """Take a pair for entered though the disk may refuse to keep it."""
    known = self._lineages.get(pair, NEW)
    entered = self._lineages[pair] = known.entered(incarnation, before, token)
    if entered is not known:
        self._write(SET_LINEAGE, (*pair, entered.stored()))


def counts_on(
    self: Any, pair: Any, incarnation: Any, before: int, token: int, *, gap: Any, epoch: Any
) -> None:
    """Let a pair begin anew, and forget by how much the tokens are ahead from then on."""
    self.enter(pair, incarnation, before, token)
    self.add_gap(pair, gap)


@contextmanager
def _no_epochs() -> Iterator[None]:
    with (
        mock.patch.object(RelayState, "set_epoch", return_value=None),
        mock.patch.object(RelayState, "begin_anew", counts_on),
    ):
        yield


@contextmanager
def _no_pairs_at_0() -> Iterator[None]:
    with (
        mock.patch.object(RelayState, "pairs", return_value=[]),
        mock.patch.object(RelayState, "follow", forgets),
    ):
        yield


MENDS = {
    "what a failed handler wrote is undone": Mend(
        replaced(SqlitePositionStore, "rollback", lambda self: None)
    ),
    "a reader's incarnation is looked at when it resumes": Mend(
        replaced(History, "common", lambda self, pair, places: places[0][0] if places else None),
        seed=20,
    ),
    "a reader keeps in which incarnation it got what it has": Mend(
        replaced(Lineage, "entered", lambda self, incarnation, before, token: self), seed=20
    ),
    "a reader that cannot go on is told of the gap": Mend(replaced(Delivery, "_follow", resumes)),
    "an append is answered once it is on disk": Mend(
        replaced(stored.StoredLog, "_enqueue", answers_at_once)
    ),
    "an append that was taken is not taken again": Mend(
        replaced(Producing, "ask", lambda self, produced, again, at_once: None)
    ),
    "a commit that the disk refused is rolled back": Mend(
        replaced(database.Database, "_undo", lambda self: None)
    ),
    "a block has a checksum": Mend(replaced(database, "crc32", lambda body: 0), seed=2),
    "time is measured by a clock that nobody sets": Mend(
        replaced(universe.Process, "steady", False)
    ),
    "a silent server is given up": Mend(replaced(ClientSession, "tick", waits_for_ever), seed=3),
    "a relay keeps what it could not have as a gap": Mend(
        replaced(RelayState, "add_gap", lambda self, pair, gap: None)
    ),
    "a relay knows that it has listened before": Mend(replaced(RelayState, "follow", forgets)),
    "a relay keeps a pair that is at 0": Mend(_no_pairs_at_0),
    "the first line of a connection proves a position, no more": Mend(
        replaced(LineReader, "_first_heard", lambda self, follower, event: [event])
    ),
    "a stream met later is served over HTTP": Mend(replaced(LongPoll, "_known", met_at_first)),
    "a relay keeps by how much its tokens are ahead": Mend(_no_epochs, seed=23),
    "a relay is in an incarnation once its disk says so": Mend(
        replaced(RelayState, "enter", enters_at_once), seed=172, only=("publish", "refuse")
    ),
    "a relay misses workers that end below it": Mend(
        replaced(SyncsBelow, "_miss", lambda self: None), only=("sync",)
    ),
    "only a configured sender's acknowledgement counts": Mend(
        replaced(SendQueue, "acknowledge", anybody)
    ),
    "a sender that is named later holds what it lacks": Mend(
        replaced(SendQueue, "senders", SendQueue.senders.setter(holds_nothing)),
        seed=4,
        only=("queue", "change_senders"),
    ),
    "EDUs are acknowledged once they are in the outbox": Mend(
        replaced(EduIntake, "_attempt", early), seed=16, only=("queue", "kill")
    ),
    "a transaction keeps its id over a crash": Mend(
        replaced(
            Outbox, "begin", lambda self, destination, transaction: self.submit(lambda cursor: None)
        ),
        only=("queue", "trouble", "kill"),
    ),
    "tokens of typing are claimed on disk": Mend(_no_claims, seed=1),
    "a new process begins states one token on": Mend(
        replaced(stored.StoredLog, "_add", in_one_state)
    ),
}


def find(mend: Mend, most: int = MOST_SEEDS) -> tuple[int, Failed, int, int] | None:
    """Return the first seed that shows that *mend* is out, how, at which step, and how few do."""
    with mend.removed():
        for seed in range(mend.seed, mend.seed + most):
            # without what happens besides: the seeds are known to show it without
            steps = schedule(seed, 1 if mend.only else ROUNDS, only=mend.only or [*HAPPENINGS])
            try:
                play(seed, steps)
            except Failed as failed:
                at = len(steps) if failed.step is None else failed.step.number + 1
                return seed, failed, at, len(shrunk(seed, steps, failed, most=40))
    return None


def main() -> int:
    """Print the table."""
    names = [name for name in MENDS if not sys.argv[1:] or any(a in name for a in sys.argv[1:])]
    unknown = 0 if names else 1
    print("| mend removed | seed | steps | enough | what showed |\n|---|---|---|---|---|")
    for name in names:
        found = find(MENDS[name])
        if found is None:
            unknown += 1
            print(f"| {name} | - | - | - | nothing, in {MOST_SEEDS} seeds |", flush=True)
            continue
        seed, failed, at, few = found
        what = str(failed.error).replace("|", "/")[:110]
        print(f"| {name} | {seed} | {at} | {few} | {what} |", flush=True)
    return 1 if unknown else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
