"""``--format``: what letters and escapes stand for, and how it is said what does not."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli import formats
from tcprepl.cli.formats import LETTERS, Format, FormatType, key_of, output_options, writer_for

ROW = b'["@alice:example.com",{"a":1}]'


def shown(text: str) -> bytes:
    """Return the row in a form."""
    (line,) = Format(text).rows("typing", "master", 7, [ROW])
    return line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("%s %t %r", b"typing 7 " + ROW),
        ("%p/%k", b"master/@alice:example.com"),
        ("%S\\t100%%", b"%d\t100%%" % len(ROW)),
        ("\\x41\\\\\\n\\0", b"A\\\n\0"),
        ("", b""),
        ("è%s", "ètyping".encode()),
    ],
)
def test_letters_and_escapes(text: str, line: bytes) -> None:
    assert shown(text) == line


def test_what_it_says_goes_out_as_it_is_and_what_peers_said_does_not(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    form = Format("%k\\0\\e[0m\\xff")
    writer_for(form)(form.line({}, '["a\u202e\\u001b"]'.encode()))
    writer_for(None)(b"\0")
    assert capsysbinary.readouterr().out == b"a\\u202e\\u001b\0\x1b[0m\xff\\u0000"


def test_the_time_is_that_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "wall_ms", lambda: 1_700_000_000_123)
    assert shown("%T") == b"1700000000123"


def test_access_tokens_are_left_out() -> None:
    row = b'["get_user_by_access_token",["secret"],1]'
    (line,) = Format("%r %k").rows("caches", "master", 1, [row])
    assert b"secret" not in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%s %x", "%x at column 4 stands for nothing here: there are %s stream, %p instance"),
        ("%o", "kcat's %o is %t here"),
        ("50%", "a % at its end, at column 3: expected a letter, or %%"),
        ("a\\q", "a \\ at column 2: expected \\n, \\t, "),
        ("a\\", "a \\ at column 2: expected"),
        ("\\xZZ", "a \\ at column 1: expected"),
    ],
)
def test_what_stands_for_nothing_is_named_with_its_place(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        Format(text)


def test_only_the_letters_that_mean_something_there() -> None:
    with pytest.raises(click.BadParameter, match="there are %s stream, %r row and %%"):
        FormatType("sr").convert("%p", None, None)
    already = Format("x")
    assert FormatType().convert(already, None, None) is already


@given(st.text())
def test_any_text_is_a_format_or_is_refused(text: str) -> None:
    """And one without letters stands for itself."""
    try:
        made = Format(text.encode("utf-8", "replace").decode())
    except ValueError:
        return
    made.rows("typing", "master", 1, [ROW])


@given(st.text().map(lambda text: text.replace("%", "%%").replace("\\", "\\\\")))
def test_what_is_escaped_stands_for_itself(text: str) -> None:
    plain = text.replace("%%", "%").replace("\\\\", "\\")
    if "\ud800" <= max(plain, default="") <= "\udfff":
        return
    assert shown(text) == plain.encode()


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (b'["a",1]', b"a"),
        (b"[[1,2]]", b"[1,2]"),
        (b"[]", b"[]"),
        (b'{"a": 1}', b'{"a":1}'),
        (b"12", b"12"),
        (b"nonsense", b"nonsense"),
    ],
)
def test_keys(row: bytes, key: bytes) -> None:
    assert key_of(row) == key


def test_json_and_a_format_exclude_each_other() -> None:
    @click.command()
    @output_options("row")
    def command(as_json: bool, row_format: Format | None) -> None:
        click.echo(f"{as_json} {row_format and row_format.text}")

    runner = CliRunner()
    assert runner.invoke(command, ["--format", "%s"]).output == "False %s\n"
    assert runner.invoke(command, ["--json"]).output == "True None\n"
    for args in (["--json", "--format", "%s"], ["--format", "%s", "--json"]):
        assert "exclude each other" in runner.invoke(command, args).output
    told = " ".join(runner.invoke(command, ["--help"]).output.split())
    for letter, meaning in LETTERS.items():
        assert f"%{letter} {meaning}" in told
