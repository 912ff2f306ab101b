"""The kinds of arguments: addresses, URLs, seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tcprepl.addresses import Address, parse_address
from tcprepl.cli.arguments import (
    ADDRESS,
    DATA,
    SECONDS,
    STREAM,
    URL,
    RowsToType,
    data_settings,
    from_option,
    rows_to_option,
    to_options,
)
from tcprepl.errors import ConfigError


def test_addresses() -> None:
    """HOST:PORT and endpoint strings are taken, anything else is a usage error."""
    assert ADDRESS.convert("localhost:1", None, None) == parse_address("localhost:1")
    assert ADDRESS.convert("unix:/run/x", None, None).text == "unix:/run/x"
    assert ADDRESS.convert(parse_address("a:1"), None, None).port == 1
    with pytest.raises(click.BadParameter, match="'9092': expected HOST:PORT"):
        ADDRESS.convert("9092", None, None)


def test_a_stream_has_a_name() -> None:
    assert STREAM.convert("typing", None, None) == "typing"
    for nothing in ("", " "):
        with pytest.raises(click.BadParameter, match="expected the name of a stream"):
            STREAM.convert(nothing, None, None)


def test_data_is_a_directory_or_a_database(tmp_path: Path) -> None:
    """A file is neither."""
    url = "postgresql://u:secret@h/d"
    assert DATA.convert("d", None, None) == DATA.convert(Path("d"), None, None) == Path("d")
    assert DATA.convert(url, None, None) == url
    (tmp_path / "file").write_text("")
    with pytest.raises(click.BadParameter, match="is a file: expected a directory"):
        DATA.convert(str(tmp_path / "file"), None, None)
    assert data_settings(url, "d") == {"data": url, "data_directory": Path("d")}
    assert data_settings(Path("e"), "d") == {"data": None, "data_directory": Path("e")}
    assert data_settings(None) == {"data": None, "data_directory": None}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:1/", "http://h:1"),
        ("h:1", "http://h:1"),
        ("https://h/base/", "https://h/base"),
        ("ftp://h", None),
        ("http://", None),
        ("http://h:x", None),
        ("http://[::1]:1", "http://[::1]:1"),
        ("http://[::1:1", None),
        ("[::1:1", None),
    ],
)
def test_urls(text: str, url: str | None) -> None:
    """A URL may be given short, and has no slash at its end."""
    if url is None:
        with pytest.raises(click.BadParameter, match="expected http://HOST:PORT"):
            URL.convert(text, None, None)
    else:
        assert URL.convert(text, None, None) == url


def test_what_may_stand_is_said() -> None:
    """Where rows go the line protocol is an answer, too."""
    expected = "expected http://HOST:PORT or http://unix:/PATH"
    for text in ("tcp:h:1", "tcprepl://h:1", "ftp://h"):
        with pytest.raises(click.BadParameter, match=expected):
            URL.convert(text, None, None)
    expected = "expected tcprepl://HOST:PORT, http://HOST:PORT or http://unix:/PATH"
    with pytest.raises(click.BadParameter, match=expected):
        RowsToType().convert("tcprepl:h:1", None, None)
    assert RowsToType().convert("tcprepl://h:1", None, None) == parse_address("h:1")


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


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://unix:/run/x.sock", "http://unix:/run/x.sock"),
        ("unix:/run/x.sock", "http://unix:/run/x.sock"),
    ],
)
def test_sockets_are_urls_too(text: str, url: str) -> None:
    """With or without the scheme."""
    assert URL.convert(text, None, None) == url


def test_a_token_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In place of --token; both are a fault, and so is a file without one."""
    file = tmp_path / "token"
    file.write_text("\ufeffhush\n", encoding="utf-8")
    seen: list[str | None] = []

    @click.command()
    @to_options
    def command(url: str, token: str | None) -> None:
        seen.append(token)

    def run(*args: str) -> int:
        try:
            command.main(list(args), standalone_mode=False)
        except (click.UsageError, ConfigError):
            return 2
        return 0

    assert run("--token-file", str(file)) == run("--token", "typed") == run() == 0
    assert seen == ["hush", "typed", None]
    assert run("--token-file", str(file), "--token", "typed") == 2
    file.write_text("", encoding="utf-8")
    assert run("--token-file", str(file)) == 2
    assert "hush" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "to", "words"),
    [
        ("new\nold", "http://h:1", "--token has more than one line"),
        ("new old", "http://h:1", None),
        ("new", "tcprepl://h:1", None),
        ("new old", "tcprepl://h:1", "the token is not 1 to 1024 printable ASCII characters"),
        ("n\N{LATIN SMALL LETTER E WITH ACUTE}w", "tcprepl://h:1", "the token is not 1 to"),
    ],
)
def test_a_token_that_cannot_be_said_is_a_fault(given: str, to: str, words: str | None) -> None:
    """At once, and in words that do not show it: a server would never take it."""

    @click.command()
    @rows_to_option
    def publish(url: str | Address, token: Callable[[], str] | None) -> None:
        reader = url.token if isinstance(url, Address) else token
        assert reader is not None
        assert reader() == given

    @click.command()
    @from_option
    def tail(source: Address) -> None:
        assert source.token is not None

    runs = [(publish, "--to")] + ([(tail, "--from")] if to.startswith("tcprepl") else [])
    for command, option in runs:
        argv = [option, to, "--token", given]
        if words is None:
            command.main(argv, standalone_mode=False)
        else:
            with pytest.raises(click.UsageError, match=words) as raised:
                command.main(argv, standalone_mode=False)
            assert "new" not in raised.value.message
