"""The helpers beside the ports."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tcprepl.ephemeral.ports import milliseconds, no_hosts, server_of


@pytest.mark.parametrize(
    ("user_id", "server"),
    [
        ("@a:x.example", "x.example"),
        ("@a:x.example:8448", "x.example:8448"),
        ("@a", ""),
        ("a:x.example", ""),
        ("", ""),
    ],
)
def test_server_of_a_user(user_id: str, server: str) -> None:
    assert server_of(user_id) == server


def test_milliseconds_are_whole() -> None:
    clock = Clock()
    for _ in range(1_000):
        clock.advance(0.001)
    assert milliseconds(clock) == 1_000


def test_no_hosts_are_none() -> None:
    assert list(no_hosts("!room:x")) == []
