"""The two ends of a connection: greeting, dialects, rows, bad input, keep-alive, the end."""

from __future__ import annotations

import pytest

from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.limits import (
    CLOSE_TIMEOUT_S,
    MAX_BAD_LINES,
    MAX_LINE_BYTES,
    MAX_NATIVE_LINE_BYTES,
    MAX_PAIRS,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
)
from tcprepl.protocol.commands import (
    Command,
    ErrorCommand,
    InfoCommand,
    NameCommand,
    PingCommand,
    PositionCommand,
    RdataCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.session import (
    ClientSession,
    Closing,
    CommandReceived,
    DialectChosen,
    Event,
    RowsReceived,
    ServerSession,
    Session,
)
from tcprepl.protocol.state import State

GREETING = b"SERVER example.com\nPING 1661000000000 tcprepl/1\n"
BARE = ReplicateCommand()


def server(**settings: object) -> ServerSession:
    """Return a server's session that has greeted."""
    session = ServerSession("example.com", 0.0, **settings)  # type: ignore[arg-type]
    session.data_to_send()
    return session


def client(dialect: str = "tcprepl", greeting: bytes = GREETING) -> ClientSession:
    """Return a client's session that was greeted and asked for rows."""
    session = ClientSession(0.0, name="w1", server_name="example.com", dialect=dialect)
    session.receive_data(greeting, 0.0)
    asked = ReplicateCommand("*", None, None, now=True) if dialect == "2017" else BARE
    session.send(asked, 0.0)
    session.data_to_send()
    return session


def commands(events: list[Event]) -> list[Command]:
    """Return the commands among *events*."""
    return [event.command for event in events if isinstance(event, CommandReceived)]


# -- greeting and dialects -------------------------------------------------------------------


def test_a_server_greets_with_its_name_and_what_it_understands() -> None:
    session = ServerSession("example.com", 5.0, epoch_s=1_661_000_000.0)
    assert session.data_to_send() == b"SERVER example.com\nPING 1661000005000 tcprepl/1\n"
    assert session.data_to_send() == b""
    assert session.state is State.GREETED
    assert not session.dialect_chosen


def test_a_client_greets_with_its_name() -> None:
    session = ClientSession(5.0, name="w1", epoch_s=1.0)
    assert session.data_to_send() == b"NAME w1\nPING 6000\n"
    assert ClientSession(5.0).data_to_send() == b"PING 5000\n"


@pytest.mark.parametrize("dialect", ["2017", "redis", "tcprepl"])
def test_a_bare_replicate_cannot_mean_every_dialect(dialect: str) -> None:
    with pytest.raises(ValueError, match=dialect):
        ServerSession("example.com", 0.0, dialect=dialect)


def test_a_client_cannot_speak_redis_over_tcp() -> None:
    with pytest.raises(ValueError, match="redis"):
        ClientSession(0.0, dialect="redis")


@pytest.mark.parametrize(
    ("listener", "line", "chosen"),
    [
        ("auto", b"REPLICATE\n", "1.22"),
        ("1.22", b"replicate \r\n", "1.22"),
        ("1.13", b"REPLICATE\n", "1.13"),
        ("auto", b"REPLICATE typing 5\n", "2017"),
        ("1.13", b"REPLICATE ALL NOW\n", "2017"),
        ("auto", b"REPLICATE typing master 5\n", "tcprepl"),
        ("1.13", b"REPLICATE * * NOW\n", "tcprepl"),
    ],
)
def test_the_first_replicate_chooses_the_dialect(listener: str, line: bytes, chosen: str) -> None:
    session = server(dialect=listener)
    events = session.receive_data(line, 1.0)
    assert events[0] == DialectChosen(DIALECTS[chosen])
    assert isinstance(events[1], CommandReceived)
    assert session.dialect is DIALECTS[chosen]
    assert session.dialect_chosen
    assert session.state is State.REPLICATING
    # The same form again is no second choice.
    assert session.receive_data(line, 1.0) == events[1:]


def test_a_later_replicate_of_another_form_is_refused_and_nothing_changes() -> None:
    session = server()
    session.receive_data(b"REPLICATE\n", 1.0)
    assert session.receive_data(b"REPLICATE typing 5\n", 1.0) == []
    assert session.data_to_send() == (
        b"ERROR line 2: REPLICATE: this is the form of dialect 2017, and the first REPLICATE of "
        b"this connection chose dialect 1.22\n"
    )
    assert session.state is State.REPLICATING


def test_a_name_is_remembered() -> None:
    session = server()
    assert session.peer_name == ""
    assert commands(session.receive_data(b"NAME nc on my desk\n", 1.0)) == [
        NameCommand("nc on my desk")
    ]
    assert session.peer_name == "nc on my desk"


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
    events = session.receive_data(b"SERVER example.com\n" + greeting, 0.0)
    assert [event for event in events if isinstance(event, DialectChosen)] == [
        DialectChosen(DIALECTS[chosen])
    ]
    assert session.server_name == "example.com"
    assert session.dialect is DIALECTS[chosen]


def test_a_position_with_one_token_tells_an_older_server() -> None:
    session = client("auto", b"SERVER example.com\nPING 1\n")
    assert session.dialect.name == "1.22"
    events = session.receive_data(b"POSITION typing master 5\nPOSITION a master 6\n", 0.0)
    assert events == [
        DialectChosen(DIALECTS["1.13"]),
        CommandReceived(PositionCommand("typing", "master", None, 5)),
        CommandReceived(PositionCommand("a", "master", None, 6)),
    ]
    # Somebody who asked for a dialect keeps it.
    stubborn = client("1.22")
    stubborn.receive_data(b"POSITION typing master 5\n", 0.0)
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
    session.receive_data(lines, 0.0)
    assert session.replicate_refused is refused


def test_a_refusal_of_something_else_says_nothing_of_the_dialect() -> None:
    session = client("2017")
    session.receive_data(b"ERROR failed to parse line\n", 0.0)
    assert not session.replicate_refused


# -- rows ------------------------------------------------------------------------------------


def test_rows_come_as_batches_between_the_commands() -> None:
    session = client()
    events = session.receive_data(
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
        *session.receive_data(b"REMOTE_SERVER_UP x\n", 1.0),
    ]


def test_rows_in_other_alphabets_are_rows() -> None:
    raw = 'POSITION a m 4 4\nRDATA a m 5 ["ü😀"]\n'.encode()
    for cut in range(len(raw)):
        fresh = client()
        events = fresh.receive_data(raw[:cut], 1.0) + fresh.receive_data(raw[cut:], 1.0)
        assert events[-1] == RowsReceived("a", "m", 5, ['["ü😀"]'.encode()])


def test_rows_that_nobody_announced_are_dropped_and_counted() -> None:
    session = client("auto", b"SERVER example.com\nPING 1\n")
    assert session.receive_data(b"RDATA a m 5 []\nRDATA a m batch []\n", 1.0) == []
    assert session.dropped_rows == 2
    assert session.held_rows == 0


def test_2017_rows_need_no_position() -> None:
    session = client("2017")
    events = session.receive_data(b"RDATA a 5 [1]\nRDATA a 5 [2]\nPOSITION a 5\n", 1.0)
    assert events == [
        RowsReceived("a", "master", 5, [b"[1]", b"[2]"]),
        CommandReceived(PositionCommand("a", "master", None, 5)),
    ]
    assert session.receive_data(b"RDATA a 6 [3]\n", 1.0) == [
        RowsReceived("a", "master", 6, [b"[3]"])
    ]
    session.send(ReplicateCommand("a", None, 5), 1.0)
    assert session.receive_data(b"RDATA a 7 [4]\n", 1.0) == []
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
    events = session.receive_data(b"POSITION a m 4 4\n" + line + b"RDATA a m 9 []\n", 1.0)
    assert isinstance(events[-1], Closing)
    assert events[-1].reason is CloseReason.LOST_ROW
    assert events[-1].text.startswith(text)
    assert session.data_to_send() == f"ERROR {events[-1].text}\n".encode()
    assert len(events) == 2


def test_a_server_that_names_endless_streams_is_left() -> None:
    session = client()
    for number in range(MAX_PAIRS):
        session.receive_data(b"POSITION s%d m 1 1\n" % number, 1.0)
    assert session.close_reason is None
    session.receive_data(b"POSITION more m 1 1\n", 1.0)
    assert session.close_reason is CloseReason.LOST_ROW


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (b"\n\r\n   \nfrob\n", 'line 4: unknown command "frob"; HELP lists the commands'),
        (b"frob 100%s %n\r\n", 'line 1: unknown command "frob"; HELP lists the commands'),
        (b"%s\n", 'line 1: unknown command "%s"; HELP lists the commands'),
        (
            b"PING\nFEDERATION_ACK x\n",
            'line 2: FEDERATION_ACK: token "x" is not a whole number from 0 to '
            "9223372036854775807; expected FEDERATION_ACK [<instance>] <token>",
        ),
    ],
)
def test_a_line_that_is_only_wrong_is_answered_and_the_connection_lives(
    lines: bytes, answer: str
) -> None:
    session = server()
    session.receive_data(lines, 1.0)
    assert session.data_to_send() == f"ERROR {answer}\n".encode()
    assert session.bad_lines == 1
    assert session.state is State.GREETED
    assert commands(session.receive_data(b"ping 1\n", 1.0)) == [PingCommand("1")]


