"""The notation of conversations."""

from __future__ import annotations

import pytest

from tcprepl.conformance.document import Block
from tcprepl.conformance.notation import (
    ConversationFailed,
    Step,
    Talker,
    Unexpected,
    json_values,
    matches,
    parse,
    require,
    written_bytes,
)


def test_lines_are_steps() -> None:
    block = Block("conversation", ("(streams: a)", "S> SERVER x", "C2> NAME me", "C>"), 10, "")
    assert parse(block) == [
        Step("(", "streams: a", 11),
        Step("S", "SERVER x", 12),
        Step("C", "NAME me", 13, 2),
        Step("C", "", 14),
    ]
    assert [str(step) for step in parse(block)] == [
        "(streams: a)",
        "S> SERVER x",
        "C2> NAME me",
        "C> ",
    ]
    with pytest.raises(ValueError, match=r"protocol\.md:2: not in the notation: what"):
        parse(Block("conversation", ("what",), 1, ""))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("NAME me", b"NAME me\n"),
        ("help<CR>", b"help\r\n"),
        ("<16><FF>", b"\x16\xff\n"),
        ("<5 bytes>", b"xxxxx"),
        ("", b"\n"),
    ],
)
def test_what_a_line_stands_for(text: str, data: bytes) -> None:
    assert written_bytes(text) == data


def test_dots_are_some_text() -> None:
    assert matches("PING ... tcprepl/1", "PING 17 tcprepl/1")
    assert not matches("PING ...", "PING ")
    assert not matches("ERROR a.b", "ERROR axb")
    assert matches("-ERR<CR>", "-ERR\r")


def test_json_values_are_parted() -> None:
    assert json_values('5 ["a", {"b": 1}] 6 []') == ["5", '["a", {"b": 1}]', "6", "[]"]
    assert json_values("") == []


def test_failures_name_the_line() -> None:
    with pytest.raises(Unexpected, match="why"):
        require(False, "why")
    require(True, "why")
    failed = ConversationFailed(Step("S", "PING ...", 7), "got  INFO")
    assert str(failed) == "protocol.md:7: S> PING ...\ngot  INFO"


def test_a_talker_keeps_what_comes() -> None:
    talker = Talker()
    heard: list[int] = []
    talker.news = lambda: heard.append(1)
    talker.dataReceived(b"one\ntw")
    assert [talker.take_line(), talker.take_line()] == ["one", None]
    talker.dataReceived(b"o\xff\n")
    assert talker.take_line() == "two\ufffd"
    talker.connectionLost()
    assert talker.closed
    assert len(heard) == 3
