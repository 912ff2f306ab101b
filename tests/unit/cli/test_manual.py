"""Manual pages: every command, every option, and text that roff would take for its own."""

from __future__ import annotations

import click
import pytest

from tcprepl import cli
from tcprepl.cli.manual import contexts, page, pages, quoted

ROOT = click.Context(cli.cli, info_name="tcprepl")
CONTEXTS = {ctx.command_path: ctx for ctx in contexts(ROOT)}


def test_each_command_has_its_page() -> None:
    found = pages(ROOT)
    assert {f"tcprepl-{name}.1" for name in cli.COMMANDS} < set(found)
    assert "tcprepl-fed-ls.1" in found
    assert ".BR tcprepl\\-serve (1)" in found["tcprepl.1"]


@pytest.mark.parametrize("path", CONTEXTS)
def test_each_option_is_on_it(path: str) -> None:
    ctx = CONTEXTS[path]
    text = page(ctx)
    for param in ctx.command.params:
        if isinstance(param, click.Option) and not param.hidden:
            assert f".B {quoted(param.opts[-1])}" in text or quoted(param.opts[-1]) in text
    assert text.isascii()
    assert "\b" not in text


def test_what_roff_would_take_for_its_own() -> None:
    assert quoted(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert quoted("'x") == "\\&'x"
    assert quoted("a\\fB-b\nc") == "a\\efB\\-b c"
