"""Whom a room lets in."""

from __future__ import annotations

import time

import pytest

from tcprepl.federation.writing.server_acl import ServerAcl


@pytest.mark.parametrize(
    ("acl", "server", "allowed"),
    [
        (ServerAcl(), "a.example", False),
        (ServerAcl(("*",)), "a.example", True),
        (ServerAcl(("*",), ("a.example",)), "a.example:8448", False),
        (ServerAcl(("*",), ("a.example",)), "A.Example", False),
        (ServerAcl(("*",), ("A.EXAMPLE",)), "a.example", False),
        (ServerAcl(("*",), ("*.example",)), "example", True),
        (ServerAcl(("*",), ("*.example",)), "x.y.example", False),
        (ServerAcl(("?.example",)), "a.example", True),
        (ServerAcl(("?.example",)), "ab.example", False),
        (ServerAcl(("[ab].example",)), "a.example", False),
        (ServerAcl(("a.example",)), "aXexample", False),
        (ServerAcl(("a.example",)), "a.example.org", False),
        (ServerAcl(("*",), (), False), "10.0.0.1", False),
        (ServerAcl(("*",), (), False), "[::1]:8448", False),
        (ServerAcl(("*",), (), False), "a.example", True),
        (ServerAcl(("*",), ("10.*",)), "10.0.0.1:80", False),
        (ServerAcl(("[::1]",)), "[::1]:8448", True),
        (ServerAcl(("*",)), "no name", False),
    ],
)
def test_as_the_specification_has_it(acl: ServerAcl, server: str, allowed: bool) -> None:
    """Deny before allow, no port, any case, addresses by their own rule."""
    assert acl.allows(server) is allowed


def test_no_pattern_takes_long() -> None:
    """Whoever may set the ACL of a room may not stop the server with it."""
    acl = ServerAcl(("*a" * 100 + "b",))
    began = time.process_time()
    assert not acl.allows("a" * 250)
    assert time.process_time() - began < 1
