"""Two sessions over a wire that cuts, delays and loses connections, against a plain list.

The server's end is driven by a tiny writer: a list of (token, rows) for each pair. The
client keeps what it got. Whatever the wire does, what the client has is a prefix of what
the writer wrote, batches are whole, and once the wire heals everything is there.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcprepl.errors import CloseReason
from tcprepl.limits import PING_INTERVAL_S, PING_TIMEOUT_S
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import PositionCommand, RdataCommand, ReplicateCommand
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    Event,
    RowsReceived,
    in_batches,
)
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import State
from tests.sessions import receive

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (("typing", "master"), ("caches", "master"), ("caches", "w1"))


class SessionPair(RuleBasedStateMachine):
    """A writer, a server's session, a wire and a client's session."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dialect = "tcprepl"
        self.written: dict[Pair, list[tuple[int, list[bytes]]]] = {pair: [] for pair in PAIRS}
        self.got: dict[Pair, list[tuple[int, list[bytes]]]] = {pair: [] for pair in PAIRS}
        self.rows = 0

    @initialize(dialect=st.sampled_from(["auto", "tcprepl", "2017"]))
    def start(self, dialect: str) -> None:
        """Connect for the first time."""
        self.dialect = dialect
        self.connect()

    # -- the ends ------------------------------------------------------------------------

    def connect(self) -> None:
        """Make a new connection; what was under way on the old one is lost."""
        self.server = ServerSession("example.com", self.now)
        self.client = ClientSession(
            self.now, name="w1", server_name="example.com", dialect=self.dialect
        )
        self.to_server = bytearray(self.client.data_to_send())
        self.to_client = bytearray(self.server.data_to_send())
        self.served: set[Pair] = set()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs that the dialect can name."""
        return PAIRS[:2] if self.dialect == "2017" else PAIRS

    def serve(self, command: ReplicateCommand) -> None:
        """Answer REPLICATE from the list, as the dialect has it."""
        for pair in self.pairs:
            if command.stream != pair[0] or command.instance not in (None, pair[1]):
                continue
            self.served.add(pair)
            known = command.token or 0
            if self.server.dialect.announced:
                self.server.send(PositionCommand(*pair, known, known), self.now)
            missed = [batch for batch in self.written[pair] if batch[0] > known]
            for token, rows in missed:
                for row in rows[:-1]:
                    between = token if self.dialect == "2017" else None
                    self.server.send(RdataCommand(*pair, between, row), self.now)
                self.server.send(RdataCommand(*pair, token, rows[-1]), self.now)
            head = self.written[pair][-1][0] if self.written[pair] else 0
            self.server.send(PositionCommand(*pair, head, max(head, known)), self.now)

    def handle(self, session: Session, events: list[Event]) -> None:
        """Do what the adapters would do with *events*."""
        for event in in_batches(events):
            match event:
                case RowsReceived(stream, instance, token, rows):
                    self.got[stream, instance].append((token, rows))
                case DialectChosen() if session is self.client:
                    for stream, instance in self.pairs:
                        have = self.got[stream, instance]
                        name = None if self.dialect == "2017" else instance
                        known = have[-1][0] if have else 0
                        self.client.send(ReplicateCommand(stream, name, known), self.now)
                case CommandReceived(ReplicateCommand() as command):
                    self.serve(command)
                case Closing(reason=reason):
                    assert reason in (CloseReason.PING_TIMEOUT, CloseReason.HANDSHAKE_TIMEOUT)
        self.to_server += self.client.data_to_send()
        self.to_client += self.server.data_to_send()

    def deliver(self, count: int, *, to_client: bool) -> None:
        """Let *count* bytes arrive."""
        wire, session = (
            (self.to_client, self.client) if to_client else (self.to_server, self.server)
        )
        piece = bytes(wire[:count])
        del wire[:count]
        self.handle(session, receive(session, piece, self.now))

    # -- what may happen -----------------------------------------------------------------

    @rule(which=st.integers(0, len(PAIRS) - 1), count=st.integers(1, 4), skip=st.integers(1, 3))
    def write(self, which: int, count: int, skip: int) -> None:
        """Write a batch; send it if the connection serves its pair."""
        pair = self.pairs[which % len(self.pairs)]
        token = (self.written[pair][-1][0] if self.written[pair] else 0) + skip
        rows = [f'["{pair[0]} ü",{self.rows + index}]'.encode() for index in range(count)]
        self.rows += count
        self.written[pair].append((token, rows))
        if pair in self.served:
            for row in rows[:-1]:
                self.server.send(RdataCommand(*pair, None, row), self.now)
            self.server.send(RdataCommand(*pair, token, rows[-1]), self.now)
            self.to_client += self.server.data_to_send()

    @rule(count=st.integers(1, 400))
    def some_bytes_to_the_client(self, count: int) -> None:
        """The wire delivers a piece."""
        self.deliver(count, to_client=True)

    @rule(count=st.integers(1, 200))
    def some_bytes_to_the_server(self, count: int) -> None:
        """The wire delivers a piece the other way."""
        self.deliver(count, to_client=False)

    @rule()
    def the_connection_breaks(self) -> None:
        """Everything under way is lost, and both ends begin anew."""
        self.client.receive_eof(self.now, CloseReason.CONNECTION_LOST)
        self.server.receive_eof(self.now, CloseReason.CONNECTION_LOST)
        self.connect()

    @rule(seconds=st.floats(0.1, 2 * PING_INTERVAL_S))
    def time_passes(self, seconds: float) -> None:
        """Clocks tick; each end says that it is alive."""
        self.now += seconds
        for session in (self.client, self.server):
            self.handle(session, session.tick(self.now))
        if State.CLOSING in (self.client.state, self.server.state):
            self.connect()

    @precondition(lambda self: self.client.state is State.REPLICATING)
    @rule()
    def the_wire_heals(self) -> None:
        """All that was sent arrives; then the client has everything."""
        while self.to_server or self.to_client:
            self.deliver(1 << 20, to_client=False)
            self.deliver(1 << 20, to_client=True)
        for pair in self.pairs:
            assert self.got[pair] == self.written[pair]
        assert self.client.held_rows == 0

    # -- what always holds ---------------------------------------------------------------

    @invariant()
    def the_client_has_a_prefix(self) -> None:
        """Rows arrive in order, once, in whole batches."""
        for pair in PAIRS:
            assert self.got[pair] == self.written[pair][: len(self.got[pair])]

    @invariant()
    def nothing_piles_up(self) -> None:
        """A session holds at most its longest line, and knows when it is due next."""
        for session in (self.client, self.server):
            deadline = session.next_deadline()
            assert deadline is not None
            assert deadline <= self.now + PING_TIMEOUT_S


TestSessionPair = SessionPair.TestCase
