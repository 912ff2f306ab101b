"""What the sessions promise for any bytes, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import (
    PingCommand,
    PositionCommand,
    RdataCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.events import Closing, CommandReceived, Event, PublishRun, in_batches
from tcprepl.protocol.framing import LineBuffer
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import State
from tests.sessions import receive
from tests.strategies import cuts, streams_of_bytes

CLIENTS = ("auto", "2017", "1.13", "1.22", "tcprepl")


def a_server() -> Session:
    """Return the server's end of a new connection."""
    return ServerSession("example.com", 0.0)


def a_client(dialect: str) -> Session:
    """Return the client's end of a connection that asked for rows."""
    client = ClientSession(0.0, server_name="example.com", dialect=dialect)
    receive(client, b"SERVER example.com\nPING 1 tcprepl/1\n", 0.0)
    if dialect == "2017":
        client.send(ReplicateCommand("*", None, None, now=True), 0.0)
    else:
        client.send(ReplicateCommand(), 0.0)
    return client


def drive(session: Session, pieces: list[bytes]) -> tuple[list[Event], bytes, object]:
    """Feed *pieces*; return the events, what went out and how it ended.

    How rows fall into runs depends on the pieces: they are told batch by batch.
    """
    events: list[Event] = []
    for piece in pieces:
        events += in_batches(receive(session, piece, 1.0))
    return events, session.data_to_send(), (session.state, session.close_reason)


def check(events: list[Event], session: Session) -> None:
    """Check what holds for any input."""
    closings = [index for index, event in enumerate(events) if isinstance(event, Closing)]
    assert closings in ([], [len(events) - 1])
    assert bool(closings) == (session.state is State.CLOSING)
    for line in session.data_to_send().split(b"\n"):
        assert line.decode("utf-8").rstrip("\r").isprintable()


@given(data=st.data())
def test_a_server_takes_any_bytes_in_any_pieces(data: st.DataObject) -> None:
    raw = data.draw(streams_of_bytes())
    whole, cut = a_server(), a_server()
    assert drive(whole, [raw]) == drive(cut, data.draw(cuts(raw)))
    session = a_server()
    check(receive(session, raw, 1.0), session)


@pytest.mark.parametrize("dialect", CLIENTS)
def test_rows_are_the_same_however_the_reads_fall(dialect: str) -> None:
    lines = [b"POSITION a m 4 4", *[b"RDATA a m 5 [1]", b"RDATA a m 5 [2]", b"RDATA a m 6 [3]"] * 2]
    if dialect == "2017":
        lines = [line.replace(b" m ", b" ").replace(b" 4 4", b" 4") for line in lines]
    raw = b"\n".join([*lines, b""])
    whole = drive(a_client(dialect), [raw])
    for at in range(len(raw)):
        assert drive(a_client(dialect), [raw[:at], raw[at:]]) == whole


@pytest.mark.parametrize("dialect", CLIENTS)
@given(data=st.data())
def test_a_client_takes_any_bytes_in_any_pieces(dialect: str, data: st.DataObject) -> None:
    only = data.draw(st.sampled_from([(), (RdataCommand, PositionCommand, PingCommand)]))
    raw = data.draw(streams_of_bytes(*only))
    whole, cut = a_client(dialect), a_client(dialect)
    assert drive(whole, [raw]) == drive(cut, data.draw(cuts(raw)))
    session = a_client(dialect)
    check(receive(session, raw, 1.0), session)


@given(data=st.data())
def test_a_client_takes_any_greeting_in_any_pieces(data: st.DataObject) -> None:
    raw = data.draw(streams_of_bytes(ServerCommand, PingCommand, PositionCommand))
    whole, cut = ClientSession(0.0), ClientSession(0.0)
    assert drive(whole, [raw]) == drive(cut, data.draw(cuts(raw)))


@given(data=st.data())
def test_lines_do_not_depend_on_the_pieces_and_stay_bounded(data: st.DataObject) -> None:
    raw = data.draw(
        st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r", b"\r\n", b"ccccc"]), max_size=40)
    )
    joined = b"".join(raw)
    whole, cut = LineBuffer(7), LineBuffer(7)
    lines = whole.feed(joined)
    got: list[bytes] = []
    for piece in data.draw(cuts(joined)):
        got += cut.feed(piece)
        assert cut.pending_bytes <= 8
    assert (got, cut.overlong) == (lines, whole.overlong)
    expected: list[bytes] = []
    *ended, tail = joined.split(b"\n")
    for line in (ending.removesuffix(b"\r") for ending in ended):
        if len(line) > 7:
            break
        expected.append(line)
    assert lines == expected
    assert (whole.overlong is not None) == (
        len(expected) < len(ended) or len(tail.removesuffix(b"\r")) > 7
    )


#: Lines that fall into runs, and lines that break them.
PUBLISHED = st.one_of(
    st.builds(lambda n, row: b"PUBLISH s #%d %b\n" % (n, row), st.integers(0, 99), st.sampled_from(
        (b"[1]", b'{"a": "PUBLISH s #1 [2]"}', b"[2] ", b"  [3]", "\u00e9".encode())
    )),
    st.sampled_from(
        (
            b"PUBLISH s #7 [1]\r\n",
            b"PUBLISH s [1]\n",
            b"publish s #8 [1]\n",
            b"PUBLISH t #8 [1]\n",
            b"PUBLISH s @w #9 [1]\n",
            b"PUBLISH s #9 \n",
            b"PUBLISH s #9\n",
            b"PUBLISH s #9x [1]\n",
            b"PUBLISH s #12345678901234567890 [1]\n",
            b"PUBLISH s #1234567890123456789 [1]\n",
            b"PUBLISH s #5 \xff\n",
            b"PUBLISH_ROWS s #5 [1]\n",
            b"PUBLISHED s w 1 1\n",
            b"NAME me\n",
            b"\n",
        )
    ),
)  # fmt: skip


@given(st.lists(PUBLISHED, max_size=40).map(b"".join).flatmap(cuts))
@example([b"PUBLISH s #9\n" + b"PUBLISH s #0 [1]\n" * 5])
@example([b"PUBLISH s #1234567890123456789 [1]\n" + b"PUBLISH s #0 [1]\n" * 5])
@example([b'PUBLISH s #0 "\xff"\n' * 6])
def test_runs_change_nothing(pieces: list[bytes]) -> None:
    """Rows that are taken together mean what they mean line by line."""
    each = ServerSession("example.com", 0.0, publishing=True)
    together = ServerSession("example.com", 0.0, publishing=True)
    lines = b"".join(pieces).splitlines(keepends=True)
    expected = drive(each, lines)
    events, out, end = drive(together, pieces)
    found: list[Event] = []
    for event in events:
        if isinstance(event, PublishRun):
            assert event.rows.count(b"\n") == len(event.numbers)
            found += map(CommandReceived, event.commands())
        else:
            found.append(event)
    if not expected[0] or not isinstance(expected[0][-1], Closing):
        assert (found, out, end) == expected
    else:
        assert (found, out) == expected[:2]
