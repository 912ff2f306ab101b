"""The kinds of arguments: addresses, URLs, seconds."""

from __future__ import annotations

import click
import pytest

from tcprepl.cli.arguments import ADDRESS, SECONDS, URL
from tcprepl.config import parse_address


def test_addresses() -> None:
    """HOST:PORT and endpoint strings are taken, anything else is a usage error."""
    assert ADDRESS.convert("localhost:1", None, None) == parse_address("localhost:1")
    assert ADDRESS.convert("unix:/run/x", None, None).text == "unix:/run/x"
    assert ADDRESS.convert(parse_address("a:1"), None, None).port == 1
    with pytest.raises(click.BadParameter, match="'9092': expected HOST:PORT"):
        ADDRESS.convert("9092", None, None)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:1/", "http://h:1"),
        ("h:1", "http://h:1"),
        ("https://h/base/", "https://h/base"),
        ("ftp://h", None),
        ("http://", None),
        ("http://h:x", None),
    ],
)
def test_urls(text: str, url: str | None) -> None:
    """A URL may be given short, and has no slash at its end."""
    if url is None:
        with pytest.raises(click.BadParameter, match="expected http://HOST:PORT"):
            URL.convert(text, None, None)
    else:
        assert URL.convert(text, None, None) == url


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("0.5", 0.5), (2, 2.0), ("0", None), ("soon", None)]
)
def test_seconds(text: str | int, seconds: float | None) -> None:
    """Seconds are above 0."""
    if seconds is None:
        with pytest.raises(click.BadParameter, match="expected a number of seconds"):
            SECONDS.convert(text, None, None)
    else:
        assert SECONDS.convert(text, None, None) == seconds
