"""URLs of Redis: what they mean, what they refuse, and that they keep their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.testing import MemoryReactorClock

from tcprepl.errors import ConfigError
from tcprepl.replication.redis.url import RedisUrl, is_redis_url, parse_redis_url, redis_endpoint


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("redis://h", RedisUrl("h"), "redis://h:6379"),
        ("redis://h:7/3", RedisUrl("h", 7), "redis://h:7"),
        ("redis://[::1]:7/", RedisUrl("::1", 7), "redis://[::1]:7"),
        ("redis://:p%40ss@h", RedisUrl("h", password="p@ss"), "redis://h:6379"),
        ("redis://u:p@h", RedisUrl("h", user="u", password="p"), "redis://h:6379"),
        ("redis://h/?password=p&user=u", RedisUrl("h", user="u", password="p"), "redis://h:6379"),
        ("rediss://h?ca=/ca.pem", RedisUrl("h", tls=True, ca=Path("/ca.pem")), "rediss://h:6379"),
        (
            "unix:/run/r.sock?password=p",
            RedisUrl(path="/run/r.sock", password="p"),
            "unix:/run/r.sock",
        ),
    ],
)
def test_urls(text: str, url: RedisUrl, shown: str) -> None:
    assert is_redis_url(text)
    found = parse_redis_url(text)
    assert found == url
    assert str(found) == shown
    assert "p@ss" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:6379",
        "redis://",
        "redis://h:0",
        "redis://h:99999",
        "redis://h/db",
        "redis://h?ca=/x",
        "redis://h?password=a&secret=b",
        "rediss://h?colour=red",
        "unix:run/r.sock",
    ],
)
def test_what_is_none_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|none") as caught:
        parse_redis_url(text)
    assert "secret" not in str(caught.value)


def test_password_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    assert parse_redis_url(f"redis://h?password_file={tmp_path}/secret").password == "hush"
    with pytest.raises(ValueError, match="cannot be read"):
        parse_redis_url(f"redis://h?password_file={tmp_path}/nothing")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        parse_redis_url(f"redis://h?password_file={tmp_path}/binary")


def test_endpoints(tmp_path: Path) -> None:
    reactor = MemoryReactorClock()
    assert isinstance(redis_endpoint(reactor, RedisUrl(path="/r.sock")), UNIXClientEndpoint)
    assert isinstance(redis_endpoint(reactor, RedisUrl("h")), HostnameEndpoint)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("h")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    for url in (
        RedisUrl("h", tls=True),
        RedisUrl("h", tls=True, ca=tmp_path / "ca.pem", certificate=tmp_path / "own.pem"),
    ):
        assert not isinstance(redis_endpoint(reactor, url), HostnameEndpoint)
    for bad in (tmp_path / "nothing.pem", Path(__file__)):
        with pytest.raises(ConfigError, match="expected PEM files"):
            redis_endpoint(reactor, RedisUrl("h", tls=True, ca=bad))
