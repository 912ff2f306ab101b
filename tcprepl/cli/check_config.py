"""``tcprepl check-config``: all faults of a configuration file, before a server meets them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tcprepl.app.checking import is_shared, missing_files, unknown_streams
from tcprepl.config import load


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--for",
    "who",
    type=click.Choice(["serve", "relay", "bus"]),
    help="Whose file it is: relay and bus meet streams of others, which retention_of may name.  "
    "[default: serve, unless it has a section bus or instances]",
)
def command(file: Path, who: str | None) -> None:
    """Check the configuration FILE, and say everything that is wrong with it.

    The exit code is 0 for a good file and 2 for a bad one. Names of Synapse's configuration
    are accepted with a warning that shows our spelling. Files that it names are looked at: run it
    as the user of the process.

    \b
    Example:
      $ tcprepl check-config tcprepl.yaml
      tcprepl.yaml: 2 faults
        server_nam: unknown key; did you mean server_name?
        http.listen: found 'nonsense'; expected HOST:PORT or a Twisted endpoint string, ...
    """

    def look(settings: Mapping[str, Any]) -> list[str]:
        knows_all = who == "serve" or (who is None and not is_shared(settings))
        return missing_files(settings) + (unknown_streams(settings) if knows_all else [])

    loaded = load(file, look=look)
    strange = unknown_streams(loaded.config.model_dump(include={"streams"}))
    for warning in (*loaded.warnings, *strange):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: good")
