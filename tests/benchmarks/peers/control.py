"""The control port of a server under test; runs in any Python from 3.7 on, with Twisted or not.

The driver connects and writes lines ``TURNS ROWS``: the server then publishes ROWS rows in
each of the next TURNS turns of its reactor. ``1 0`` publishes one row that carries the time
of its publication, for latencies. Nothing is answered: the driver sees the rows.
"""

import time


def row_batches(rows, size, count):
    """Return *count* (stream, rows) batches of *size* rows, made once and used in turn."""
    source = rows.batches(size)
    return [next(source) for _ in range(count)]


class Publisher:
    """Keeps count of what is to be published, and publishes one batch a turn.

    Args:
        call_later: Twisted's ``reactor.callLater``.
        publish: Called with (stream, rows).
        rows: The module that makes the rows.
    """

    def __init__(self, call_later, publish, rows):
        self._call_later = call_later
        self._publish = publish
        self._rows = rows
        self._batches = {}
        self._next = {}
        self._owed = []
        self._rest = b""

    def received(self, data):
        """Take bytes of the control connection."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        idle = not self._owed
        for line in lines:
            turns, size = line.split()
            self._owed.append([int(turns), int(size)])
        if idle and self._owed:
            self._turn()

    def _turn(self):
        first = self._owed[0]
        size = first[1]
        if size == 0:
            self._take(first)
            row = self._rows.row("receipts", 7)
            row[4] = {"ts": time.perf_counter_ns()}
            self._publish("receipts", [row])
            return
        if size not in self._batches:
            self._batches[size] = row_batches(self._rows, size, max(10, 2000 // size))
            self._next[size] = 0
        some = self._batches[size]
        stream, batch = some[self._next[size] % len(some)]
        self._next[size] += 1
        self._take(first)
        self._publish(stream, batch)

    def _take(self, order):
        order[0] -= 1
        if not order[0]:
            self._owed.pop(0)
        if self._owed:
            self._call_later(0, self._turn)
