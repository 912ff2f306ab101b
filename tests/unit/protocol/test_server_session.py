"""The server's end: the greeting, the dialect asked for, bad lines, and pulling."""

from __future__ import annotations

import pytest

from tcprepl.errors import CloseReason
from tcprepl.limits import (
    MAX_BAD_LINES,
    MAX_LINE_BYTES,
)
from tcprepl.protocol.commands import (
    NameCommand,
    PingCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import (
    ClaimUnread,
    Closing,
    CommandReceived,
    DialectChosen,
    Event,
    LinesPassed,
    PublishRun,
)
from tcprepl.protocol.server_session import MAX_PASSED, ServerSession
from tcprepl.protocol.state import State
from tests.sessions import BARE, GOODBYE, commands, receive, server


def test_a_server_greets_with_its_name_and_what_it_understands() -> None:
    session = ServerSession("example.com", 5.0, epoch_s=1_661_000_000.0)
    assert session.data_to_send() == b"SERVER example.com\nPING 1661000005000 tcprepl/1\n"
    assert session.data_to_send() == b""
    assert session.state is State.GREETED
    assert not session.dialect_chosen


@pytest.mark.parametrize("dialect", ["2017", "redis", "tcprepl"])
def test_a_bare_replicate_cannot_mean_every_dialect(dialect: str) -> None:
    with pytest.raises(ValueError, match=dialect):
        ServerSession("example.com", 0.0, dialect=dialect)


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
    events = receive(session, line, 1.0)
    assert events[0] == DialectChosen(DIALECTS[chosen])
    assert isinstance(events[1], CommandReceived)
    assert session.dialect is DIALECTS[chosen]
    assert session.dialect_chosen
    assert session.state is State.REPLICATING
    # The same form again is no second choice.
    assert receive(session, line, 1.0) == events[1:]


def test_a_later_replicate_of_another_form_is_refused_and_nothing_changes() -> None:
    session = server()
    receive(session, b"REPLICATE\n", 1.0)
    assert receive(session, b"REPLICATE typing 5\n", 1.0) == []
    assert session.data_to_send() == (
        b"ERROR line 2: REPLICATE: this is the form of dialect 2017, and the first REPLICATE of "
        b"this connection chose dialect 1.22\n"
    )
    assert session.state is State.REPLICATING


def test_a_name_is_remembered() -> None:
    session = server()
    assert session.peer_name == ""
    assert commands(receive(session, b"NAME nc on my desk\n", 1.0)) == [
        NameCommand("nc on my desk")
    ]
    assert session.peer_name == "nc on my desk"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR this looks like RESP"),
    ],
)
def test_http_and_resp_are_answered_in_their_own_words(raw: bytes, answer: bytes) -> None:
    session = server()
    events = receive(session, raw, 1.0)
    assert isinstance(events[-1], Closing)
    assert events[-1].reason is CloseReason.WRONG_PROTOCOL
    assert session.close_text == events[-1].text
    assert session.data_to_send().startswith(answer)


def test_a_server_may_limit_the_time_to_ask() -> None:
    session = server(handshake_timeout_s=4.0)
    assert session.tick(4.0)[-1].reason is CloseReason.HANDSHAKE_TIMEOUT  # type: ignore[union-attr]
    assert b"no REPLICATE in 4 seconds" in session.data_to_send()
    patient = server(handshake_timeout_s=4.0)
    receive(patient, b"REPLICATE\n", 1.0)
    assert patient.tick(4.0) == []


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
    receive(session, lines, 1.0)
    assert session.data_to_send() == f"ERROR {answer}\n".encode()
    assert session.bad_lines == 1
    assert session.state is State.GREETED
    assert commands(receive(session, b"ping 1\n", 1.0)) == [PingCommand("1")]


def test_too_many_bad_lines_are_enough() -> None:
    session = server()
    receive(session, b"frob\n" * (MAX_BAD_LINES - 1), 1.0)
    assert session.state is State.GREETED
    session.data_to_send()
    text = (
        f"line {MAX_BAD_LINES}: {MAX_BAD_LINES} bad lines are enough; the last: "
        'unknown command "frob"; HELP lists the commands'
    )
    assert receive(session, b"frob\nPING 1\n", 1.0) == [Closing(CloseReason.TOO_MANY_ERRORS, text)]
    assert session.data_to_send() == f"ERROR {text}{GOODBYE}\n".encode()
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
    events = receive(session, raw, 1.0)
    assert events[-1] == Closing(reason, text)
    assert session.data_to_send() == f"ERROR {text}{GOODBYE}\n".encode()
    assert session.state is State.CLOSING
    assert session.close_reason is reason
    assert receive(session, b"PING 1\n", 1.0) == []


