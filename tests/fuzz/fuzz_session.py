"""Invariant: any bytes, in any pieces, give the same events, or one documented error.

The first byte of an input chooses the session, the second how the rest is cut.
"""

from __future__ import annotations

from collections.abc import Callable

from tcprepl.errors import LocalProtocolError
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import ReplicateCommand
from tcprepl.protocol.events import Closing, CommandReceived, Event, RowsReceived, in_batches
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import serialize
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import State
from tests.sessions import receive

#: A limit that inputs of ordinary size can exceed.
SHORT_LINE_BYTES = 200


def _greeted(dialect: str) -> Session:
    """Return a client that asked for everything and was told of one stream."""
    client = ClientSession(
        0.0, server_name="example.com", dialect=dialect, max_line_bytes=SHORT_LINE_BYTES
    )
    receive(client, b"SERVER example.com\nPING 1 tcprepl/1\n", 0.0)
    asked = ReplicateCommand("*", None, None, now=True) if dialect == "2017" else ReplicateCommand()
    client.send(asked, 0.0)
    if dialect != "2017":
        receive(client, b"POSITION typing master 5 5\n", 0.0)
    return client


#: What the first byte chooses from.
SESSIONS: tuple[Callable[[], Session], ...] = (
    lambda: ServerSession("example.com", 0.0, max_line_bytes=SHORT_LINE_BYTES),
    lambda: ServerSession("example.com", 0.0, dialect="1.13"),
    lambda: ClientSession(0.0, server_name="example.com", max_line_bytes=SHORT_LINE_BYTES),
    lambda: ClientSession(0.0, dialect="1.13"),
    lambda: _greeted("auto"),
    lambda: _greeted("2017"),
    lambda: _greeted("1.22"),
    lambda: _greeted("tcprepl"),
)


def drive(session: Session, pieces: list[bytes]) -> tuple[list[Event], bytes, object]:
    """Feed *pieces*; return all that can be seen of what they did."""
    events: list[Event] = []
    for piece in pieces:
        events += receive(session, piece, 1.0)
    return list(in_batches(events)), session.data_to_send(), (session.state, session.close_reason)


def check_event(event: Event, session: Session) -> None:
    """Check one event: a command can be written again, and means the same."""
    if isinstance(event, RowsReceived):
        assert event.rows
        assert all(event.rows)
        assert event.token >= 0
    elif isinstance(event, CommandReceived):
        command, dialect = event.command, session.dialect
        assert command.NAME in COMMANDS
        try:
            line = serialize(command, dialect)
        except LocalProtocolError:
            return  # this dialect cannot say it
        assert serialize(parse_line(line[:-1], dialect), dialect) == line


def check(raw: bytes) -> None:
    """Check the invariant for one input."""
    if len(raw) < 2:
        return
    make = SESSIONS[raw[0] % len(SESSIONS)]
    size = 1 + raw[1] % 61
    data = raw[2:]
    session = make()
    whole = drive(session, [data])
    cut = drive(make(), [data[start : start + size] for start in range(0, len(data), size)])
    assert whole == cut, (whole, cut)
    events, out, _ = whole
    for event in events:
        check_event(event, session)
    closing = [index for index, event in enumerate(events) if isinstance(event, Closing)]
    assert closing in ([], [len(events) - 1])
    assert bool(closing) == (session.state is State.CLOSING)
    assert all(line.rstrip("\r").isprintable() for line in out.decode("utf-8").split("\n"))
    deadline = session.next_deadline()
    assert deadline is not None
    session.tick(deadline)
    session.receive_eof(deadline)
    assert session.state is State.CLOSED
    assert session.next_deadline() is None
