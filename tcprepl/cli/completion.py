"""``tcprepl completion``: the script that makes a shell complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

#: What the completion scripts set when they ask us for words.
COMPLETE_VARIABLE = "_TCPREPL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Example:
      tcprepl completion bash > ~/.local/share/bash-completion/completions/tcprepl
      tcprepl completion fish > ~/.config/fish/completions/tcprepl.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "tcprepl", COMPLETE_VARIABLE).source())