def test_too_many_bad_lines_are_enough() -> None:
    session = server()
    session.receive_data(b"frob\n" * (MAX_BAD_LINES - 1), 1.0)
    assert session.state is State.GREETED
    session.data_to_send()
    text = (
        f"line {MAX_BAD_LINES}: {MAX_BAD_LINES} bad lines are enough; the last: "
        'unknown command "frob"; HELP lists the commands'
    )
    assert session.receive_data(b"frob\nPING 1\n", 1.0) == [
        Closing(CloseReason.TOO_MANY_ERRORS, text)
    ]
    assert session.data_to_send() == f"ERROR {text}\n".encode()
    assert session.close_text == text


@pytest.mark.parametrize(
    ("raw", "reason", "text"),
    [
        (
            b"PING 1\nRDATA a m 5 []\nPING 2\n",
            CloseReason.UNEXPECTED_COMMAND,
            "line 2: RDATA is for a server to send, not for a client",
        ),
        (
            b"server example.com\n",
            CloseReason.UNEXPECTED_COMMAND,
            "line 1: SERVER is for a server to send, not for a client",
        ),
        (
            b"\nPING \xff\n",
            CloseReason.BAD_ENCODING,
            "line 2: PING: byte 6 of the line (0xff) is not UTF-8",
        ),
        (
            b"PING " + b"x" * MAX_LINE_BYTES + b"\n",
            CloseReason.LINE_TOO_LONG,
            f"line 1: PING: the line is longer than {MAX_LINE_BYTES} bytes",
        ),
        (
            b"PING 1\n" + b"x" * (MAX_LINE_BYTES + 2),
            CloseReason.LINE_TOO_LONG,
            f"line 2: the line is longer than {MAX_LINE_BYTES} bytes",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            CloseReason.WRONG_PROTOCOL,
            "this looks like TLS: this port speaks the replication line protocol without TLS",
        ),
    ],
)
def test_what_cannot_go_on_is_answered_and_closed(
    raw: bytes, reason: CloseReason, text: str
) -> None:
    session = server()
    events = session.receive_data(raw, 1.0)
    assert events[-1] == Closing(reason, text)
    assert session.data_to_send() == f"ERROR {text}\n".encode()
    assert session.state is State.CLOSING
    assert session.close_reason is reason
    assert session.receive_data(b"PING 1\n", 1.0) == []


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR this looks like RESP"),
    ],
)
def test_http_and_resp_are_answered_in_their_own_words(raw: bytes, answer: bytes) -> None:
    session = server()
    events = session.receive_data(raw, 1.0)
    assert isinstance(events[-1], Closing)
    assert events[-1].reason is CloseReason.WRONG_PROTOCOL
    assert session.close_text == events[-1].text
    assert session.data_to_send().startswith(answer)


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
    events = session.receive_data(raw, 1.0)
    assert events[-1] == Closing(reason, text)
    foreign = reason is CloseReason.WRONG_PROTOCOL and "SSH" not in text
    assert session.data_to_send() == (b"" if foreign else f"ERROR {text}\n".encode())