def test_what_is_not_pulled_is_not_done() -> None:
    session = server()
    session.receive_data(b"NAME a\nfrob\nPING 1\nREPLICATE\nNAME b\n", 1.0)
    assert session.data_to_send() == b""
    assert session.next_event(1.0) == CommandReceived(NameCommand("a"))
    assert (session.peer_name, session.state, session.pinged) == ("a", State.GREETED, False)
    assert session.next_event(1.0) == LinesPassed(1)
    assert session.data_to_send().startswith(b"ERROR line 2: ")
    assert session.next_event(1.0) == CommandReceived(PingCommand("1"))
    assert session.pinged
    assert session.next_event(1.0) == DialectChosen(DIALECTS["1.22"])
    session.receive_data(b"NAME c\n", 2.0)
    assert session.next_event(2.0) == CommandReceived(BARE)
    assert commands(session.events(2.0)) == [NameCommand("b"), NameCommand("c")]
    assert session.next_event(2.0) is None


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"   \n"])
def test_each_pull_does_a_bounded_piece_of_work_and_counts_it(blank: bytes) -> None:
    session = server()
    session.receive_data(blank * 1_000 + b"NAME x\n", 1.0)
    found = []
    while (event := session.next_event(1.0)) is not None:
        found.append(event)
    passed = [event.lines for event in found if isinstance(event, LinesPassed)]
    assert sum(passed) == 1_000
    assert max(passed) == MAX_PASSED
    assert found[-1] == CommandReceived(NameCommand("x"))


def test_what_the_adapter_refuses_counts_as_a_bad_line() -> None:
    session = server()
    for _ in range(MAX_BAD_LINES - 1):
        session.refuse("not here", 1.0)
    assert session.data_to_send() == b"ERROR not here\n" * (MAX_BAD_LINES - 1)
    session.receive_data(b"NAME x\n", 1.0)
    session.refuse("not here", 1.0)
    (closing,) = session.events(1.0)
    assert isinstance(closing, Closing)
    assert closing.reason is CloseReason.TOO_MANY_ERRORS
    session.data_to_send()
    session.refuse("not here", 1.0)
    assert session.data_to_send() == b""


def test_what_was_read_before_the_end_and_not_pulled_is_forgotten() -> None:
    session = server()
    session.receive_data(b"NAME a\nNAME b\n", 1.0)
    session.next_event(1.0)
    session.close(CloseReason.SHUTDOWN, "bye", 1.0)
    assert session.events(1.0) == []


def test_a_server_names_its_incarnation() -> None:
    session = ServerSession("x", 0.0, incarnation="9f86d081884c7d65")
    assert session.data_to_send() == b"SERVER x\nPING 0 tcprepl/1 9f86d081884c7d65\n"


def test_only_published_lines_may_be_long_and_only_where_rows_are_taken() -> None:
    def closes(line: bytes, *, publishing: bool, taking: bool | None = None) -> bool:
        session = ServerSession("example.com", 0.0, max_line_bytes=200, publishing=publishing)
        if taking is not None:
            session.take_rows(taking)
        receive(session, line, 1.0)
        return session.close_reason is CloseReason.LINE_TOO_LONG

    published = b'PUBLISH push_rules #1 ["%b"]\n' % (b"x" * 400)
    assert not closes(published, publishing=True)
    assert closes(published, publishing=False)
    assert not closes(published, publishing=False, taking=True)
    assert closes(published, publishing=True, taking=False)
    assert closes(b"NAME %b\n" % (b"x" * 400), publishing=True)


@pytest.mark.parametrize("behind", [b"", b"NAME x\n"])
def test_a_line_that_is_too_long_ends_it_behind_good_ones_of_the_same_read(behind: bytes) -> None:
    session = ServerSession("example.com", 0.0, max_line_bytes=200)
    events = receive(session, b"NAME w1\n" + b"x" * 300 + b"\n" + behind, 1.0)
    assert isinstance(events[-1], Closing)
    assert session.close_reason is CloseReason.LINE_TOO_LONG


# --- runs ---------------------------------------------------------------------------------


def published(numbers: range) -> bytes:
    """Return numbered lines as a program writes them."""
    return b"".join(b"PUBLISH s #%d [%d]\n" % (number, number) for number in numbers)


def run(numbers: range) -> PublishRun:
    """Return what those lines are together."""
    rows = b"".join(b"[%d]\n" % number for number in numbers)
    return PublishRun("s", [b"%d" % number for number in numbers], rows)


def named(name: str) -> Event:
    """Return what a NAME means."""
    return CommandReceived(NameCommand(name))


