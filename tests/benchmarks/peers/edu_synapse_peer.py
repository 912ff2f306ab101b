"""Synapse 1.66's own path of an EDU: from RDATA lines to finished transaction bodies.

Runs in the virtual environment of Synapse: ``python edu_synapse_peer.py COUNT DESTINATIONS
(canonical|synapse)``; prints the CPU time in us per EDU. Parsing, rows, EDU objects, queues and
JSON are Synapse's. What hangs below (databases, back-off, signatures, background processes,
logging, the command handler's queue) is left out, all in Synapse's favour.
"""

import importlib.util
import sys
import time
from pathlib import Path

from canonicaljson import encode_canonical_json
from synapse.federation.send_queue import process_rows_for_federation
from synapse.federation.sender.per_destination_queue import PerDestinationQueue
from synapse.federation.units import Transaction
from synapse.replication.tcp.protocol import ClientReplicationStreamProtocol
from synapse.replication.tcp.streams.federation import FederationStream
from synapse.util import Clock
from twisted.internet import reactor
from twisted.internet.testing import StringTransport

ORIGIN = "matrix.example.com"


def load(path):
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Queue(PerDestinationQueue):
    """A destination's queue that waits until it is asked for a transaction."""

    def __init__(self, destination):
        self._destination = destination
        self._pending_edus = []
        self._pending_edus_keyed = {}

    def attempt_new_transaction(self):
        """Do nothing yet."""

    def body(self, number):
        """Return the body of the next transaction, None if nothing waits."""
        edus = self._pop_pending_edus(100)
        while len(edus) < 100 and self._pending_edus_keyed:
            edus.append(self._pending_edus_keyed.popitem()[1])
        if not edus:
            return None
        transaction = Transaction(
            origin_server_ts=int(time.time() * 1000),
            transaction_id=str(number),
            origin=ORIGIN,
            destination=self._destination,
            pdus=[],
            edus=[edu.get_dict() for edu in edus],
        )
        return encode_canonical_json(transaction.get_dict())


class Sender:
    """Hands EDUs to the queue of their destination, as Synapse's sender does."""

    def __init__(self):
        self.queues = {}

    def send_edu(self, edu, key):
        """Queue one EDU."""
        queue = self.queues.get(edu.destination)
        if queue is None:
            queue = self.queues[edu.destination] = Queue(edu.destination)
        if key:
            queue.send_keyed_edu(edu, key)
        else:
            queue.send_edu(edu)


class Handler:
    """Stands for the command handler: hands rows on at once."""

    def __init__(self, sender):
        self.sender = sender

    def on_RDATA(self, connection, command):
        """Take one row; each has a token of its own, so each is a group of its own."""
        row = FederationStream.parse_row(command.row)
        process_rows_for_federation(self.sender, [row])

    def new_connection(self, connection):
        """Do nothing."""

    def lost_connection(self, connection):
        """Do nothing."""


def connect(sender):
    """Return a connected protocol in front of *sender*."""
    protocol = ClientReplicationStreamProtocol(
        None, "fed1", ORIGIN, Clock(reactor), Handler(sender)
    )
    transport = StringTransport()
    transport.registerProducer = lambda *_: None
    protocol.makeConnection(transport)
    protocol.dataReceived(b"SERVER matrix.example.com\nPING 1\n")
    return protocol


def run(reads, reads_per_request):
    """Take some reads, make bodies until nothing waits, go on; return how many EDUs they held."""
    sender = Sender()
    protocol = connect(sender)
    number_of_bodies = edus = 0
    for number, data in enumerate(reads):
        protocol.dataReceived(data)
        if number % reads_per_request == reads_per_request - 1:
            for queue in sender.queues.values():
                while True:
                    body = queue.body(number_of_bodies)
                    if body is None:
                        break
                    number_of_bodies += 1
                    edus += body.count(b'"edu_type"')
    return edus


def main():
    """Print the CPU time in us per EDU."""
    count = int(sys.argv[1])
    module = load(Path(__file__).resolve().parent.parent / "edu_lines.py")
    lines = module.lines(count, int(sys.argv[2]), sys.argv[3] == "canonical")
    size = module.LINES_PER_READ
    reads = [b"".join(lines[n : n + size]) for n in range(0, count, size)]
    run(reads[:10], module.READS_PER_REQUEST)
    before = time.process_time()
    edus = run(reads, module.READS_PER_REQUEST)
    used = time.process_time() - before
    assert edus == count, (edus, count)
    print(used / count * 1e6)


main()
