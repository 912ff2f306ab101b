"""Rows and positions in each wire form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.serving.rendering import (
    WireForm,
    has_longer_line,
    position_line,
    render_rows,
)
from tcprepl.streams.blocks import render

OLD = WireForm.of(DIALECTS["2017"])
ONE_TOKEN = WireForm.of(DIALECTS["1.13"])
NEWEST = WireForm.of(DIALECTS["1.22"])
NATIVE = WireForm.of(DIALECTS["tcprepl"])


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (OLD, b"POSITION typing 7\n"),
        (ONE_TOKEN, b"POSITION typing master 7\n"),
        (NEWEST, b"POSITION typing master 5 7\n"),
        (NATIVE, b"POSITION typing master 5 7\n"),
    ],
)
def test_position_in_each_form(form: WireForm, line: bytes) -> None:
    assert position_line(form, "typing", "master", 5, 7) == line


def shown(form: WireForm, tokens: list[int], rows: list[bytes]) -> tuple[bytes, list[int]]:
    """Render rows in *form*."""
    block = render("typing", "master", tokens, rows, 0)
    result = render_rows(form, block.stream, block.instance, block.tokens, block.lines)
    return result.lines, list(result.omitted)


def test_newest_form_is_the_very_bytes_of_the_log() -> None:
    block = render("typing", "master", [1, 2], [b"[1]", b"[2]"], 0)
    shown_lines = render_rows(NEWEST, "typing", "master", block.tokens, block.lines).lines
    assert shown_lines is block.lines


def test_how_much_goes_out_without_a_look() -> None:
    """Nothing in a form that is cut or masked; what is that long in all has no longer line."""
    assert NEWEST.verbatim_bytes == NEWEST.max_line_bytes
    assert OLD.verbatim_bytes == 0
    assert NEWEST._replace(unmasked=frozenset()).verbatim_bytes == 0


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(0, 14))
def test_a_longer_line_is_found_wherever_it_is(lengths: list[int], limit: int) -> None:
    lines = b"".join(b"x" * length + b"\n" for length in lengths)
    assert has_longer_line(lines, limit) == any(length > limit for length in lengths)


def test_2017_form_names_no_instance() -> None:
    lines, omitted = shown(OLD, [1, 2, 2], [b'["RDATA typing master 1 "]', b"[2]", b"[3]"])
    assert lines == (
        b'RDATA typing 1 ["RDATA typing master 1 "]\nRDATA typing batch [2]\nRDATA typing 2 [3]\n'
    )
    assert not omitted


def test_too_long_a_line_takes_its_batch_with_it_and_leaves_a_position() -> None:
    long = b'["' + b"x" * 16_384 + b'"]'
    lines, omitted = shown(NEWEST, [1, 2, 2, 3], [b"[1]", b"[2]", long, b"[3]"])
    assert lines == (
        b"RDATA typing master 1 [1]\nPOSITION typing master 2 2\nRDATA typing master 3 [3]\n"
    )
    assert omitted == [2]


@pytest.mark.parametrize(("size", "fits"), [(16_384, True), (16_385, False)])
def test_limit_counts_the_line_without_its_end(size: int, fits: bool) -> None:
    row = b'["' + b"x" * (size - len(b"RDATA typing master 1 ") - 4) + b'"]'
    lines, omitted = shown(NEWEST, [1], [row])
    assert bool(omitted) is not fits
    assert lines.startswith(b"RDATA" if fits else b"POSITION")


def test_2017_limit_counts_the_shorter_line() -> None:
    row = b'["' + b"x" * (16_384 - len(b"RDATA typing 1 ") - 4) + b'"]'
    assert shown(OLD, [1], [row])[1] == []
    assert shown(NEWEST, [1], [row])[1] == [1]
    too_long = row[:-2] + b'x"]'
    assert shown(OLD, [1, 2], [too_long, b"[2]"]) == (
        b"POSITION typing 1\nRDATA typing 2 [2]\n",
        [1],
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=20))
def test_leaving_out_keeps_the_rest_whole(shape: list[tuple[bool, int]]) -> None:
    tokens = []
    token = 0
    for follows, _ in shape:
        token += 0 if follows and token else 1
        tokens.append(token)
    rows = [b"[%s]" % (b"1" * (1 + size)) for _, size in shape]
    form = WireForm(rdata_instance=True, position_tokens=2, max_line_bytes=50)
    lines, omitted = shown(form, tokens, rows)
    assert all(len(line) <= 50 for line in lines.split(b"\n"))
    whole = render("typing", "master", tokens, rows, 0).lines.splitlines()
    long = {t for t, line in zip(tokens, whole, strict=True) if len(line) > 50}
    assert set(omitted) == long
    kept = [line for t, line in zip(tokens, whole, strict=True) if t not in long]
    assert [line for line in lines.splitlines() if line.startswith(b"RDATA")] == kept
