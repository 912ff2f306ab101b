"""Our path of an EDU: from RDATA lines to finished transaction bodies.

``python edu_tcprepl_peer.py COUNT DESTINATIONS (canonical|synapse)`` prints the CPU time in us per
EDU, and how many went in a transaction. The session, the delivery, the intake, the sender and the
destinations are the real ones. As on Synapse's side, what hangs below (disk, network, signatures)
is left out: the outbox keeps nothing and the transport takes everything.
``python edu_tcprepl_peer.py COUNT DESTINATIONS KIND DIRECTORY`` keeps the real outbox, on disk,
written by a thread of its own under a real reactor, as in production.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater, react
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.wire.answer import Answer
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import ReplicateCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.following.delivery import Delivery
from tcprepl.streams.registry import Registry

ORIGIN = "matrix.example.com"


def load(path: Path) -> ModuleType:
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NoDisk:
    """An outbox that keeps nothing and is always done at once."""

    def __init__(self) -> None:
        self.last_id = 0

    def take_ids(self, count: int) -> range:
        """Return new ids."""
        self.last_id += count
        return range(self.last_id - count, self.last_id)

    def newest_ms(self) -> int:
        """Return no stamp."""
        return 0

    def positions(self) -> dict[Any, Any]:
        """Return no positions."""
        return {}

    def lineages(self) -> dict[Any, Any]:
        """Return no incarnations."""
        return {}

    def destinations(self) -> dict[Any, Any]:
        """Return no destinations."""
        return {}

    def add(self, *_: object) -> Deferred[None]:
        """Keep nothing."""
        return succeed(None)

    def load(self, *_: object) -> Deferred[list[Any]]:
        """Return nothing: all that waits is in memory."""
        raise AssertionError("something was left on disk")

    begin = finish = expire = totals = add


class Sink:
    """A transport that takes everything at once, and counts it, as Synapse's peer does.

    As after a real one, a body is gone then: what the memory of many would cost is the machine's.
    To look at the clock before and after would cost more than to count.
    """

    def __init__(self) -> None:
        self.edus = 0
        self.transactions = 0
        self.used_s = 0.0

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        """Take one transaction."""
        self.edus += body.count(b'"edu_type"')
        self.transactions += 1
        return Answer(200, b"{}")


class Connection:
    """What the delivery would stop while the disk is slow; here it never is."""

    def pause(self) -> None:
        """Never asked for."""
        raise AssertionError("the intake is behind")

    resume = give_up = wait = pause  # type: ignore[assignment]


class Way:
    """Everything between the socket and the transport."""

    def __init__(self, clock: Any, outbox: Any, canonical: bool) -> None:
        self.sink = Sink()
        self.sender = FederationSender(clock, outbox, self.sink, ORIGIN)
        self.sender.start()
        intake = self.sender.intake
        intake.canonical = canonical
        self._delivery = Delivery(
            Connection(),
            intake.handle_rows,
            intake,
            Registry(),
            streams=["federation"],
            since="start",
            on_reset=intake.handle_reset,
            on_position=None,
            on_command=None,
            catch_up=None,
            max_attempts=None,
            join_batches=True,
        )
        self._delivery.start()
        self._delivery.begin(DIALECTS["tcprepl"])
        session = self._session = ClientSession(0.0, name="fed1")
        session.receive_data(b"SERVER matrix.example.com\nPING 1 tcprepl/1\n", 0.0)
        session.events(0.0)
        session.send(ReplicateCommand("federation", "*", 0), 0.0)
        session.data_to_send()
        session.receive_data(b"POSITION federation master 0 0\n", 0.0)
        session.events(0.0)

    def take(self, data: bytes) -> None:
        """Take what one read brings."""
        self._session.receive_data(data, 0.0)
        self._delivery.take(self._session.events(0.0))


def in_memory(reads: Sequence[bytes], reads_per_request: int, canonical: bool) -> Sink:
    """Take every read, send until nothing waits."""
    clock = Clock()
    clock.advance(1_790_000_000)
    way = Way(clock, NoDisk(), canonical)
    before = time.process_time()
    for number, data in enumerate(reads):
        way.take(data)
        if number % reads_per_request == reads_per_request - 1:
            clock.advance(0.001)
    while way.sender.pending():
        clock.advance(0.001)
    way.sink.used_s = time.process_time() - before
    return way.sink


async def on_disk(
    reactor: Any, reads: Sequence[bytes], reads_per_request: int, canonical: bool, directory: Path
) -> Sink:
    """Do the same with a real outbox; all that a request brings is sent before the next."""
    pool = ThreadPool(0, 1)
    pool.start()
    outbox = Outbox(
        directory / "outbox.sqlite", lambda work: deferToThreadPool(reactor, pool, work)
    )
    way = Way(reactor, outbox, canonical)
    expected = 0
    before = time.process_time()
    for number, data in enumerate(reads):
        way.take(data)
        expected += data.count(b"\n")
        if number % reads_per_request == reads_per_request - 1:
            while way.sink.edus < expected or way.sender.pending():
                await deferLater(reactor, 0.005)
    way.sink.used_s = time.process_time() - before
    await outbox.close()
    pool.stop()
    return way.sink


def main() -> None:
    """Print the CPU time in us per EDU, and how many EDUs went in a transaction."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    count = int(sys.argv[1])
    module = load(Path(__file__).resolve().parent.parent / "edu_lines.py")
    lines = module.lines(count, int(sys.argv[2]), sys.argv[3] == "canonical")
    size = module.LINES_PER_READ
    reads = [b"".join(lines[n : n + size]) for n in range(0, count, size)]
    canonical = sys.argv[3] == "canonical"
    per_request = module.READS_PER_REQUEST
    in_memory(reads[:10], per_request, canonical)
    found: list[Sink] = []
    if len(sys.argv) > 4:
        directory = Path(sys.argv[4])

        async def go(reactor: Any) -> None:
            found.append(await on_disk(reactor, reads, per_request, canonical, directory))

        with suppress(SystemExit):
            react(go)
    else:
        found.append(in_memory(reads, per_request, canonical))
    sink = found[0]
    assert sink.edus == count, (sink.edus, count)
    print(sink.used_s / count * 1e6, count / sink.transactions)


main()
