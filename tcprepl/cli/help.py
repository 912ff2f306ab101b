"""``tcprepl help``: the documentation that is installed with the program."""

from __future__ import annotations

import sys
from importlib.resources import files

import click
from click.shell_completion import CompletionItem

from tcprepl.errors import did_you_mean

#: Page -> what it is about. Each is ``tcprepl/docs/PAGE.md``, but for the specification.
SUMMARIES: dict[str, str] = {
    "tutorial": "A quarter of an hour: rows, positions, a crash, a worker.",
    "commands": "Each command, with an example.",
    "configuration": "Every key; reloading; retention.",
    "python": "The library: a server, workers, writers.",
    "http": "The paths of the HTTP API.",
    "ephemeral": "Typing, presence, receipts.",
    "federation": "EDUs to other servers.",
    "redis": "Beside the Redis of a Synapse: relays.",
    "bus": "In place of the Redis of a Synapse.",
    "postgresql": "The log in a database.",
    "operation": "Metrics, units, dashboards, incidents, upgrades.",
    "backup": "The data directory, and copies of it.",
    "security": "Leaving loopback: TLS, tokens, rights.",
    "performance": "Measured beside others, and where we are worse.",
    "why": "Why it is built as it is.",
    "protocol": "The specification of the wire: protocol.md.",
}
_ELSEWHERE = {"protocol": "conformance/protocol.md"}


def page(name: str) -> str:
    """Return the text (Markdown) of a page of SUMMARIES."""
    path = files("tcprepl").joinpath(_ELSEWHERE.get(name, f"docs/{name}.md"))
    return path.read_text(encoding="utf-8")


def _complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    names = [*SUMMARIES, *(name for name in group.list_commands(ctx) if name not in SUMMARIES)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command("help")
@click.argument("words", nargs=-1, metavar="[PAGE|COMMAND]", shell_complete=_complete)
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Print a page of the documentation, or what --help says of a command.

    Without a name, list the pages. On a terminal the text goes through $PAGER. A page that has
    the name of a command comes first; that command's options are told by its --help.

    \b
    Example:
      tcprepl help tutorial
      tcprepl help fed retry
    """
    if not words:
        width = max(map(len, SUMMARIES))
        for name, about in SUMMARIES.items():
            click.echo(f"{name:<{width}}  {about}")
        return
    text = page(words[0]) if words[0] in SUMMARIES and len(words) == 1 else _usage(ctx, words)
    if sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        click.echo(text, nl=not text.endswith("\n"))


def _usage(ctx: click.Context, words: tuple[str, ...]) -> str:
    """Return the help of the command that *words* name."""
    at = ctx.find_root()
    for number, word in enumerate(words):
        group = at.command
        names = group.list_commands(at) if isinstance(group, click.Group) else []
        found = group.get_command(at, word) if isinstance(group, click.Group) else None
        if found is None:
            known = names if number else [*SUMMARIES, *names]
            near = did_you_mean(word, known, shown=len(SUMMARIES))
            what = f"command {' '.join(words)!r}" if number else f"page or command {word!r}"
            raise click.UsageError(f"no such {what}{near}", ctx)
        at = click.Context(found, parent=at, info_name=word)
    return at.get_help()
