"""Channels that are plain pub/sub: who hears what, how often."""

from __future__ import annotations

from tcprepl.replication.bus.channels import Channels
from tcprepl.replication.bus.patterns import Pattern


class Hearer:
    """Keeps what it is handed."""

    proto = 2

    def __init__(self, *patterns: bytes) -> None:
        self.patterns = {name: (Pattern(name), None) for name in patterns}
        self.heard: list[bytes] = []

    def push(self, data: bytes) -> None:
        self.heard.append(data)


NAMED = b"*3\r\n$7\r\nmessage\r\n$3\r\nabc\r\n$1\r\nx\r\n"
MATCHED = b"*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$3\r\nabc\r\n$1\r\nx\r\n"


def test_each_subscription_brings_a_message_of_its_own() -> None:
    channels, one, other = Channels(), Hearer(b"a*"), Hearer()
    channels.add(one, b"abc", by_pattern=False)
    channels.add(one, b"a*", by_pattern=True)
    channels.add(other, b"abc", by_pattern=False)
    assert (channels.listeners_of(b"abc"), channels.reached(b"abc")) == (2, 3)
    channels.push(b"abc", b"x")
    channels.push(b"b", b"x")
    assert (one.heard, other.heard) == ([NAMED, MATCHED], [NAMED])


def test_who_is_gone_hears_nothing_and_leaves_nothing_behind() -> None:
    channels, one, other = Channels(), Hearer(b"a*"), Hearer()
    channels.add(one, b"a*", by_pattern=True)
    channels.add(one, b"abc", by_pattern=False)
    channels.add(other, b"abc", by_pattern=False)
    channels.remove(one, b"abc", by_pattern=False)
    channels.remove(one, b"a*", by_pattern=True)
    channels.push(b"abc", b"x")
    assert (one.heard, other.heard) == ([], [NAMED])
    channels.remove(other, b"abc", by_pattern=False)
    assert (channels.by_name, channels.by_pattern) == ({}, {})
    assert channels.reached(b"abc") == 0
