"""Producers whose appends are taken once, however often they are sent (protocol.md section 7.12).

A *producer* is whoever writes under a name of its choice. It numbers its appends 1, 2, 3 ... over
all streams, and the numbers go on when it begins anew. The rules are those of Kafka's idempotent
producer, but for that:

* the next number is taken;
* a number that was taken is answered as the first time, and nothing is appended;
* a number further on is refused with the one that is expected: a *hole*;
* whoever claims the name gets a new *epoch*, and who has an older one is *fenced*: refused with the
  current epoch, whatever it says.

What is here is pure. A log asks `check` before it appends, says `begun` when it has given out
tokens, and `settled` or `refused` once it is known what became of them; it commits state and
answers together with the rows. An append that was refused takes those behind it with it, so that
nothing passes it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

from tcprepl.errors import (
    EpochFenced,
    EpochTooHigh,
    SequenceHole,
    SequenceTooOld,
    TooManyProducers,
)
from tcprepl.ids import ProducerName
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.log import Appended

#: Answers that are remembered of each producer: as many appends as one may have unanswered.
ANSWERS_KEPT: Final = 4_096
#: Producers that are remembered.
MAX_PRODUCERS: Final = 10_000
#: The highest epoch that can be asked for: claims beyond it get the next one, and never run out.
MAX_EPOCH_ASKED: Final = 2**62
#: Answers that are remembered of all; those of who was not used for longest go.
MAX_ANSWERS: Final = 262_144


class Produced(NamedTuple):
    """Which append of which producer this is.

    Attributes:
        producer: The producer's name.
        epoch: The epoch that it claimed.
        sequence: The number of the append, from 1.
    """

    producer: ProducerName
    epoch: int
    sequence: int


class Answer(NamedTuple):
    """What was answered to an append."""

    sequence: int
    appended: Appended


class ProducerState(NamedTuple):
    """What is told of a producer, and stored.

    Attributes:
        epoch: The newest epoch that was claimed.
        sequence: The last number that was taken; the next is one more.
        used_ms: When it was last used, in wall-clock ms since 1970.
    """

    epoch: int
    sequence: int
    used_ms: int


class _Producer:
    """One producer.

    Attributes:
        epoch: The newest epoch that was claimed.
        sequence: The last number that is settled.
        begun: The last number that was given tokens; those above *sequence* are under way.
        used_ms: When it was last used.
        answers: The answers to the last numbers, settled or under way, oldest first.
    """

    __slots__ = ("answers", "begun", "epoch", "sequence", "used_ms")

    def __init__(self, state: ProducerState) -> None:
        self.epoch = state.epoch
        self.sequence = self.begun = state.sequence
        self.used_ms = state.used_ms
        self.answers: deque[Answer] = deque(maxlen=ANSWERS_KEPT)

    @property
    def state(self) -> ProducerState:
        return ProducerState(self.epoch, self.sequence, self.used_ms)


class Producers:
    """Every producer of one log.

    Invariant: of each producer the numbers up to its sequence were taken, each once and in order.
    """

    def __init__(self) -> None:
        self._producers: OrderedDict[ProducerName, _Producer] = OrderedDict()
        self._answers = 0

    @property
    def answers(self) -> int:
        """How many answers are remembered."""
        return self._answers

    def restore(
        self, name: ProducerName, state: ProducerState, answers: Iterable[Answer] = ()
    ) -> None:
        """Take over what was stored of a producer."""
        producer = self._producers[name] = _Producer(state)
        for answer in answers:
            self._remember(producer, answer)

    def _remember(self, producer: _Producer, answer: Answer) -> None:
        self._answers += len(producer.answers) < ANSWERS_KEPT
        producer.answers.append(answer)
        if self._answers > MAX_ANSWERS:
            self._forget_answers(MAX_ANSWERS // 2)

    def _forget_answers(self, most: int) -> None:
        """Forget what was answered to those who were not used for longest, up to *most*.

        Their numbers are still known: none is taken twice.
        """
        for producer in self._producers.values():
            while self._answers > most and producer.answers:
                if producer.answers[0].sequence > producer.sequence:
                    break  # under way
                producer.answers.popleft()
                self._answers -= 1

    def state(self, name: ProducerName) -> ProducerState | None:
        """Return what is known of a producer, None for one that never claimed its name."""
        found = self._producers.get(name)
        return None if found is None else found.state

    def names(self) -> list[ProducerName]:
        """Return the producers, the one that was not used for longest first."""
        return list(self._producers)

    # -- claiming a name -----------------------------------------------------------------------

    def claim(self, name: ProducerName, epoch: int | None, now_ms: int) -> ProducerState:
        """Fence whoever has the name, and return the state that its new holder begins with.

        What this returns has to be stored before the holder hears of it. Numbers that are under
        way may still be taken: it hears of the state once that is known, lest it give a number
        of its own to what somebody else has sent.

        Args:
            name: The producer.
            epoch: The epoch to hold: the present one goes on, a higher one fences; None takes the
                next one.
            now_ms: Wall-clock time in ms since 1970.

        Raises:
            EpochFenced: *epoch* is below the present one.
            EpochTooHigh: *epoch* is above `MAX_EPOCH_ASKED`.
            TooManyProducers: there is no room for another name.
        """
        producer = self._producers.get(name)
        current = 0 if producer is None else producer.epoch
        if epoch is not None and epoch > max(MAX_EPOCH_ASKED, current):
            raise EpochTooHigh(name, epoch, current, MAX_EPOCH_ASKED)
        if epoch is None:
            epoch = min(current + 1, MAX_TOKEN)
        if producer is None:
            if len(self._producers) >= MAX_PRODUCERS:
                raise TooManyProducers(name, MAX_PRODUCERS)
            producer = self._producers[name] = _Producer(ProducerState(0, 0, now_ms))
        if epoch < producer.epoch:
            raise EpochFenced(name, epoch, producer.epoch)
        producer.epoch = epoch
        self._use(name, producer, now_ms)
        return producer.state

    def _use(self, name: ProducerName, producer: _Producer, now_ms: int) -> None:
        producer.used_ms = max(now_ms, producer.used_ms)
        self._producers.move_to_end(name)

    # -- appending ---------------------------------------------------------------------------

    def check(self, produced: Produced) -> Appended | None:
        """Return what this number was answered, or will be; None if it is the next to be taken.

        Raises:
            EpochFenced: somebody else has claimed the name since, or nobody has.
            SequenceHole: numbers before this one were not taken.
            SequenceTooOld: it was taken, so long ago that the answer is forgotten.
        """
        name, epoch, sequence = produced
        producer = self._producers.get(name)
        if producer is None:
            raise EpochFenced(name, epoch, 0)
        if epoch != producer.epoch:
            raise EpochFenced(name, epoch, producer.epoch)
        expected = producer.begun + 1
        if sequence == expected:
            return None
        if sequence > expected:
            raise SequenceHole(name, sequence, expected)
        index = sequence - expected + len(producer.answers)
        if index < 0 or producer.answers[index].sequence != sequence:
            raise SequenceTooOld(name, sequence, expected)
        return producer.answers[index].appended

    def under_way(self, produced: Produced) -> bool:
        """Return whether a number that `check` knows is not settled yet."""
        return produced.sequence > self._producers[produced.producer].sequence

    def waits(self, name: ProducerName) -> bool:
        """Return whether numbers of the producer are under way."""
        producer = self._producers[name]
        return producer.begun > producer.sequence

    def begun(self, produced: Produced, appended: Appended, now_ms: int) -> None:
        """Note that the next number, which `check` let pass, has been given these tokens."""
        producer = self._producers[produced.producer]
        producer.begun = produced.sequence
        self._use(produced.producer, producer, now_ms)
        self._remember(producer, Answer(produced.sequence, appended))

    def settled(self, produced: Produced) -> None:
        """Note that a number under way was taken for good: its rows are as safe as they will be."""
        producer = self._producers[produced.producer]
        producer.sequence = max(producer.sequence, produced.sequence)

    def refused(self, produced: Produced) -> None:
        """Note that a number under way was not taken, and so none behind it; all may come again."""
        producer = self._producers[produced.producer]
        while producer.begun >= produced.sequence and producer.begun > producer.sequence:
            producer.answers.pop()
            producer.begun -= 1
            self._answers -= 1

    # -- forgetting --------------------------------------------------------------------------

    def expire(self, before_ms: int, limit: int = 1_000) -> list[ProducerName]:
        """Forget producers that were not used since *before_ms*, and return their names."""
        gone = [
            name
            for name, producer in islice(self._producers.items(), limit)
            if producer.used_ms < before_ms and producer.begun == producer.sequence
        ]
        for name in gone:
            self._answers -= len(self._producers.pop(name).answers)
        return gone
