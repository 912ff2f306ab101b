"""Producers of a log whose commits take time: what is under way, who waits for it, what is owed.

`Producers` has the rules; this keeps them while appends wait for the disk. An append that is
sent again while the first is under way is answered together with it. A commit that the disk refused
takes along what its producers have under way in later ones. An ephemeral append would be published
at once: it waits for the durable ones that its producer has under way, and all that follow for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from twisted.internet.defer import Deferred, fail, succeed

from tcprepl.errors import ProducerError
from tcprepl.ids import ProducerName
from tcprepl.streams.commits import Append, Batch, Claim, Item
from tcprepl.streams.engine import Commit
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import Answer, Produced, Producers, ProducerState

#: Makes the append anew, as ``again(produced=...)``.
Again: TypeAlias = Callable[..., "Deferred[Appended]"]


class Producing:
    """What the producers of one log have under way.

    Args:
        producers: The rules, and the state.
    """

    def __init__(self, producers: Producers) -> None:
        self._producers = producers
        #: Who waits for an append that was under way when they asked.
        self._repeats: dict[tuple[ProducerName, int], list[Deferred[Appended]]] = {}
        #: Appends that have not begun: they wait for those before them.
        self._queues: dict[ProducerName, deque[tuple[Produced, Again, Deferred[Appended]]]] = {}
        #: What was published at once, of which the disk has not heard.
        self._at_once: dict[ProducerName, list[Answer]] = {}
        #: Who is to be forgotten there.
        self._forgotten: set[ProducerName] = set()

    @property
    def owes_disk(self) -> bool:
        """Whether there is something to write for which nobody waits."""
        return bool(self._at_once or self._forgotten)

    # -- before the commit ---------------------------------------------------------------------

    def may_begin(self, produced: Produced) -> bool:
        """Return whether a run that is to be written would begin now."""
        return produced.producer not in self._queues and self._producers.is_next(produced)

    def ask(self, produced: Produced, again: Again, *, at_once: bool) -> Deferred[Appended] | None:
        """Return what an append is answered; None when it is to begin now.

        Args:
            produced: Which append it is.
            again: Makes it anew, once it can begin.
            at_once: Whether it is published as soon as it begins.
        """
        name = produced.producer
        queue = self._queues.get(name)
        if queue is not None:
            return self._wait(queue, produced, again)
        try:
            known = self._producers.check(produced)
        except ProducerError:
            return fail()
        if known is not None:
            if not self._producers.under_way(produced):
                return succeed(known)
            repeated: Deferred[Appended] = Deferred()
            self._repeats.setdefault((name, produced.sequence), []).append(repeated)
            return repeated.addCallback(lambda _: known)  # it may be one of a run
        if at_once and self._producers.waits(name):
            queue = self._queues[name] = deque()
            return self._wait(queue, produced, again)
        return None

    def _wait(
        self,
        queue: deque[tuple[Produced, Again, Deferred[Appended]]],
        produced: Produced,
        again: Again,
    ) -> Deferred[Appended]:
        answered: Deferred[Appended] = Deferred()
        queue.append((produced, again, answered))
        return answered

    def taken_at_once(self, produced: Produced, appended: Appended) -> None:
        """Note that an append that has begun is published; the disk hears of it soon."""
        self._producers.settled(produced)
        answer = Answer(produced.sequence, appended, produced.appends)
        self._at_once.setdefault(produced.producer, []).append(answer)

    def forget(self, names: Iterable[ProducerName]) -> None:
        """Have the disk forget producers that the rules have forgotten."""
        for name in names:
            self._at_once.pop(name, None)
            self._forgotten.add(name)

    def gather(self, commit: Commit) -> None:
        """Put into *commit* what nobody waits for: it came before what is in there already."""
        commit.at_once, self._at_once = self._at_once, {}
        for name, answers in commit.at_once.items():
            state = self._producers.state(name)
            assert state is not None, "what is forgotten is not written"
            commit.note(name, state._replace(sequence=answers[-1].last))
            commit.answers[name] = answers + commit.answers.get(name, [])
        commit.forgotten, self._forgotten = self._forgotten, set()

    # -- after it ------------------------------------------------------------------------------

    def finished(
        self, batch: Batch, error: BaseException | None, waiting: list[Item]
    ) -> set[ProducerName]:
        """Note that a commit is on disk, or that the disk refused it for *error*.

        In that case appends that follow one of its own leave *waiting*, and join *batch*.

        Returns:
            Whose appends it held: `go_on` with them once everybody has been answered.
        """
        appends = [item for item in batch.items if isinstance(item, Append) and item.produced]
        if error is not None:
            appends += self._refused(batch, appends, waiting)
        for append in appends:
            produced = append.produced
            assert produced is not None
            if error is None:
                self._producers.settled(produced)
            else:
                self._producers.refused(produced)
            if self._repeats:
                for sequence in range(produced.sequence, produced.last + 1):
                    append.waiting += self._repeats.pop((produced.producer, sequence), ())
        return {append.produced.producer for append in appends if append.produced}

    def _refused(self, batch: Batch, appends: list[Append], waiting: list[Item]) -> list[Append]:
        """Write again what nobody waits for; return what goes along with *appends*."""
        self.owe_again(batch.commit)
        names = {append.produced.producer for append in appends if append.produced}
        along: list[Append] = []
        left: list[Item] = []
        for item in waiting:
            if isinstance(item, Append) and item.produced and item.produced.producer in names:
                along.append(item)
            else:
                left.append(item)
        if along:
            waiting[:] = left
            batch.items += along
        return along

    def owe_again(self, commit: Commit) -> None:
        """Have that written again of *commit*, which was not, for which nobody waits."""
        self._forgotten.update(commit.forgotten)
        for name, answers in commit.at_once.items():
            self._at_once.setdefault(name, [])[:0] = answers

    def claimed(self, claim: Claim) -> ProducerState:
        """Return what is answered to a claim that is on disk."""
        state = self._producers.state(claim.name)
        sequence = 0 if state is None else state.sequence
        return ProducerState(claim.epoch, sequence, claim.used_ms)

    def go_on(self, names: Iterable[ProducerName]) -> None:
        """Begin what has waited, as far as it need not wait any more."""
        for name in names:
            if name not in self._queues or self._producers.waits(name):
                continue
            # Each asks anew: whoever has to wait again has those that follow behind it.
            for produced, again, answered in self._queues.pop(name):
                _ = again(produced=produced).addBoth(answered.callback)
