"""``tcprepl context``: name servers, so that nobody types addresses."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from tcprepl.addresses import Address
from tcprepl.cli import Group, contexts
from tcprepl.cli.arguments import ADDRESS, RowsToType
from tcprepl.cli.contexts import Context
from tcprepl.protocol.display import displayable
from tcprepl.secret_files import read_secret

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group("context", cls=Group)
def command() -> None:
    """Name servers, and choose the one that commands talk to.

    A command takes an address from its option, else from its environment variable (TCPREPL_FROM,
    TCPREPL_TO), else from the context, else it is that of this machine. `tcprepl --context NAME
    COMMAND`, or TCPREPL_CONTEXT, chooses another one for one command. What a context holds is in
    $XDG_CONFIG_HOME/tcprepl/contexts.yaml: no tokens, but the names of their files.

    \b
    Example:
      $ tcprepl context add main --from tls:repl.example.com:9092 --to https://repl.example.com
      main is in use
      $ tcprepl context add here --from 127.0.0.1:9092 --to http://127.0.0.1:9093
      $ tcprepl context use here
    """


@command.command("add")
@click.argument("name")
@click.option("--from", "source", type=ADDRESS, multiple=True, help="Where its line protocol is.")
@click.option("--to", "url", type=RowsToType(), help="The URL of its HTTP side.")
@click.option("--token-file", type=FILE, help="A file with the token that it asks for.")
@click.option("--ca", type=FILE, help="A PEM file with the authorities to trust.")
@click.option("--server-name", help="The homeserver that has to be there; another is refused.")
@click.option("--use", is_flag=True, help="Use it from now on.")
def add(
    name: str,
    source: tuple[Address, ...],
    url: Address | str | None,
    token_file: Path | None,
    ca: Path | None,
    server_name: str | None,
    use: bool,
) -> None:
    """Add the context NAME, or change what is said of it. The first one is used at once.

    \b
    Example:
      $ tcprepl context add main --from tls:repl.example.com:9092 --token-file worker1-token
      main is in use
    """
    if not name or name.split() != [name] or displayable(name) != name:
        # `--context ''` chooses none, and nobody can type what is not seen
        raise click.UsageError(f"NAME is {name!r}: expected something to type, without spaces")
    known = contexts.read()
    context = known.contexts.setdefault(name, Context())
    if source:
        context.source = [str(address) for address in source]
    if url is not None:
        context.url = f"tcprepl://{url}" if isinstance(url, Address) else url
    if token_file is not None:
        read_secret(token_file)  # what is wrong with it is said at once
        context.token_file = str(token_file)
    if ca is not None:
        context.ca = str(ca)
    if server_name is not None:
        context.server_name = server_name
    known.contexts[name] = context = context.rooted(Path.cwd())
    if not context.source and context.url is None:
        raise click.UsageError("a context needs --from, or --to, or both")
    if use or len(known.contexts) == 1:
        known.current = name
    contexts.write(known)
    if known.current == name:
        click.echo(displayable(f"{name} is in use"))


@command.command("use")
@click.argument("name", required=False)
@click.option("--none", is_flag=True, help="Use none: addresses are those of this machine.")
def use(name: str | None, none: bool) -> None:
    """Use the context NAME from now on.

    \b
    Example:
      $ tcprepl context use main
      main is in use
    """
    if (name is None) is not none:
        raise click.UsageError("expected NAME, or --none")
    known = contexts.read()
    if name is not None:
        known.get(name)
    known.current = name
    contexts.write(known)
    click.echo("none is in use" if name is None else displayable(f"{name} is in use"))


@command.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")
def ls(as_json: bool) -> None:
    """List the contexts; the one in use has a star.

    \b
    Example:
      $ tcprepl context ls
      * main  from tls:repl.example.com:9092  to https://repl.example.com
        here  from 127.0.0.1:9092  to http://127.0.0.1:9093
    """
    known = contexts.read()
    width = max(map(len, known.contexts), default=0)
    for name, context in known.contexts.items():
        current = name == known.current
        if as_json:
            said = {"name": name, "current": current, **msgspec.to_builtins(context)}
            click.echo(json.dumps(said))
        else:
            line = f"{'*' if current else ' '} {name:{width}}  {context.words()}"
            click.echo(displayable(line.rstrip()))


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Forget the context NAME.

    \b
    Example:
      $ tcprepl context rm here
    """
    known = contexts.read()
    known.get(name)
    del known.contexts[name]
    if known.current == name:
        known.current = None
    contexts.write(known)
