"""The client's end: the greeting, the dialect it tells, rows, servers that are none."""

from __future__ import annotations

import pytest

from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.limits import (
    MAX_BAD_LINES,
    MAX_NATIVE_LINE_BYTES,
    MAX_PAIRS,
    PING_TIMEOUT_S,
)
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import (
    PingCommand,
    PositionCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    RowsReceived,
    in_batches,
)
from tcprepl.protocol.state import State
from tests.sessions import BARE, GOODBYE, client, commands, receive


def test_a_client_greets_with_its_name() -> None:
    session = ClientSession(5.0, name="w1", epoch_s=1.0)
    assert session.data_to_send() == b"NAME w1\nPING 6000\n"
    assert ClientSession(5.0).data_to_send() == b"PING 5000\n"


def test_a_client_cannot_speak_redis_over_tcp() -> None:
    with pytest.raises(ValueError, match="redis"):
        ClientSession(0.0, dialect="redis")


@pytest.mark.parametrize(
    ("asked", "greeting", "chosen"),
    [
        ("auto", b"PING 1 tcprepl/1\n", "tcprepl"),
        ("auto", b"PING 1\n", "1.22"),
        ("auto", b"POSITION typing master 5 5\n", "1.22"),
        ("auto", b"RDATA typing master 5 []\n", "1.22"),
        ("1.13", b"", "1.13"),
        ("2017", b"PING 1\n", "2017"),
    ],
)
def test_a_client_learns_the_dialect_from_the_greeting(
    asked: str, greeting: bytes, chosen: str
) -> None:
    session = ClientSession(0.0, dialect=asked)
    with pytest.raises(LocalProtocolError, match="client cannot send REPLICATE while connected"):
        session.send(BARE, 0.0)
    events = receive(session, b"SERVER example.com\n" + greeting, 0.0)
    assert [event for event in events if isinstance(event, DialectChosen)] == [
        DialectChosen(DIALECTS[chosen])
    ]
    assert session.server_name == "example.com"
    assert session.dialect is DIALECTS[chosen]


def test_a_dialect_is_chosen_once_whatever_later_pings_say() -> None:
    session = ClientSession(0.0)
    lines = b"SERVER example.com\nPING 1 tcprepl/1\nPING 2\nPING 3 tcprepl/1\n"
    chosen = [one for one in receive(session, lines, 0.0) if isinstance(one, DialectChosen)]
    assert chosen == [DialectChosen(DIALECTS["tcprepl"])]
    assert session._batches.dialect is session.dialect


def test_a_row_that_is_not_utf_8_ends_it_behind_the_good_ones_of_the_same_read() -> None:
    session = client()
    lines = [b"POSITION a m 4 4", *(b"RDATA a m %d [1]" % token for token in range(5, 10))]
    events = receive(
        session, b"\n".join([*lines, b'RDATA a m 10 "\xff"', b"RDATA a m 11 []\n"]), 1.0
    )
    *good, closing = events
    assert isinstance(closing, Closing)
    assert closing.reason is CloseReason.BAD_ENCODING
    assert closing.text.startswith("line 9: RDATA: byte 15 of the line (0xff) is not UTF-8")
    assert [one.token for one in in_batches(good[1:])] == list(range(5, 10))


def test_a_position_with_one_token_tells_an_older_server() -> None:
    session = client("auto", b"SERVER example.com\nPING 1\n")
    assert session.dialect.name == "1.22"
    events = receive(session, b"POSITION typing master 5\nPOSITION a master 6\n", 0.0)
    assert events == [
        DialectChosen(DIALECTS["1.13"]),
        CommandReceived(PositionCommand("typing", "master", None, 5)),
        CommandReceived(PositionCommand("a", "master", None, 6)),
    ]
    # Somebody who asked for a dialect keeps it.
    stubborn = client("1.22")
    receive(stubborn, b"POSITION typing master 5\n", 0.0)
    assert stubborn.dialect.name == "1.22"


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        (b"ERROR failed to parse line for REPLICATE\n", True),
        (b"ERROR invalid command: REPLICATE\n", True),
        (b"ERROR server shutting down\n", False),
        (b"POSITION typing master 5 5\nERROR failed to parse line: x\n", False),
    ],
)
def test_a_server_of_2017_is_known_by_its_refusal(lines: bytes, refused: bool) -> None:
    session = client("auto", b"SERVER example.com\nPING 1\n")
    receive(session, lines, 0.0)
    assert session.replicate_refused is refused


