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

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
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

#: Appends of each producer whose answer is remembered at least.
ANSWERS_KEPT: Final = 4_096
#: Producers that are remembered.
MAX_PRODUCERS: Final = 10_000
#: The highest epoch that can be asked for: claims beyond it get the next one, and never run out.
MAX_EPOCH_ASKED: Final = 2**62
#: Such appends of all; those of who was not used for longest go.
MAX_ANSWERS: Final = 262_144

_SEQUENCE: Final = attrgetter("sequence")


class Produced(NamedTuple):
    """Which append of which producer this is, or which appends of one row each.

    Attributes:
        producer: The producer's name.
        epoch: The epoch that it claimed.
        sequence: The number of the append, from 1; of the first of many.
        appends: How many these are, each with the next number and one row: a run.
    """

    producer: ProducerName
    epoch: int
    sequence: int
    appends: int = 1

    @property
    def last(self) -> int:
        """The number of the last append."""
        return self.sequence + self.appends - 1


class Answer(NamedTuple):
    """What was answered to an append, or to a run of them.

    Attributes:
        sequence: The number of the first append.
        appended: The tokens of all.
        appends: How many these are; each has as many tokens as the others.
    """

    sequence: int
    appended: Appended
    appends: int = 1

    @property
    def last(self) -> int:
        """The number of the last append."""
        return self.sequence + self.appends - 1

    def of(self, sequence: int) -> Appended:
        """Return what one of the appends was answered."""
        if self.appends == 1:
            return self.appended
        every = self.appended
        width = (every.last - every.first + 1) // self.appends
        first = every.first + (sequence - self.sequence) * width
        return Appended(every.stream, every.instance, first, first + width - 1)


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
        self.answers: deque[Answer] = deque()

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
        """To how many appends the answer is remembered."""
        return self._answers

    def restore(
        self, name: ProducerName, state: ProducerState, answers: Iterable[Answer] = ()
    ) -> None:
        """Take over what was stored of a producer."""
        producer = self._producers[name] = _Producer(state)
        for answer in answers:
            self._remember(producer, answer)

    def _remember(self, producer: _Producer, answer: Answer) -> None:
        answers = producer.answers
        answers.append(answer)
        self._answers += answer.appends
        while answers[0].last <= min(answer.last - ANSWERS_KEPT, producer.sequence):
            self._answers -= answers.popleft().appends
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
                self._answers -= producer.answers.popleft().appends

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

        A run has to be next: ask `is_next` before.

        Raises:
            EpochFenced: somebody else has claimed the name since, or nobody has.
            SequenceHole: numbers before this one were not taken.
            SequenceTooOld: it was taken, so long ago that the answer is forgotten.
        """
        name, epoch, sequence, appends = produced
        assert appends == 1 or self.is_next(produced), "a run is not next"
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
        answers = producer.answers
        index = bisect_right(answers, sequence, key=_SEQUENCE) - 1
        if index < 0 or sequence > answers[index].last:
            raise SequenceTooOld(name, sequence, expected)
        return answers[index].of(sequence)

    def is_next(self, produced: Produced) -> bool:
        """Return whether these numbers are the next to be taken, each of them, as `check` says."""
        producer = self._producers.get(produced.producer)
        return producer is not None and produced[1:3] == (producer.epoch, producer.begun + 1)

    def under_way(self, produced: Produced) -> bool:
        """Return whether a number that `check` knows is not settled yet."""
        return produced.sequence > self._producers[produced.producer].sequence

    def waits(self, name: ProducerName) -> bool:
        """Return whether numbers of the producer are under way."""
        producer = self._producers[name]
        return producer.begun > producer.sequence

    def begun(self, produced: Produced, appended: Appended, now_ms: int) -> None:
        """Note that the next numbers, which `check` let pass, have been given these tokens."""
        producer = self._producers[produced.producer]
        producer.begun = produced.last
        self._use(produced.producer, producer, now_ms)
        self._remember(producer, Answer(produced.sequence, appended, produced.appends))

    def settled(self, produced: Produced) -> None:
        """Note that a number under way was taken for good: its rows are as safe as they will be."""
        producer = self._producers[produced.producer]
        producer.sequence = max(producer.sequence, produced.last)

    def refused(self, produced: Produced) -> None:
        """Note that a number under way was not taken, and so none behind it; all may come again."""
        producer = self._producers[produced.producer]
        while producer.begun >= produced.sequence and producer.begun > producer.sequence:
            answer = producer.answers.pop()
            producer.begun = answer.sequence - 1
            self._answers -= answer.appends

    # -- forgetting --------------------------------------------------------------------------

    def expire(self, before_ms: int, limit: int = 1_000) -> list[ProducerName]:
        """Forget producers that were not used since *before_ms*, and return their names."""
        gone = [
            name
            for name, producer in islice(self._producers.items(), limit)
            if producer.used_ms < before_ms and producer.begun == producer.sequence
        ]
        for name in gone:
            self._answers -= sum(answer.appends for answer in self._producers.pop(name).answers)
        return gone
