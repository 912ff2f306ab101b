"""Replies: their bytes, and Redis's words for what went wrong."""

from __future__ import annotations

import pytest

from tcprepl.replication.bus import replies
from tcprepl.replication.bus.replies import CommandError


def test_values() -> None:
    assert replies.optional(None, 2) == b"$-1\r\n"
    assert replies.optional(None, 3) == b"_\r\n"
    assert replies.optional(b"a", 3) == b"$1\r\na\r\n"
    assert replies.strings([b"a", b""]) == b"*2\r\n$1\r\na\r\n$0\r\n\r\n"
    assert replies.integer(-2) == b":-2\r\n"


def test_pieces_are_joined_but_for_large_ones() -> None:
    large = b"x" * 10
    assert replies.joined([b"a", b"b"], 10) == b"ab"
    found = replies.joined([b"a", b"b", large, large, b"c"], 10)
    assert found == [b"ab", large, large, b"c"]
    assert found[1] is large


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    said = replies.unknown_command([b"a\r\nb\0", b"c\nd", b"x" * 200, b"never shown"])
    assert said.startswith(b"-ERR unknown command 'a  b', with args beginning with: 'c d' 'xxx")
    assert said.count(b"\n") == 1
    assert b"never" not in said
    assert replies.error("ERR no \r\nx\r\n") == b"-ERR no   x\r\n"


def test_an_error_quotes_as_much_as_redis_does() -> None:
    """Up to a zero byte; of what stands behind the command 128 bytes, with their quotes."""
    said = replies.unknown_command([b"a\0b", b"\0", "é".encode() * 40, b"\xff" * 90, b"never"])
    shown = ["", "é" * 40, r"\xff" * 42]
    quoted = "".join(f"'{word}' " for word in shown)
    assert said.decode() == f"-ERR unknown command 'a', with args beginning with: {quoted}\r\n"


@pytest.mark.parametrize("word", [b"", b"-", b"1.5", b"x", b"9223372036854775808", b"1" * 400])
def test_what_is_no_number_of_64_bits_is_refused(word: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        replies.number(word)
    assert caught.value.reply == b"-ERR value is not an integer or out of range\r\n"
    assert replies.number(b"-9223372036854775807") == -(2**63) + 1


def test_messages_by_name_and_by_pattern() -> None:
    by_name = replies.messages(replies.message_head(b"ch"), [b"one", b""])
    assert by_name == (
        b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$3\r\none\r\n"
        b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$0\r\n\r\n"
    )
    by_pattern = replies.messages(replies.message_head(b"ch", b"c*"), [b"one"])
    assert by_pattern == b"*4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nch\r\n$3\r\none\r\n"