def test_a_refusal_of_something_else_says_nothing_of_the_dialect() -> None:
    session = client("2017")
    receive(session, b"ERROR failed to parse line\n", 0.0)
    assert not session.replicate_refused


def test_rows_come_as_batches_between_the_commands() -> None:
    session = client()
    events = receive(
        session,
        b"POSITION a m 4 4\nRDATA a m batch [1]\nPING 1\nRDATA a m 5 [2]\r\n"
        b"rdata a m 6 [3]\nPOSITION a m 6 9\nREMOTE_SERVER_UP x\n",
        1.0,
    )
    assert events == [
        CommandReceived(PositionCommand("a", "m", 4, 4)),
        CommandReceived(PingCommand("1")),
        RowsReceived("a", "m", 5, [b"[1]", b"[2]"]),
        RowsReceived("a", "m", 6, [b"[3]"]),
        CommandReceived(PositionCommand("a", "m", 6, 9)),
        *receive(session, b"REMOTE_SERVER_UP x\n", 1.0),
    ]


def test_rows_in_other_alphabets_are_rows() -> None:
    raw = 'POSITION a m 4 4\nRDATA a m 5 ["ü😀"]\n'.encode()
    for cut in range(len(raw)):
        fresh = client()
        events = receive(fresh, raw[:cut], 1.0) + receive(fresh, raw[cut:], 1.0)
        assert events[-1] == RowsReceived("a", "m", 5, ['["ü😀"]'.encode()])


def test_rows_that_nobody_announced_are_dropped_and_counted() -> None:
    session = client("auto", b"SERVER example.com\nPING 1\n")
    assert receive(session, b"RDATA a m 5 []\nRDATA a m batch []\n", 1.0) == []
    assert session.dropped_rows == 2
    assert session.held_rows == 0


def test_2017_rows_need_no_position() -> None:
    session = client("2017")
    events = receive(session, b"RDATA a 5 [1]\nRDATA a 5 [2]\nPOSITION a 5\n", 1.0)
    assert events == [
        RowsReceived("a", "master", 5, [b"[1]", b"[2]"]),
        CommandReceived(PositionCommand("a", "master", None, 5)),
    ]
    assert receive(session, b"RDATA a 6 [3]\n", 1.0) == [RowsReceived("a", "master", 6, [b"[3]"])]
    session.send(ReplicateCommand("a", None, 5), 1.0)
    assert receive(session, b"RDATA a 7 [4]\n", 1.0) == []
    assert session.held_rows == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"RDATA a m x []\n", "line 4: RDATA: token "),
        (b"rdata a m x []\n", "line 4: RDATA: token "),
        (b"POSITION a m x\n", "line 4: POSITION: token "),
        (b"POSITION a\n", "line 4: POSITION: 1 argument, not 2 or 3 or 4"),
    ],
)
def test_a_row_that_cannot_be_read_ends_the_connection(line: bytes, text: str) -> None:
    session = client()
    events = receive(session, b"POSITION a m 4 4\n" + line + b"RDATA a m 9 []\n", 1.0)
    assert isinstance(events[-1], Closing)
    assert events[-1].reason is CloseReason.LOST_ROW
    assert events[-1].text.startswith(text)
    assert session.data_to_send() == f"ERROR {events[-1].text}{GOODBYE}\n".encode()
    assert len(events) == 2


def test_a_server_that_names_endless_streams_is_left() -> None:
    session = client()
    for number in range(MAX_PAIRS):
        receive(session, b"POSITION s%d m 1 1\n" % number, 1.0)
    assert session.close_reason is None
    receive(session, b"POSITION more m 1 1\n", 1.0)
    assert session.close_reason is CloseReason.LOST_ROW


