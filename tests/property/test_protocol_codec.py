"""What the codec promises for every value: round trips, and documented errors only."""

from __future__ import annotations

import re

import abnf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.errors import ProtocolError, RemoteProtocolError
from tcprepl.limits import SNIPPET_BYTES
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.display import snippet
from tcprepl.protocol.grammar import ABNF, PATTERNS
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import serialize
from tests.strategies import commands, junk_lines


class Grammar(abnf.Rule):  # type: ignore[misc]  # abnf's Rule is untyped
    """The ABNF of the grammar module, loaded by an independent parser."""


Grammar.load_grammar(ABNF)


def accepts(rule: str, text: str) -> bool:
    """Whether the ABNF's *rule* matches the whole of *text*."""
    try:
        Grammar(rule).parse_all(text)
    except abnf.ParseError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(DIALECTS))
@given(data=st.data())
def test_what_a_dialect_writes_it_reads_back(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    command = data.draw(commands(dialect))
    line = serialize(command, dialect)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_line(line[:-1], dialect) == command


@pytest.mark.parametrize("name", sorted(DIALECTS))
@given(data=st.data())
def test_every_line_that_is_written_is_in_the_grammar(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    assert accepts("line", serialize(data.draw(commands(dialect)), dialect).decode())


@given(line=junk_lines() | st.binary(max_size=80), name=st.sampled_from(sorted(DIALECTS)))
def test_any_line_is_a_command_or_a_documented_error(line: bytes, name: str) -> None:
    error: RemoteProtocolError | None = None
    try:
        parse_line(line.replace(b"\n", b""), DIALECTS[name])
    except RemoteProtocolError as raised:
        error = raised
    if error is not None:
        assert error.wire_text.isprintable()
        assert len(error.snippet.encode()) <= SNIPPET_BYTES


@given(st.text(max_size=30))
def test_the_patterns_are_the_terminals_of_the_grammar(text: str) -> None:
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        return
    for rule in ("token", "time", "name", "label"):
        assert bool(PATTERNS[rule].fullmatch(text)) is accepts(rule, text), rule


@given(st.text() | st.binary())
def test_a_snippet_is_short_and_printable(part: str | bytes) -> None:
    shown = snippet(part)
    assert len(shown.encode()) <= SNIPPET_BYTES
    assert shown.isprintable()


@given(
    st.text("abc =&", max_size=40),
    st.sampled_from(["syt_", "mat_", "MDAx", "access_token="]),
    st.from_regex(re.compile(r"[0-9A-F]{16}"), fullmatch=True),
)
def test_a_snippet_never_shows_an_access_token(before: str, issuer: str, secret: str) -> None:
    line = f"{before}{issuer}{secret}"
    assert secret not in snippet(line)
    with pytest.raises(ProtocolError) as caught:
        parse_line(line.replace(" ", "_").encode() or b"?", DIALECTS["1.22"])
    assert secret not in caught.value.wire_text
