"""``tcprepl files``: what a machine needs around this program, printed or written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from tcprepl.cli.manual import pages
from tcprepl.errors import TcpreplError
from tcprepl.files import KINDS, files_of

#: The kind that is made of the help of the commands.
MAN = "man"
_ABOUT = {kind: found.about for kind, found in KINDS.items()} | {
    MAN: "the manual pages of all commands: /usr/local/share/man/man1"
}


@click.command("files")
@click.argument("kind", type=click.Choice([*_ABOUT]), required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write them into this directory, which is made if need be.",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option(
    "--command",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where tcprepl is on that machine.  [default: this one]",
)
@click.pass_context
def command(
    ctx: click.Context, kind: str | None, out: Path | None, force: bool, command: Path | None
) -> None:
    """Print the files of KIND, or write them with --out.

    Without KIND, say which kinds there are and where each goes.

    \b
    Example:
      tcprepl files systemd --out /etc/systemd/system
      tcprepl files alerts > /etc/prometheus/tcprepl.rules.yml
    """
    if kind is None:
        for name, about in _ABOUT.items():
            click.echo(f"{name:<10} {about}")
        return
    found = pages(ctx.find_root()) if kind == MAN else files_of(kind, command or _this_command())
    if out is None:
        for name, text in found.items():
            if len(found) > 1:
                click.echo(f"# ==> {name} <==")
            click.echo(text, nl=False)
        return
    there = [name for name in found if (out / name).exists()]
    if there and not force:
        raise TcpreplError(f"{out} has {', '.join(there)} already; --force writes over them")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TcpreplError(
            f"--out {out}: cannot write {error.filename or out}: {error.strerror}; expected a "
            "directory, there or to be made"
        ) from None
    for name in found:
        click.echo(str(out / name))


def _this_command() -> Path:
    """Return the path under which somebody else can start what runs here."""
    beside = Path(sys.executable).with_name("tcprepl")
    found = str(beside) if beside.exists() else shutil.which("tcprepl")
    return Path(found or "/usr/local/bin/tcprepl")
