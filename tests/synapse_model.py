"""How a process of Synapse takes lines of its replication: what it drops, what it fetches.

A model, from what was seen of 1.163.2: of streams whose writers share one sequence.
"""

from __future__ import annotations

from tcprepl.ids import Pair

#: What was written, by pair: tokens in the order in which they were written.
Written = dict[Pair, list[int]]


class SynapseModel:
    """A process that keeps no rows but their tokens.

    Args:
        instance: Its own name: what it wrote itself it does not hear.
        written: The database, which is what everybody wrote.
        streams: The streams that its release has.

    Attributes:
        seen: What it has of each pair.
        fetches: The positions for which it asked the database.
    """

    def __init__(self, instance: str, written: Written, streams: set[str]) -> None:
        self.instance = instance
        self.written = written
        self.streams = streams
        self.seen: Written = {}
        self.fetches: list[str] = []
        self.places: dict[Pair, int] = {pair: max(t, default=0) for pair, t in written.items()}
        self.seen = {pair: list(tokens) for pair, tokens in written.items()}
        self._follows: set[str] = set()
        self._pending: dict[str, str] = {}

    def connect(self) -> None:
        """Begin with a new connection."""
        self._follows.clear()

    def hear(self, line: str) -> None:
        """Take a line."""
        word, _, rest = line.partition(" ")
        if word == "RDATA":
            self._row(*rest.split(" ", 3))
        elif word == "POSITION":
            stream, instance, prev, new = rest.split(" ")
            self._position((stream, instance), int(prev), int(new), line)

    def current(self, pair: Pair) -> int:
        """Return where it takes the writer to be."""
        settled = self._settled(pair[0])
        return max(self.places.get(pair, settled), settled)

    def _settled(self, stream: str) -> int:
        """Return up to where it has every token of *stream*, whoever wrote it."""
        others = [t for (s, i), t in self.places.items() if s == stream and i != self.instance]
        used: set[int] = set()
        for pair, tokens in self.written.items():
            if pair[0] == stream:
                used |= set(tokens if pair[1] == self.instance else self.seen.get(pair, ()))
        settled = min(others, default=0)
        while settled + 1 in used:
            settled += 1
        return settled

    def _row(self, stream: str, instance: str, token: str, row: str) -> None:
        pair = (stream, instance)
        assert stream in self.streams, stream
        if instance == self.instance or stream not in self._follows:
            return
        if token == "batch":
            assert self._pending.setdefault(stream, instance) == instance, "batches are mixed up"
            return
        assert self._pending.pop(stream, instance) == instance, "batches are mixed up"
        if int(token) > self.current(pair):
            self._take(pair, int(token))
            self.places[pair] = int(token)

    def _take(self, pair: Pair, token: int) -> None:
        had = self.seen.setdefault(pair, [])
        assert not had or token > had[-1], f"{pair}: {token} after {had[-1]}"
        had.append(token)

    def _position(self, pair: Pair, prev: int, new: int, line: str) -> None:
        stream, instance = pair
        assert stream in self.streams, stream
        if instance == self.instance:
            return
        current = self.current(pair)
        if new <= current and stream in self._follows:
            return
        self._pending.pop(stream, None)
        if not prev <= current <= new:
            self.fetches.append(f"{line} at {current}")
            for token in self.written.get(pair, ()):
                if current < token <= new:
                    self._take(pair, token)
        self.places[pair] = max(new, self.places.get(pair, 0))
        self._follows.add(stream)

    def missing(self) -> dict[Pair, list[int]]:
        """Return what others wrote and it does not have."""
        return {
            pair: [token for token in tokens if token not in set(self.seen.get(pair, ()))]
            for pair, tokens in self.written.items()
            if pair[1] != self.instance and set(tokens) - set(self.seen.get(pair, ()))
        }