def test_published_lines_that_follow_one_another_are_one_run() -> None:
    session = server(publishing=True)
    assert receive(session, published(range(7)), 1.0) == [run(range(7))]
    receive(session, b"frob\n", 1.0)
    assert session.data_to_send().startswith(b"ERROR line 8: ")
    # a handful of them is not worth its while, and nobody else may publish
    assert len(commands(receive(session, published(range(4)), 1.0))) == 4
    assert receive(session, published(range(5)), 1.0) == [run(range(5))]
    assert len(commands(receive(server(), published(range(7)), 1.0))) == 7


def test_something_else_ends_a_run_and_another_may_begin_behind_it() -> None:
    session = server(publishing=True)
    lines = published(range(6)) + b"NAME a\n" + published(range(6, 11)) + b"NAME b\n"
    events = receive(session, lines, 1.0)
    assert isinstance(events[0], PublishRun)
    each = [e.commands() if isinstance(e, PublishRun) else commands([e]) for e in events]
    a, b = NameCommand("a"), NameCommand("b")
    rows = list(run(range(11)).commands())
    assert [command for part in each for command in part] == [*rows[:6], a, *rows[6:], b]
    receive(session, b"frob\n", 1.0)
    assert session.data_to_send().startswith(b"ERROR line 14: ")


def test_lines_that_are_no_text_are_no_run() -> None:
    """Each is looked at, and the one that is to blame is told."""
    session = server(publishing=True)
    lines = published(range(5)) + b'PUBLISH s #5 ["\xff"]\n' + published(range(6, 9))
    events = receive(session, lines, 1.0)
    assert not any(isinstance(event, PublishRun) for event in events)
    assert commands(events[:-1]) == list(run(range(5)).commands())
    assert isinstance(events[-1], Closing)
    assert "line 6" in session.data_to_send().decode()


def test_a_run_is_a_sign_of_life() -> None:
    session = server(publishing=True)
    receive(session, b"PING 1\n", 0.0)
    receive(session, published(range(6)), 20.0)
    session.tick(44.9)
    assert session.close_reason is None


def test_a_run_begins_with_a_line_and_not_within_one() -> None:
    session = server(publishing=True)
    assert receive(session, b"NAME ", 1.0) == []
    first, *others = receive(session, published(range(7)), 1.0)
    assert first == named("PUBLISH s #0 [0]")
    assert len(commands(others)) == 6
    # the beginning of such a line waits for the rest of it
    assert receive(session, b"PUBLISH s #0 [", 1.0) == []
    assert receive(session, b"0]\n" + published(range(1, 7)), 1.0) == [run(range(7))]


@pytest.mark.parametrize(
    ("row_bytes", "least", "most", "most_bytes"),
    [(8, 850, 950, 65_536), (1_000, 127, 131, 131_072)],
)
def test_a_run_is_bounded_and_the_next_goes_on_behind_it(
    row_bytes: int, least: int, most: int, most_bytes: int
) -> None:
    """By bytes, and by rows: more of them than fit a block would have to be parted again."""
    session = server(publishing=True)
    numbers = range(1_000, 4_000)
    rows = [b'"%0*d"' % (row_bytes - 2, number) for number in numbers]
    lines = [b"PUBLISH s #%d %b\n" % each for each in zip(numbers, rows, strict=True)]
    events = receive(session, b"".join(lines), 1.0)
    runs = [event for event in events if isinstance(event, PublishRun)]
    assert runs == events
    assert [int(number) for one in runs for number in one.numbers] == list(numbers)
    assert b"".join(one.rows for one in runs) == b"\n".join((*rows, b""))
    longest = max(len(one.numbers) for one in runs)
    assert least <= longest <= most
    assert longest * len(lines[0]) <= most_bytes


@pytest.mark.parametrize(
    ("line", "unread"), [(b"PRODUCER a b c d", 1), (b"PRODUCER", 1), (b"PUBLISH a", 0)]
)
def test_a_claim_that_is_no_command_is_answered_and_told(line: bytes, unread: int) -> None:
    """What follows it has no producer; other bad lines concern nobody."""
    session = server()
    events = receive(session, line + b"\n", 1.0)
    assert [type(event) for event in events].count(ClaimUnread) == unread
    assert session.data_to_send().startswith(b"ERROR ")


def test_what_is_left_may_be_pulled_in_one_piece_and_only_once() -> None:
    session = server()
    session.receive_data(b"NAME w\nPING 1\nREPLICATE typing master 5\nPING 2\n", 1.0)
    found: list[Event] = []
    while not any(isinstance(event, DialectChosen) for event in found):
        event = session.next_event(1.0)
        assert event is not None
        found.append(event)
    found += session.events(1.0)
    assert [command.NAME for command in commands(found)] == ["NAME", "PING", "REPLICATE", "PING"]
    assert session.events(1.0) == []
    assert session.next_event(1.0) is None
