"""Who reads over HTTP in a simulated world: asks, waits, keeps what came with where it is.

A reader has what an answer brought, its positions and its incarnation, in one transaction: it is
killed before or after that, never within. What it was refused it does as protocol.md section 13.1
says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from tcprepl.ids import Pair
from tests import invariants
from tests.invariants import Row, Told
from tests.simulation.machines import ROWS, Broken, LogMachine, Machine, kept, number_in

if TYPE_CHECKING:
    from tests.simulation.world import World

#: How long a request waits at the server, and how much later it is given up.
WAIT_S = 10.0
GIVE_UP_S = 15.0
RETRY_S = 1.0
INCARNATION = "tcprepl-incarnation"


class _Answers(Protocol):
    """One connection: takes one answer after the other."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.buffer = b""

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        head, parted, rest = self.buffer.partition(b"\r\n\r\n")
        if not parted:
            return
        first, *lines = head.decode().split("\r\n")
        fields = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in fields}
        size = int(headers["content-length"])
        if len(rest) >= size:
            self.buffer = rest[size:]
            self.poller.answered(int(first.split()[1]), headers, rest[:size])

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.poller.lost(self)


class Poller(Machine):
    """A reader by long poll.

    Attributes:
        positions: Up to where it has each stream.
        incarnation: In which incarnation of the log it got that.
        diaries: What it has seen of each stream.
    """

    kind = "poller"

    def __init__(self, world: World, name: str, source: LogMachine) -> None:
        super().__init__(world, name)
        self.source = source
        self.positions = dict.fromkeys(ROWS, 0)
        self.incarnation: str | None = None
        self.diaries: dict[str, list[Row | Told]] = {stream: [] for stream in ROWS}
        self.copy: Any = None
        self.connection: Any = None
        self.stopping = False
        self._timeout: Any = None

    def begin(self) -> None:
        self.connection = self._timeout = None
        self.stopping = False
        self._connect()

    def _connect(self) -> None:
        factory = Factory.forProtocol(lambda: _Answers(self))
        endpoint = self.endpoint(f"{self.source.name}-http")
        self._give_up_later()
        _ = endpoint.connect(factory).addCallbacks(
            self._connected, self._refused, callbackArgs=(self.lives,), errbackArgs=(self.lives,)
        )

    def _connected(self, connection: Any, life: int) -> None:
        if life != self.lives or self.stopping or self._timeout is None or self.connection:
            connection.transport.abortConnection()  # it came too late
            return
        self.connection = connection
        self._ask()

    def _refused(self, failure: Failure, life: int) -> None:
        if life == self.lives:
            self._again()

    def _ask(self) -> None:
        self._give_up_later()
        query = "&".join(f"{stream}=master~{token}" for stream, token in self.positions.items())
        limit = 1 + self.world.universe.chance.randrange(20)
        said = f"{INCARNATION}: {self.incarnation}\r\n" if self.incarnation else ""
        request = (
            f"GET /_synapse/replication?{query}&timeout={round(WAIT_S * 1000)}&limit={limit}"
            f" HTTP/1.1\r\nHost: localhost\r\n{said}\r\n"
        )
        self.connection.transport.write(request.encode())

    def _give_up_later(self) -> None:
        self._cancel()
        self._timeout = self.process.callLater(WAIT_S + GIVE_UP_S, self._again)

    def _cancel(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        self._timeout = None

    def _again(self) -> None:
        """Let go of the connection, and begin with another one soon."""
        self._cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.transport.abortConnection()
        if not self.stopping:
            self.process.callLater(RETRY_S, self._connect)

    def lost(self, connection: _Answers) -> None:
        """A connection has ended."""
        if connection is self.connection:
            self.connection = None
            self._again()

    # -- answers -----------------------------------------------------------------------

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Take an answer."""
        answer = json.loads(body)
        if status == 200:
            for stream, table in answer.items():
                self._take(stream, table)
        elif status in (409, 410):
            self.world.saw(f"poll refused: {answer['errcode']}", self.source.kind)
            stream, held = answer["stream"], answer["held"]
            self.diaries[stream].append(Told(self.positions[stream], held))
            self.positions[stream] = held
        elif status == 503 or answer.get("errcode") == "TCPREPL_UNKNOWN_STREAM":
            # the disk refuses; or a relay has not met the stream yet
            self.world.saw(f"poll refused: {status}", self.source.kind)
            self._again()
            return
        else:
            raise Broken(self.name, [f"answered {status}: {body.decode()[:200]}"])
        if answer.get("errcode") != "TCPREPL_FORKED":
            self.incarnation = headers[INCARNATION]
        self._ask()

    def _take(self, stream: str, table: dict[str, Any]) -> None:
        for token, cell, *_ in table["rows"]:
            text = cell if isinstance(cell, list) else [cell]
            row = json.dumps(text, separators=(",", ":")).encode()
            self.diaries[stream].append(Row(token, str(number_in(row))))
        position = table["position"]  # a relay names the writer
        self.positions[stream] = int(str(position).rpartition("~")[2])

    # -- what happens to it --------------------------------------------------------------

    def put_back(self) -> None:
        """Put back an older copy of all that it has, if there is one; else make one."""
        if self.copy is None:
            seen = {stream: list(diary) for stream, diary in self.diaries.items()}
            self.copy = dict(self.positions), self.incarnation, seen
            return
        self.kill()
        (self.positions, self.incarnation, self.diaries), self.copy = self.copy, None

    def check_rows(self, *, at_rest: bool) -> None:
        """It has what its source has."""
        for stream, diary in self.diaries.items():
            pair: Pair = (stream, "master")
            where = f"{self.name} {pair}"
            kept(where, invariants.unfounded_faults(diary, self.source.reasons))
            if at_rest:
                kept(where, invariants.reader_faults(diary, self.source.history(pair)))
                head = self.source.log.position(*pair)
                kept(where, invariants.level_fault(self.positions[stream], head))

    def stop(self) -> Deferred[Any]:
        self.stopping = True
        self._again()
        return succeed(None)

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        return "away" if self.connection is None else "asking"