@pytest.mark.parametrize(
    ("raw", "reason", "text"),
    [
        (
            b"SERVER other.example\nPING 1\n",
            CloseReason.WRONG_SERVER,
            'line 1: Wrong remote: the server is "other.example", expected "example.com"',
        ),
        (
            b"SERVER two words\n",
            CloseReason.WRONG_SERVER,
            "line 1: SERVER: 2 arguments, not 1; expected SERVER <server name>",
        ),
        (
            b"PING 1\n",
            CloseReason.UNEXPECTED_COMMAND,
            "line 1: PING before SERVER; the first line of a server is SERVER <server name>",
        ),
        (
            b"SERVER example.com\nSERVER example.com\n",
            CloseReason.UNEXPECTED_COMMAND,
            "line 2: SERVER a second time",
        ),
        (
            b"SERVER example.com\nREPLICATE\n",
            CloseReason.UNEXPECTED_COMMAND,
            "line 2: REPLICATE is for a client to send, not for a server",
        ),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            CloseReason.WRONG_PROTOCOL,
            'line 1: "SSH-2.0-OpenSSH_9.2" is no line of a replication server, '
            "which begins with SERVER <server name>",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n",
            CloseReason.WRONG_PROTOCOL,
            "line 1: the server speaks HTTP, not replication",
        ),
        (
            b"-ERR unknown command 'NAME'\r\n",
            CloseReason.WRONG_PROTOCOL,
            "line 1: the server speaks RESP (Redis), not replication",
        ),
        (
            b"\x15\x03\x01\x00\x02\x02\x46",
            CloseReason.WRONG_PROTOCOL,
            "the server speaks TLS, and this connection does not",
        ),
        (
            b"SERVER example.com\nRDATA a m 5 \xff\n",
            CloseReason.BAD_ENCODING,
            "line 2: RDATA: byte 13 of the line (0xff) is not UTF-8",
        ),
        (
            b"SERVER example.com\nRDATA a m 5 " + b"x" * MAX_NATIVE_LINE_BYTES,
            CloseReason.LINE_TOO_LONG,
            f"line 2: RDATA: the line is longer than {MAX_NATIVE_LINE_BYTES} bytes",
        ),
    ],
)
def test_a_client_leaves_a_server_that_is_none(raw: bytes, reason: CloseReason, text: str) -> None:
    session = ClientSession(0.0, server_name="example.com")
    session.data_to_send()
    events = receive(session, raw, 1.0)
    assert events[-1] == Closing(reason, text)
    foreign = reason is CloseReason.WRONG_PROTOCOL and "SSH" not in text
    assert session.data_to_send() == (b"" if foreign else f"ERROR {text}{GOODBYE}\n".encode())


def test_a_client_survives_what_it_does_not_know() -> None:
    session = client()
    session.data_to_send()
    assert receive(session, b"FROB 1\n" * (MAX_BAD_LINES + 1), 1.0) == []
    assert session.unknown_lines == MAX_BAD_LINES + 1
    assert session.data_to_send() == b""
    assert receive(session, b"REMOTE_SERVER_UP\n", 1.0) == []
    assert session.bad_lines == 1
    assert session.close_reason is None


def test_rows_are_a_sign_of_life() -> None:
    session = client()
    receive(session, b"POSITION a m 4 4\n", 1.0)
    receive(session, b"RDATA a m 5 []\n", 20.0)
    session.tick(44.0)
    assert session.state is State.REPLICATING
    session.tick(45.0)
    assert session.close_reason is CloseReason.PING_TIMEOUT


def test_what_it_does_not_know_is_a_sign_of_life() -> None:
    session = client()
    receive(session, b"PING 1\n", 1.0)
    receive(session, b"NOVELTY x\n", PING_TIMEOUT_S)
    assert not any(isinstance(one, Closing) for one in session.tick(PING_TIMEOUT_S + 2))
    assert session.unknown_lines == 1


@pytest.mark.parametrize(("raw", "missing"), [(b"", "SERVER"), (b"SERVER example.com\n", "PING")])
def test_a_client_does_not_wait_for_ever_for_the_greeting(raw: bytes, missing: str) -> None:
    session = ClientSession(0.0, handshake_timeout_s=4.0)
    receive(session, raw, 1.0)
    assert session.next_deadline() == 4.0
    text = f"handshake timeout: no {missing} in 4 seconds"
    if missing == "SERVER":
        text += "; is this the port of the line protocol?"
    assert session.tick(4.0) == [Closing(CloseReason.HANDSHAKE_TIMEOUT, text)]
    assert session.data_to_send().endswith(f"ERROR {text}\n".encode())


def test_every_server_command_is_an_event() -> None:
    session = ClientSession(0.0)
    assert commands(receive(session, b"SERVER example.com\r\n", 0.0)) == [
        ServerCommand("example.com")
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 tcprepl/1 9f86d081884c7d65", "9f86d081884c7d65"),
        ("1 tcprepl/1 x more", "x"),
        ("1 tcprepl/1", None),
        ("1 tcprepl/10 x", None),
        ("1 tcprepl/1  x", None),
        ("1 tcprepl/1 " + "x" * 256, None),
        ("1", None),
    ],
)
def test_a_client_hears_which_incarnation_the_greeting_names(text: str, named: str | None) -> None:
    session = ClientSession(0.0)
    receive(session, f"SERVER x\nPING {text}\nPING 2 tcprepl/1 later\n".encode(), 0.0)
    assert session.incarnation == (named or "later")
