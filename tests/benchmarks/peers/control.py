"""The control port of a server under test; runs in any Python from 3.7 on, with Twisted or not.

The driver connects and writes lines ``TURNS ROWS KIND``: the server then publishes ROWS rows in
each of the next TURNS turns of its reactor, in the calls that ``rows.turns`` says. The kind
``stamped`` publishes rows that carry the time of their publication, for latencies: ROWS in one
turn, every other one a receipt with the time, the rest typing. Nothing is answered: the driver
sees the rows.
"""

import time


class Publisher:
    """Keeps count of what is to be published, and publishes it turn by turn.

    Args:
        call_later: Twisted's ``reactor.callLater``.
        publish: Called with (stream, rows).
        rows: The module that makes the rows.
        turn_done: Called when everything of a turn was published, if given.
    """

    def __init__(self, call_later, publish, rows, turn_done=None):
        self._call_later = call_later
        self._publish = publish
        self._rows = rows
        self._turn_done = turn_done
        self._turns = {}
        self._next = {}
        self._owed = []
        self._rest = b""

    def received(self, data):
        """Take bytes of the control connection."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        idle = not self._owed
        for line in lines:
            turns, size, kind = line.decode().split()
            self._owed.append([int(turns), int(size), kind])
        if idle and self._owed:
            self._turn()

    def _turn(self):
        first = self._owed[0]
        _, size, kind = first
        if kind == "stamped":
            calls = self._stamped(size)
        else:
            if (size, kind) not in self._turns:
                self._turns[size, kind] = self._rows.turns(kind, size, max(10, 2000 // size))
                self._next[size, kind] = 0
            some = self._turns[size, kind]
            calls = some[self._next[size, kind] % len(some)]
            self._next[size, kind] += 1
        self._take(first)
        publish = self._publish
        for stream, batch in calls:
            publish(stream, batch)
        if self._turn_done is not None:
            self._turn_done()

    def _stamped(self, size):
        calls = []
        for number in range(size):
            if number % 2:
                calls.append(("typing", [self._rows.row("typing", number)]))
                continue
            row = self._rows.row("receipts", 7)
            row[4] = {"ts": time.perf_counter_ns()}
            calls.append(("receipts", [row]))
        return calls

    def _take(self, order):
        order[0] -= 1
        if not order[0]:
            self._owed.pop(0)
        if self._owed:
            self._call_later(0, self._turn)
