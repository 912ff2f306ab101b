"""Addresses: where they lead, and what must not stand in one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import endpoints

from tcprepl.addresses import NO_USER, is_database_url, parse_address


@pytest.mark.parametrize(
    ("text", "overheard"),
    [
        ("127.0.0.1:1", False),
        ("localhost:1", False),
        ("[::1]:1", False),
        ("repl.example.com:1", True),
        ("tcp:127.0.0.1:1", False),
        ("tcp:port=1:host=127.0.0.1", False),
        ("tcp:10.0.0.1:1", True),
        ("tcp:host=repl.example.com:port=1", True),
        (r"tcp:\:\:1:1", False),
        ("tcp:", True),
        ("tls:repl.example.com:1", False),
        ("ssl:repl.example.com:1", False),
        ("unix:/run/tcprepl.sock", False),
    ],
)
def test_where_others_can_listen_in(text: str, overheard: bool) -> None:
    """Off this machine and without TLS."""
    if text == "tcp:":
        text = "tcp:port=1"
    assert parse_address(text).is_overheard is overheard


@pytest.mark.parametrize(
    "text",
    [
        "tcp:port=1",
        "tcp:1:interface=::1:backlog=5",
        r"tcp6:port=1:interface=\:\:1",
        r"ssl:1:/a\:b\=c.pem:certKey=/d=e.pem",
        r"ssl:1:privateKey=\\:x:",
        "tcp::=:a=b=c",
    ],
)
def test_endpoint_strings_are_taken_apart_as_twisted_does(text: str) -> None:
    words, named = endpoints._parse(text)
    endpoint = parse_address(text).endpoint
    assert endpoint is not None
    assert ([endpoint.kind, *endpoint.words], endpoint.named) == (words, named)
    assert parse_address(f"haproxy:{text}").endpoint == endpoint


def test_what_a_listener_reads_in_an_endpoint_string() -> None:
    def read(text: str) -> Any:
        endpoint = parse_address(text).endpoint
        assert endpoint is not None
        return endpoint.of_listener(), {name: str(path) for name, path in endpoint.files().items()}

    assert read("ssl:port=1")[1] == {"privateKey": "server.pem"}
    given, files = read(r"ssl:1:/k\:1.pem:interface=h:extraCertChain=c:dhParameters=d")
    assert (given["port"], given["interface"]) == ("1", "h")
    assert files == {
        "privateKey": "/k:1.pem",
        "extraCertChain": "c",
        "dhParameters": "d",
    }
    assert read("tcp:1:127.0.0.1")[0] == {"port": "1", "interface": "127.0.0.1"}
    assert read("tcp6:1:5:::1")[0] == {"port": "1", "backlog": "5", "interface": ""}
    assert read("unix:/run/x:privateKey=y") == ({"privateKey": "y"}, {})
    assert parse_address("h:1").endpoint is None
    assert not parse_address("tcp:1:127.0.0.1").is_exposed


@pytest.mark.parametrize("text", ["user:hush@h:1", "hush@h:1", "tcp:hush@h:1"])
def test_a_secret_in_an_address_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="before an @") as refused:
        parse_address(text)
    assert str(refused.value) == NO_USER


def test_the_line_protocol_has_a_scheme() -> None:
    assert parse_address("tcprepl://[::1]:9092") == parse_address("[::1]:9092")
    assert parse_address("tcprepl://h:1").text == "h:1"
    with pytest.raises(ValueError, match="before an @"):
        parse_address("tcprepl://me:hush@h:1")


@pytest.mark.parametrize("text", ["http://h:1", "https://h", "http://unix:/run/x"])
def test_a_url_of_http_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"a URL of HTTP: expected HOST:PORT or"):
        parse_address(text)


@pytest.mark.parametrize("text", ["127.0.0.1:99999", "[::1]:65536", "::1:9092", "::1"])
def test_what_is_nearly_an_address_is_told_what_is_missing(text: str) -> None:
    with pytest.raises(ValueError, match="PORT up to 65535, and an IPv6 host in brackets"):
        parse_address(text)


def test_an_at_may_be_part_of_a_path() -> None:
    assert parse_address("unix:/run/a@b.sock").host is None


def test_a_token_does_not_show_with_its_address() -> None:
    address = parse_address("h:1")
    other = type(address)("h:1", "h", 1, token=lambda: "hush")
    assert address == other
    assert repr(address) == repr(other)


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("postgresql://db/x", True),
        ("postgres://db", True),
        ("./postgresql", False),
        ("http://db", False),
    ],
)
def test_where_logs_are_is_a_database_or_a_directory(text: str, is_it: bool) -> None:
    assert is_database_url(text) is is_it