def test_a_client_survives_what_it_does_not_know() -> None:
    session = client()
    session.data_to_send()
    assert session.receive_data(b"FROB 1\n" * (MAX_BAD_LINES + 1), 1.0) == []
    assert session.unknown_lines == MAX_BAD_LINES + 1
    assert session.data_to_send() == b""
    assert session.receive_data(b"REMOTE_SERVER_UP\n", 1.0) == []
    assert session.bad_lines == 1
    assert session.close_reason is None


def test_an_error_from_the_peer_is_only_news() -> None:
    session = client()
    assert commands(session.receive_data(b"ERROR 100% wrong\n", 1.0)) == [
        ErrorCommand("100% wrong")
    ]
    assert session.state is State.REPLICATING
    early = ClientSession(0.0)
    assert commands(early.receive_data(b"ERROR too many connections\n", 1.0)) == [
        ErrorCommand("too many connections")
    ]
    assert early.state is State.CONNECTED


# -- keep-alive ------------------------------------------------------------------------------


@pytest.mark.parametrize("session", [server(), ClientSession(0.0)], ids=["server", "client"])
def test_a_ping_goes_out_after_five_seconds_of_sending_nothing(session: Session) -> None:
    session.data_to_send()
    session.sent_elsewhere(3.0)
    assert session.next_deadline() == 3.0 + PING_INTERVAL_S
    assert session.tick(7.9) == []
    assert session.data_to_send() == b""
    assert session.tick(8.0) == []
    assert session.data_to_send() == b"PING 8000\n"
    assert session.next_deadline() == 8.0 + PING_INTERVAL_S


