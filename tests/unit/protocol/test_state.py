"""The state table: every state, command and role has its place, and the sessions obey it."""

from __future__ import annotations

import pytest

from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    DrainCommand,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    InvalidateCacheCommand,
    KickCommand,
    LockReleasedCommand,
    NameCommand,
    NewActiveTaskCommand,
    PingCommand,
    PositionCommand,
    ProducerCommand,
    PublishBatchCommand,
    PublishCommand,
    PublishedCommand,
    PublishRowsCommand,
    RdataCommand,
    RefusedCommand,
    RemoteServerUpCommand,
    RemovePusherCommand,
    ReplicateCommand,
    ServerCommand,
    StatusCommand,
    SyncCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import Closing, CommandReceived, RowsReceived, RunReceived
from tcprepl.protocol.serializing import serialize
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import TRANSITIONS, Role, State, Way
from tests.sessions import receive

NATIVE = DIALECTS["tcprepl"]
OPEN_STATES = (State.CONNECTED, State.GREETED, State.REPLICATING)

#: One of each, as the native dialect or the one that has it writes it.
EXAMPLES: dict[str, Command] = {
    command.NAME: command
    for command in (
        ServerCommand("example.com"),
        RdataCommand("typing", "master", 6, b"[]"),
        PositionCommand("typing", "master", 5, 5),
        ErrorCommand("text"),
        PingCommand("1"),
        NameCommand("worker"),
        ReplicateCommand("*", "*", 0),
        UserSyncCommand("id", "@a:x", None, True, 5),
        ClearUserSyncCommand("id"),
        FederationAckCommand("w1", 5),
        RemovePusherCommand("app", "key", "@a:x"),
        InvalidateCacheCommand("f", ("k",)),
        UserIpCommand("@a:x", "tok", "ip", "ua", None, 5),
        RemoteServerUpCommand("other.example"),
        SyncCommand("x"),
        LockReleasedCommand("w1", "name", "key"),
        NewActiveTaskCommand("t1"),
        CancelTaskCommand("t1"),
        HelpCommand(),
        StatusCommand(),
        KickCommand("worker", "too slow"),
        DrainCommand(60, "there:1"),
        InfoCommand("text"),
        PublishCommand("typing", b"[]"),
        PublishRowsCommand("typing", b"[[]]"),
        PublishBatchCommand("typing", b"[[]]"),
        PublishedCommand("typing", "master", 1, 2),
        RefusedCommand("typing", "row", 0),
        ProducerCommand("p", 1, 5),
        AuthCommand("token"),
        AuthorizedCommand("w1", "may read every stream"),
    )
}


def line_of(name: str) -> bytes:
    """Return the line of an example, in the native dialect where that has it."""
    spec = COMMANDS[name]
    dialect = NATIVE if NATIVE.name in spec.dialects else DIALECTS[min(spec.dialects)]
    return serialize(EXAMPLES[name], dialect)


def session_in(role: Role, state: State) -> Session:
    """Return a session that came to *state* the ordinary way."""
    session: Session
    if role is Role.SERVER:
        session = ServerSession("example.com", 0.0)
        assert state is not State.CONNECTED, "a server greets at once"
        if state is State.REPLICATING:
            receive(session, line_of("REPLICATE"), 0.0)
    else:
        session = ClientSession(0.0, dialect="tcprepl")
        if state is not State.CONNECTED:
            receive(session, line_of("SERVER"), 0.0)
        if state is State.REPLICATING:
            session.send(EXAMPLES["REPLICATE"], 0.0)
    session.data_to_send()
    assert session.state is state
    return session


REACHABLE = [
    (role, state)
    for role in Role
    for state in OPEN_STATES
    if (role, state) != (Role.SERVER, State.CONNECTED)
]


def test_there_is_an_example_of_every_command() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize(("role", "state"), REACHABLE)
def test_received(role: Role, state: State, name: str) -> None:
    session = session_in(role, state)
    expected = TRANSITIONS.get((role, state, Way.RECEIVED, name))
    events = receive(session, line_of(name), 0.0)
    if expected is None:
        assert session.state is State.CLOSING
        assert session.close_reason is CloseReason.UNEXPECTED_COMMAND
        assert isinstance(events[-1], Closing)
        assert name in events[-1].text
        assert session.data_to_send().startswith(b"ERROR line ")
    else:
        assert session.state is expected
        kinds = {type(event) for event in events}
        if name == "RDATA":
            # Nothing announced the stream yet.
            assert not kinds & {RowsReceived, RunReceived}
        else:
            assert CommandReceived(EXAMPLES[name]) in events


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize(("role", "state"), REACHABLE)
def test_sent(role: Role, state: State, name: str) -> None:
    session = session_in(role, state)
    spec = COMMANDS[name]
    session.dialect = NATIVE if NATIVE.name in spec.dialects else DIALECTS[min(spec.dialects)]
    expected = TRANSITIONS.get((role, state, Way.SENT, name))
    if expected is None:
        with pytest.raises(LocalProtocolError, match=f"{role.value} cannot send {name}"):
            session.send(EXAMPLES[name], 0.0)
        assert session.state is state
        assert session.data_to_send() == b""
    else:
        session.send(EXAMPLES[name], 0.0)
        assert session.state is expected
        assert session.data_to_send() == serialize(EXAMPLES[name], session.dialect)


@pytest.mark.parametrize("role", list(Role))
def test_directions_agree_with_the_commands(role: Role) -> None:
    for who, _, way, word in TRANSITIONS:
        if way is Way.SENT and who is role:
            assert role in COMMANDS[word].sent_by
        if way is Way.RECEIVED and who is role:
            assert role.peer in COMMANDS[word].sent_by


def test_every_command_is_placed_for_each_end_that_may_send_it() -> None:
    for name, spec in COMMANDS.items():
        for role in spec.sent_by:
            for who, way in ((role, Way.SENT), (role.peer, Way.RECEIVED)):
                assert any(key[0] is who and key[2:] == (way, name) for key in TRANSITIONS), name


@pytest.mark.parametrize("role", list(Role))
def test_every_life_can_end(role: Role) -> None:
    for state in (*OPEN_STATES, State.CLOSING):
        assert TRANSITIONS[role, state, Way.INCIDENT, "eof"] is State.CLOSED
    for state in OPEN_STATES:
        assert TRANSITIONS[role, state, Way.INCIDENT, "close"] is State.CLOSING
    assert TRANSITIONS[role, State.CLOSING, Way.INCIDENT, "abort"] is State.CLOSED
    assert not [key for key in TRANSITIONS if key[1] is State.CLOSED]


def test_roles_are_each_others_peer() -> None:
    assert Role.SERVER.peer is Role.CLIENT
    assert Role.CLIENT.peer is Role.SERVER
