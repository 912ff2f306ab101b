"""What both ends of a connection share: keep-alive, errors, sending, the end."""

from __future__ import annotations

import pytest

from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.limits import (
    CLOSE_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    MAX_LINE_BYTES,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
)
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import (
    ErrorCommand,
    InfoCommand,
    NameCommand,
    PositionCommand,
    RdataCommand,
)
from tcprepl.protocol.events import Closing
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import State
from tests.sessions import GOODBYE, client, commands, receive, server


def test_an_error_from_the_peer_is_only_news() -> None:
    session = client()
    assert commands(receive(session, b"ERROR 100% wrong\n", 1.0)) == [ErrorCommand("100% wrong")]
    assert session.state is State.REPLICATING
    early = ClientSession(0.0)
    assert commands(receive(early, b"ERROR too many connections\n", 1.0)) == [
        ErrorCommand("too many connections")
    ]
    assert early.state is State.CONNECTED


@pytest.mark.parametrize(
    ("session", "then"),
    [
        pytest.param(server(), 13.0 + PING_INTERVAL_S, id="server"),
        pytest.param(client(), 13.0 + PING_INTERVAL_S, id="client"),
        pytest.param(ClientSession(0.0), HANDSHAKE_TIMEOUT_S, id="client that waits"),
    ],
)
def test_a_ping_goes_out_after_ten_seconds_of_sending_nothing(
    session: Session, then: float
) -> None:
    session.data_to_send()
    session.sent_elsewhere(3.0)
    assert session.next_deadline() == 3.0 + PING_INTERVAL_S
    assert session.tick(12.9) == []
    assert session.data_to_send() == b""
    assert session.tick(13.0) == []
    assert session.data_to_send() == b"PING 13000\n"
    assert session.next_deadline() == then


def test_silence_is_only_counted_once_the_peer_has_sent_ping() -> None:
    session = server()
    for second in range(0, 1000, 5):
        assert session.tick(float(second)) == []
    assert session.state is State.GREETED
    receive(session, b"PING 1\n", 1000.0)
    session.data_to_send()
    session.sent_elsewhere(1024.0)
    assert session.next_deadline() == 1000.0 + PING_TIMEOUT_S
    assert session.tick(1024.9) == []
    text = "ping timeout: nothing came for 25 seconds"
    assert session.tick(1025.0) == [Closing(CloseReason.PING_TIMEOUT, text)]
    assert session.data_to_send() == f"ERROR {text}\n".encode()


def test_any_valid_command_is_a_sign_of_life_and_a_bad_line_is_not() -> None:
    session = server()
    receive(session, b"PING 1\n", 0.0)
    receive(session, b"NAME x\n", 20.0)
    receive(session, b"frob\n\n", 40.0)
    assert session.tick(44.9) == []
    assert session.tick(45.0)[-1:] != []
    assert session.close_reason is CloseReason.PING_TIMEOUT


def test_who_does_not_read_cannot_complain_of_silence() -> None:
    session = client()
    session.not_reading(100.0)
    session.tick(120.0)
    assert session.close_reason is None


def test_a_command_goes_out_in_the_dialect_of_the_connection() -> None:
    session = server(dialect="1.13")
    receive(session, b"REPLICATE\n", 1.0)
    session.send(PositionCommand("a", "m", 4, 5), 1.0)
    session.send(RdataCommand("a", "m", None, b"[]"), 2.0)
    assert session.data_to_send() == b"POSITION a m 5\nRDATA a m batch []\n"
    assert session.next_deadline() == 2.0 + PING_INTERVAL_S


def test_a_row_that_is_too_long_for_the_peer_is_our_own_error() -> None:
    session = server()
    receive(session, b"REPLICATE\n", 1.0)
    with pytest.raises(LocalProtocolError, match="takes 16384"):
        session.send(RdataCommand("a", "m", 1, b"x" * MAX_LINE_BYTES), 1.0)
    assert session.data_to_send() == b""


def test_closing_says_why_once_and_ignores_what_comes() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "server is\nstopping: 100 %", 10.0)
    session.close(CloseReason.LOCAL_ERROR, "again", 11.0)
    assert session.data_to_send() == b"ERROR server is\\nstopping: 100 %\n"
    assert session.close_reason is CloseReason.SHUTDOWN
    assert receive(session, b"PING 1\n", 11.0) == []
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
    session = server()
    session.close(CloseReason.SHUTDOWN, "x" * 5_000, 10.0)
    assert session.data_to_send() == b"ERROR %b\n" % (b"x" * (1_000 + len(GOODBYE)))


def test_a_new_session_has_nothing_to_say_of_its_end() -> None:
    session = server()
    assert (session.close_reason, session.close_text, session.bad_lines) == (None, "", 0)


def test_what_is_read_in_pieces_before_it_is_pulled_is_one_line() -> None:
    session = server()
    session.receive_data(b"NAME a", 1.0)
    session.receive_data(b"b\nNAME", 1.0)
    session.receive_data(b" c\n", 1.0)
    assert commands(session.events(1.0)) == [NameCommand("ab"), NameCommand("c")]


def test_lines_that_are_sent_as_they_are_put_off_the_next_ping() -> None:
    session = server()
    session.send_lines(b"RDATA a m 1 []\n", 3.0)
    assert session.data_to_send() == b"RDATA a m 1 []\n"
    assert session.next_deadline() == 3.0 + PING_INTERVAL_S


def test_a_session_that_is_ending_holds_no_input() -> None:
    session = server()
    session.receive_data(b"x" * MAX_LINE_BYTES, 1.0)
    session.close(CloseReason.SHUTDOWN, "bye", 1.0)
    session.receive_data(b"x" * MAX_LINE_BYTES, 1.0)
    assert session._unread == b""


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
    receive(session, b"PING unfinis", 1.0)
    assert session.receive_eof(1.0) == [Closing(CloseReason.PEER_CLOSED, "")]
    assert session.state is State.CLOSED
    assert session.receive_eof(2.0) == []
    assert receive(session, b"hed\n", 2.0) == []
    assert session.data_to_send() == b""
    lost = server()
    lost.receive_eof(1.0, CloseReason.CONNECTION_LOST)
    assert lost.close_reason is CloseReason.CONNECTION_LOST


def test_what_was_not_taken_before_the_end_does_not_come_after_it() -> None:
    session = server()
    session.receive_data(b"PING 1\n", 1.0)
    session.receive_eof(1.0)
    assert session._unread == b""
    assert session.events(1.0) == []


def test_an_end_that_was_asked_for_keeps_its_reason() -> None:
    session = server()
    session.close(CloseReason.SHUTDOWN, "bye", 10.0)
    assert session.receive_eof(11.0) == []
    assert session.close_reason is CloseReason.SHUTDOWN
    assert session.state is State.CLOSED


def test_nothing_means_nothing() -> None:
    assert receive(server(), b"", 1.0) == []
    assert server().events(1.0) == []