def test_silence_is_only_counted_once_the_peer_has_sent_ping() -> None:
    session = server()
    for second in range(0, 1000, 5):
        assert session.tick(float(second)) == []
    assert session.state is State.GREETED
    session.receive_data(b"PING 1\n", 1000.0)
    session.data_to_send()
    session.sent_elsewhere(1024.0)
    assert session.next_deadline() == 1000.0 + PING_TIMEOUT_S
    assert session.tick(1024.9) == []
    text = "ping timeout: nothing came for 25 seconds"
    assert session.tick(1025.0) == [Closing(CloseReason.PING_TIMEOUT, text)]
    assert session.data_to_send() == f"ERROR {text}\n".encode()


def test_any_valid_command_is_a_sign_of_life_and_a_bad_line_is_not() -> None:
    session = server()
    session.receive_data(b"PING 1\n", 0.0)
    session.receive_data(b"NAME x\n", 20.0)
    session.receive_data(b"frob\n\n", 40.0)
    assert session.tick(44.9) == []
    assert session.tick(45.0)[-1:] != []
    assert session.close_reason is CloseReason.PING_TIMEOUT


def test_rows_are_a_sign_of_life() -> None:
    session = client()
    session.receive_data(b"POSITION a m 4 4\n", 1.0)
    session.receive_data(b"RDATA a m 5 []\n", 20.0)
    session.tick(44.0)
    assert session.state is State.REPLICATING
    session.tick(45.0)
    assert session.close_reason is CloseReason.PING_TIMEOUT


def test_who_does_not_read_cannot_complain_of_silence() -> None:
    session = client()
    session.not_reading(100.0)
    session.tick(120.0)
    assert session.close_reason is None


@pytest.mark.parametrize(("raw", "missing"), [(b"", "SERVER"), (b"SERVER example.com\n", "PING")])
def test_a_client_does_not_wait_for_ever_for_the_greeting(raw: bytes, missing: str) -> None:
    session = ClientSession(0.0, handshake_timeout_s=4.0)
    session.receive_data(raw, 1.0)
    assert session.next_deadline() == 4.0
    text = f"handshake timeout: no {missing} in 4 seconds"
    assert session.tick(4.0) == [Closing(CloseReason.HANDSHAKE_TIMEOUT, text)]
    assert session.data_to_send().endswith(f"ERROR {text}\n".encode())


