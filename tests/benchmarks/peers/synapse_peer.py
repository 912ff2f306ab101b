"""Synapse 1.66's own replication classes, as a server or as a worker under test.

Runs in the virtual environment of Synapse: ``python synapse_peer.py server PORT CONTROL``
or ``python synapse_peer.py worker PORT ROWS``. Everything on the path of a row is Synapse's:
the protocol classes on real sockets, `ReplicationStreamer` on the way out, and
`ReplicationCommandHandler` with its queues and background processes on the way in. What hangs
below (databases, notifier, log lines) is left out, in Synapse's favour.
"""

import importlib.util
import sys
from collections import deque
from pathlib import Path

from synapse.replication.tcp.handler import ReplicationCommandHandler
from synapse.replication.tcp.protocol import (
    ClientReplicationStreamProtocol,
    ServerReplicationStreamProtocol,
)
from synapse.replication.tcp.resource import ReplicationStreamer
from synapse.replication.tcp.streams import STREAMS_MAP
from synapse.replication.tcp.streams._base import Stream
from synapse.util import Clock
from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Factory, Protocol

HERE = Path(__file__).resolve().parent
SERVER_NAME = "bench.example.com"


def load(path):
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NoPresence:
    """Stands for the presence handler of a process where nobody syncs."""

    def get_currently_syncing_users_for_replication(self):
        return []


class Source(Stream):
    """A stream whose news lie in a list, as typing's do in the main's memory."""

    def __init__(self, name):
        self.NAME = name
        self.token = 0
        self.news = []
        super().__init__("master", lambda instance_name: self.token, self.read)

    def add(self, rows):
        """Take rows, each with a token of its own."""
        for row in rows:
            self.token += 1
            self.news.append((self.token, row))

    async def read(self, instance_name, from_token, upto_token, limit):
        """Answer as an update function does."""
        news, self.news = self.news[:limit], self.news[limit:]
        return news, news[-1][0], bool(self.news)


def make_handler(instance_name, data_handler=None):
    """Return a real command handler without the homeserver around it."""
    handler = object.__new__(ReplicationCommandHandler)
    streams = {name: Source(name) for name in STREAMS_MAP}
    handler._replication_data_handler = data_handler
    handler._presence_handler = NoPresence()
    handler._clock = Clock(reactor)
    handler._instance_id = "bench"
    handler._instance_name = instance_name
    handler._streams = streams
    handler._streams_to_replicate = list(streams.values())
    handler._pending_batches = {}
    handler._factory = None
    handler._connections = []
    handler._processing_streams = set()
    handler._command_queues_by_stream = {name: deque() for name in streams}
    handler._streams_by_connection = {}
    handler._is_master = instance_name == "master"
    handler._is_presence_writer = False
    handler._should_insert_client_ips = False
    handler._federation_sender = None
    return handler


def run_server(port, control_port):
    """Listen; publish what the control port asks for."""
    handler = make_handler("master")
    clock = Clock(reactor)
    rows = load(HERE.parent / "rows.py")
    control = load(HERE / "control.py")

    streamer = object.__new__(ReplicationStreamer)
    streamer.clock = clock
    streamer.command_handler = handler
    streamer.streams = handler.get_streams_to_replicate()
    streamer._instance_name = "master"
    streamer._replication_torture_level = None
    streamer.is_looping = streamer.pending_updates = False

    def publish(stream, batch):
        handler._streams[stream].add(batch)

    # One poke for all that a turn brought: in Synapse's favour.
    publisher = control.Publisher(reactor.callLater, publish, rows, streamer.on_notifier_poke)

    class Control(Protocol):
        def dataReceived(self, data):
            publisher.received(data)

    factory = Factory()
    factory.buildProtocol = lambda addr: ServerReplicationStreamProtocol(
        SERVER_NAME, clock, handler
    )
    reactor.listenTCP(port, factory, interface="127.0.0.1", backlog=1024)
    reactor.listenTCP(control_port, Factory.forProtocol(Control), interface="127.0.0.1")


class Counting:
    """Stands for the data handler: counts the parsed rows that reach it."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.seen = 0
        self.streams = {}

    async def on_rdata(self, stream_name, instance_name, token, rows):
        self.streams[stream_name].token = token
        self.seen += len(rows)
        if self.seen >= self.wanted:
            print("DONE", flush=True)
            self.seen = 0

    async def on_position(self, stream_name, instance_name, token):
        self.streams[stream_name].token = token


def run_worker(port, wanted):
    """Connect and count rows; say DONE each time *wanted* rows have been handled."""
    data_handler = Counting(wanted)
    handler = make_handler("worker1", data_handler)
    data_handler.streams = handler._streams
    clock = Clock(reactor)

    class Client(ClientFactory):
        def buildProtocol(self, addr):
            return ClientReplicationStreamProtocol(None, "worker1", SERVER_NAME, clock, handler)

    reactor.connectTCP("127.0.0.1", port, Client())


if __name__ == "__main__":
    role, first, second = sys.argv[1:]
    (run_server if role == "server" else run_worker)(int(first), int(second))
    print("READY", flush=True)
    reactor.run()
