"""Sessions as tests drive them: bytes in, events out."""

from __future__ import annotations

from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import Command, ReplicateCommand
from tcprepl.protocol.events import CommandReceived, Event, LinesPassed
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session

GREETING = b"SERVER example.com\nPING 1661000000000 tcprepl/1\n"
BARE = ReplicateCommand()
#: How the last ERROR of a connection ends, after a broken rule.
GOODBYE = "; this ends the connection"


def receive(session: Session, data: bytes, now: float) -> list[Event]:
    """Let *session* receive *data*; return what it meant, lines without a meaning left out.

    It is pulled one by one, as a server does.
    """
    session.receive_data(data, now)
    found: list[Event] = []
    while (event := session.next_event(now)) is not None:
        found.append(event)
    return [event for event in found if not isinstance(event, LinesPassed)]


def server(**settings: object) -> ServerSession:
    """Return a server's session that has greeted."""
    session = ServerSession("example.com", 0.0, **settings)  # type: ignore[arg-type]
    session.data_to_send()
    return session


def client(dialect: str = "tcprepl", greeting: bytes = GREETING) -> ClientSession:
    """Return a client's session that was greeted and asked for rows."""
    session = ClientSession(0.0, name="w1", server_name="example.com", dialect=dialect)
    receive(session, greeting, 0.0)
    asked = ReplicateCommand("*", None, None, now=True) if dialect == "2017" else BARE
    session.send(asked, 0.0)
    session.data_to_send()
    return session


def commands(events: list[Event]) -> list[Command]:
    """Return the commands among *events*."""
    return [event.command for event in events if isinstance(event, CommandReceived)]
