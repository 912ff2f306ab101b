"""``tcprepl check-config``: all faults of a configuration file, before a server meets them."""

from __future__ import annotations

from pathlib import Path

import click

from tcprepl.config import load


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def command(file: Path) -> None:
    """Check the configuration FILE, and say everything that is wrong with it.

    The exit code is 0 for a good file and 2 for a bad one. Names of Synapse's configuration
    are accepted with a warning that shows our spelling.

    \b
    Example:
      $ tcprepl check-config tcprepl.yaml
      tcprepl.yaml: 2 faults
        server_nam: unknown key; did you mean server_name?
        http.listen: found 'nonsense'; expected HOST:PORT or a Twisted endpoint string, ...
    """
    loaded = load(file)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: good")