def test_a_server_may_limit_the_time_to_ask() -> None:
    session = server(handshake_timeout_s=4.0)
    assert session.tick(4.0)[-1].reason is CloseReason.HANDSHAKE_TIMEOUT  # type: ignore[union-attr]
    assert b"no REPLICATE in 4 seconds" in session.data_to_send()
    patient = server(handshake_timeout_s=4.0)
    patient.receive_data(b"REPLICATE\n", 1.0)
    assert patient.tick(4.0) == []


# -- sending and ending ----------------------------------------------------------------------


def test_a_command_goes_out_in_the_dialect_of_the_connection() -> None:
    session = server(dialect="1.13")
    session.receive_data(b"REPLICATE\n", 1.0)
    session.send(PositionCommand("a", "m", 4, 5), 1.0)
    session.send(RdataCommand("a", "m", None, b"[]"), 2.0)
    assert session.data_to_send() == b"POSITION a m 5\nRDATA a m batch []\n"
    assert session.next_deadline() == 2.0 + PING_INTERVAL_S


def test_a_row_that_is_too_long_for_the_peer_is_our_own_error() -> None:
    session = server()
    session.receive_data(b"REPLICATE\n", 1.0)
    with pytest.raises(LocalProtocolError, match="takes 16384"):
        session.send(RdataCommand("a", "m", 1, b"x" * MAX_LINE_BYTES), 1.0)
    assert session.data_to_send() == b""


def test_closing_says_why_once_and_ignores_what_comes() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "server is\nstopping: 100 %", 10.0)
    session.close(CloseReason.LOCAL_ERROR, "again", 11.0)
    assert session.data_to_send() == b"ERROR server is\\nstopping: 100 %\n"
    assert session.close_reason is CloseReason.SHUTDOWN
    assert session.receive_data(b"PING 1\n", 11.0) == []
    with pytest.raises(LocalProtocolError, match="server cannot send INFO while closing"):
        session.send(InfoCommand("x"), 11.0)
    assert session.next_deadline() == 10.0 + CLOSE_TIMEOUT_S


def test_a_close_without_words_sends_none() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "", 10.0)
    assert session.data_to_send() == b""


def test_a_long_reason_is_cut() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "\u202e" * 5_000, 10.0)
    assert len(session.data_to_send()) < MAX_LINE_BYTES


def test_a_peer_that_does_not_drain_is_aborted() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "bye", 10.0)
    assert session.tick(34.9) == []
    assert session.tick(35.0) == [Closing(CloseReason.ABORTED, "bye")]
    assert session.state is State.CLOSED
    assert session.next_deadline() is None
    assert session.tick(99.0) == []
    assert session.close_reason is CloseReason.SHUTDOWN


def test_the_end_of_the_connection_is_told_once() -> None:
    session = server()
    session.receive_data(b"PING unfinis", 1.0)
    assert session.receive_eof(1.0) == [Closing(CloseReason.PEER_CLOSED, "")]
    assert session.state is State.CLOSED
    assert session.receive_eof(2.0) == []
    assert session.receive_data(b"hed\n", 2.0) == []
    assert session.data_to_send() == b""
    lost = server()
    lost.receive_eof(1.0, CloseReason.CONNECTION_LOST)
    assert lost.close_reason is CloseReason.CONNECTION_LOST


def test_an_end_that_was_asked_for_keeps_its_reason() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "bye", 10.0)
    assert session.receive_eof(11.0) == []
    assert session.close_reason is CloseReason.SHUTDOWN
    assert session.state is State.CLOSED


def test_nothing_means_nothing() -> None:
    assert server().receive_data(b"", 1.0) == []


def test_every_server_command_is_an_event() -> None:
    session = ClientSession(0.0)
    assert commands(session.receive_data(b"SERVER example.com\r\n", 0.0)) == [
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
    session.receive_data(f"SERVER x\nPING {text}\nPING 2 tcprepl/1 later\n".encode(), 0.0)
    assert session.incarnation == (named or "later")


def test_a_server_names_its_incarnation() -> None:
    session = ServerSession("x", 0.0, incarnation="9f86d081884c7d65")
    assert session.data_to_send() == b"SERVER x\nPING 0 tcprepl/1 9f86d081884c7d65\n"
