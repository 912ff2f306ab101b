"""Manual pages (man(7)), made of what ``--help`` says."""

from __future__ import annotations

from collections.abc import Iterator

import click

import tcprepl

#: What separates paragraphs that keep their lines from others in a docstring of click.
_AS_IT_IS = "\b"


def pages(root: click.Context) -> dict[str, str]:
    """Return the page of every command and of its subcommands, by file name."""
    return {f"{ctx.command_path.replace(' ', '-')}.1": page(ctx) for ctx in contexts(root)}


def contexts(ctx: click.Context) -> Iterator[click.Context]:
    """Yield the context of each command from *ctx* down."""
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield from contexts(click.Context(command, parent=ctx, info_name=name))


def page(ctx: click.Context) -> str:
    """Return the page of one command."""
    command = ctx.command
    name = ctx.command_path
    text = (command.help or "").strip()
    summary = text.partition("\n")[0].rstrip(".")
    lines = [
        f'.TH "{quoted(name.upper().replace(" ", "-"))}" 1 "" "tcprepl {tcprepl.__version__}"',
        ".SH NAME",
        quoted(f"{name.replace(' ', '-')} - {summary[:1].lower()}{summary[1:]}"),
        ".SH SYNOPSIS",
        f".B {quoted(name)}",
        quoted(" ".join(command.collect_usage_pieces(ctx))),
        ".SH DESCRIPTION",
        *_paragraphs(text),
    ]
    records = [
        record for param in command.get_params(ctx) if (record := param.get_help_record(ctx))
    ]
    if records:
        lines.append(".SH OPTIONS")
    for option, about in records:
        lines += [".TP", f".B {quoted(option)}", quoted(about)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for word in command.list_commands(ctx):
            found = command.get_command(ctx, word)
            assert found is not None
            lines += [
                ".TP",
                f".BR {quoted(f'{name} {word}'.replace(' ', '-'))} (1)",
                quoted(found.get_short_help_str(300)),
            ]
    lines += [".SH EXIT STATUS", "0 done, 1 failed, 2 a wrong command line or configuration."]
    if ctx.parent is not None:
        parent = ctx.parent.command_path.replace(" ", "-")
        lines += [".SH SEE ALSO", f".BR {quoted(parent)} (1)"]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        kept = paragraph.strip("\n").split("\n")
        if kept[0].strip() == _AS_IT_IS:
            yield from (".PP", ".nf", *map(quoted, kept[1:]), ".fi")
        else:
            yield from (".PP", quoted(" ".join(map(str.strip, kept))))


def quoted(text: str) -> str:
    """Return *text* as roff prints it, whatever is in it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
