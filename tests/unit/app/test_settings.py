"""What settings mean to the parts that are made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcprepl.access import ALL, EVERYTHING, NOTHING, Grant, Guesses, Streams, digest
from tcprepl.app.settings import (
    anonymous_of,
    http_secrets,
    placed_servers,
    publishes,
    registry_of,
    retention_of,
    tokens_of,
    trust_of,
)
from tcprepl.config import build
from tcprepl.errors import ConfigError

TOKEN = {"name": "w1", "token": "a-token-of-sixteen", "read": "all", "operate": True}


def test_extra_streams_and_retention() -> None:
    """What the configuration says of streams reaches registry and logs."""
    config = build(
        {
            "streams": {
                "extra": ["mine", {"name": "loud", "durable": False}],
                "retention": {"age": "1h"},
                "retention_ephemeral": {"rows": 7},
                "retention_of": {"typing": {"bytes": 9}, "mine": {"rows": 8}, "unknown": {}},
            }
        },
        "x",
    ).config
    registry = registry_of(config)
    assert registry.get("mine").durable
    assert not registry.get("loud").durable
    retention = retention_of(config)
    assert retention.durable.max_age_s == 3600
    assert retention.bounds("typing", durable=False).max_bytes == 9
    assert retention.bounds("typing", durable=False).max_rows == 7
    assert retention.bounds("mine", durable=True).max_rows == 8
    assert retention.bounds("mine", durable=True).max_age_s == 3600
    assert retention.bounds("unknown", durable=True) == retention.durable


def test_placed_servers() -> None:
    """What is wrong with them names its key."""
    assert placed_servers({"b.example": "127.0.0.1:8448"}) == {"b.example": ("127.0.0.1", 8448)}
    for resolve in ({"b.example": "127.0.0.1:0"}, {"no server": "127.0.0.1:1"}, {"b.example": "x"}):
        with pytest.raises(ConfigError, match=r"federation.resolve"):
            placed_servers(resolve)


def test_trusted_files(tmp_path: Path) -> None:
    """None is the system's authorities; what holds no certificate names its key."""
    assert trust_of(None) is None
    (tmp_path / "ca.pem").write_text("nothing", encoding="utf-8")
    for path in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with pytest.raises(ConfigError, match=r"federation.ca"):
            trust_of(path)


def test_secrets_of_http() -> None:
    """Token and replication secret, as far as they are set."""
    assert http_secrets(build({}, "x").config) == []
    raw = {"http": {"token": "a", "replication_secret": "b"}}
    assert http_secrets(build(raw, "x").config) == ["a", "b"]


@pytest.mark.parametrize(
    ("replication", "http", "expected"),
    [
        ({}, {}, True),
        ({}, {"token": "t"}, False),
        ({"publish": True}, {"token": "t"}, True),
        ({"publish": False}, {}, False),
        ({"tokens": [TOKEN]}, {"token": "t"}, True),
        ({"tokens": [TOKEN], "publish": False}, {}, False),
        ({"anonymous": {"read": "all"}}, {"token": "t"}, True),
        ({"listen": "0.0.0.0:1", "tls": {"client_ca": "ca.pem"}}, {}, True),
    ],
)
def test_who_may_publish_over_the_line_protocol(
    replication: dict[str, Any], http: dict[str, Any], expected: bool
) -> None:
    """Nobody who has shown neither a token nor a certificate, unless the configuration says so."""
    if replication.get("tls") is not None:
        replication = {
            **replication,
            "tls": {"certificate": "c.pem", "private_key": "k.pem", **replication["tls"]},
        }
    assert publishes(build({"replication": replication, "http": http}, "x").config) is expected


def test_rights_are_those_of_the_configuration() -> None:
    """Without tokens everybody may do everything, with them nobody who says none."""
    assert anonymous_of(build({}, "x").config) == EVERYTHING
    config = build({"replication": {"tokens": [TOKEN]}}, "x").config
    assert anonymous_of(config) == NOTHING
    tokens = tokens_of(config, Guesses())
    assert tokens.grant(digest("a-token-of-sixteen")) == Grant("w1", read=ALL, operate=True)
    anonymous = {"inspect": ["typing"]}
    config = build({"replication": {"tokens": [TOKEN], "anonymous": anonymous}}, "x").config
    assert anonymous_of(config) == Grant(inspect=Streams(frozenset({"typing"})))
