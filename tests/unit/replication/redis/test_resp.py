"""RESP: every reply, every cut, every refusal; messages take the fast way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.redis.resp import (
    BadReply,
    ErrorReply,
    Message,
    RespReader,
    encode,
    encode_publish,
)

CHANNEL = b"example.com"


def message(payload: bytes, channel: bytes = CHANNEL) -> bytes:
    """Return a pushed message as Redis writes it."""
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(channel),
        channel,
        len(payload),
        payload,
    )


def test_messages_of_the_channel_come_as_payloads() -> None:
    reader = RespReader(CHANNEL)
    assert reader.feed(message(b"one") + message(b"") + message(b"a\r\nb")) == (
        [b"one", b"", b"a\r\nb"],
        [],
    )


def test_messages_of_other_channels_name_theirs() -> None:
    payloads, others = RespReader(CHANNEL).feed(message(b"x", b"example.com/USER_IP"))
    assert payloads == []
    assert isinstance(others[0], Message)
    assert (others[0].channel, others[0].payload) == (b"example.com/USER_IP", b"x")
    assert repr(others[0]) == "<Message on b'example.com/USER_IP', 1 bytes>"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-12\r\n", -12),
        (b"$3\r\nabc\r\n", b"abc"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*0\r\n", []),
        (b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", [b"pong", b""]),
        (b"*1\r\n*1\r\n:1\r\n", [[1]]),
    ],
)
def test_every_kind_of_reply(data: bytes, value: object) -> None:
    assert RespReader().feed(data) == ([], [value])


def test_errors_come_as_such() -> None:
    _, [error] = RespReader().feed(b"-WRONGPASS no\xff\r\n")
    assert isinstance(error, ErrorReply)
    assert str(error) == "WRONGPASS no\N{REPLACEMENT CHARACTER}"


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40).map(message),
            st.binary(max_size=10).map(lambda one: b"$%d\r\n%b\r\n" % (len(one), one)),
            st.integers(-5, 5).map(lambda one: b":%d\r\n" % one),
        ),
        max_size=8,
    ),
    st.data(),
)
def test_cuts_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    whole = RespReader(CHANNEL).feed(text)
    reader = RespReader(CHANNEL)
    payloads: list[bytes] = []
    others: list[object] = []
    while text:
        size = data.draw(st.integers(1, len(text)))
        got = reader.feed(text[:size])
        payloads += got[0]
        others += got[1]
        text = text[size:]
    assert (payloads, others) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b":x\r\n",
        b"*x\r\n",
        b"*1\r\n" * 20,
        b"$999999999999\r\n",
        b"+" + b"x" * 20_000,
        message(b"")[:-5] + b"9" * 40,
        message(b"")[:-5] + b"x\r\n",
        b"$" + b"9" * 5_000 + b"\r\n",
        b":" + b"9" * 5_000 + b"\r\n",
    ],
)
def test_what_is_not_resp_is_refused(data: bytes) -> None:
    with pytest.raises(BadReply):
        RespReader(CHANNEL).feed(data)


def test_what_never_ends_is_refused() -> None:
    reader = RespReader(CHANNEL, max_reply_bytes=64)
    with pytest.raises(BadReply, match="without an end"):
        reader.feed(b"*9\r\n" + b"$40\r\n" + b"x" * 40 + b"\r\n$40\r\n" + b"x" * 20)


def test_commands_are_encoded() -> None:
    assert encode(b"AUTH", b"a b") == b"*2\r\n$4\r\nAUTH\r\n$3\r\na b\r\n"
    published = encode_publish(b"c", [b"one", b"caf\xc3\xa9"])
    assert published == encode(b"PUBLISH", b"c", b"one") + encode(b"PUBLISH", b"c", b"caf\xc3\xa9")
