"""What a person types: arguments, printing, exit codes.

The only room that imports the global reactor. Rows and answers go to stdout, logs and
complaints to stderr; the exit code is 0 for done, 1 for failed and 2 for a wrong command line
or configuration. A user's mistake never shows a traceback. Each command lives in its own
module, which is imported when the command is used.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import NoReturn

import click

import tcprepl
from tcprepl.cli import contexts
from tcprepl.errors import ConfigError, TcpreplError, did_you_mean
from tcprepl.protocol.display import displayable

#: Command -> (module that has it as ``command``, what the list of commands says about it).
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("tcprepl.cli.serve", "Run a server: streams over TCP, and the HTTP API."),
    "relay": ("tcprepl.cli.relay", "Follow an upstream, and serve its streams to many."),
    "bus": ("tcprepl.cli.bus", "Be the Redis of a Synapse, and keep its streams."),
    "publish": ("tcprepl.cli.publish", "Append rows to a stream."),
    "tail": ("tcprepl.cli.tail", "Follow streams and print their rows."),
    "positions": ("tcprepl.cli.positions", "Print where every stream is."),
    "poll": ("tcprepl.cli.poll", "Follow streams over HTTP, by long poll."),
    "record": ("tcprepl.cli.record", "Write what a server sends into a file."),
    "replay": ("tcprepl.cli.replay", "Publish the rows of a recording again."),
    "typing": ("tcprepl.cli.typing", "Say that a user types, or has stopped."),
    "presence": ("tcprepl.cli.presence", "Say that a user is there, or is not."),
    "watch": ("tcprepl.cli.watch", "Follow who types or who is online."),
    "top": ("tcprepl.cli.top", "Show who reads, and how far behind."),
    "bench": ("tcprepl.cli.bench", "Measure a running server."),
    "check": ("tcprepl.cli.check", "Look once, for a monitoring system."),
    "check-config": ("tcprepl.cli.check_config", "Check a configuration file."),
    "doctor": ("tcprepl.cli.doctor", "Say what is wrong on this machine, and what to do."),
    "federation-sender": (
        "tcprepl.cli.federation_sender",
        "Send EDUs to other servers.",
    ),
    "fed": ("tcprepl.cli.fed", "Show and handle what waits for other servers."),
    "log": ("tcprepl.cli.log", "Look into a data directory, and check that it is whole."),
    "reload": ("tcprepl.cli.reload", "Let a running process take up its configuration."),
    "context": ("tcprepl.cli.context", "Name servers, so that nobody types addresses."),
    "kick": ("tcprepl.cli.kick", "End the connections of a peer, and tell it why."),
    "drain": ("tcprepl.cli.drain", "Let everybody go who has everything, and end a server."),
    "conformance": ("tcprepl.cli.conformance", "Play protocol.md against your own program."),
    "backup": ("tcprepl.cli.backup", "Copy a data directory while it is in use."),
    "restore": ("tcprepl.cli.restore", "Make a data directory of such a copy."),
    "migrate": ("tcprepl.cli.migrate", "Copy a data directory to PostgreSQL, or back."),
    "files": ("tcprepl.cli.files", "Print units, dashboards, alerts, manual pages."),
    "help": ("tcprepl.cli.help", "Print a page of the documentation."),
    "completion": ("tcprepl.cli.completion", "Print a shell's completion script."),
}


#: Those that SIGHUP reloads. What is read after it came needs no reloading: until they are ready
#: to hear it, it is ignored.
RELOADED = frozenset({"serve", "relay", "bus", "federation-sender"})


class _ReaderGoneError(Exception):
    """Whoever read our rows has had enough."""


class Group(click.Group):
    """A group that knows the nearest name when a command is misspelt."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that *args* begin with."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-"):
                raise
            near = did_you_mean(args[0], self.list_commands(ctx), shown=0)
            raise click.UsageError(f"no such command {args[0]!r}{near}", ctx) from error


class LazyGroup(Group):
    """The group of all commands; a module is imported when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        command = _imported(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; click would make a failure of a closed pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGoneError from None
        except TcpreplError as error:
            name = contexts.in_use(ctx)
            if name is not None:
                note = f"the address is that of the context {name}"
                ca = contexts.authorities(ctx)
                if ca is not None and "certificate" in str(error):
                    remedy = f"tcprepl context add {name} --ca FILE names another file"
                    note += f", which trusts the authorities in {ca}: {remedy}"
                error.add_note(note)
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say which context is in use."""
        with suppress(TcpreplError):
            found = contexts.chosen()
            if found is not None:
                formatter.write_paragraph()
                formatter.write_text(f"Addresses are those of the context {found[0]}.")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    contexts.OPTION,
    envvar=contexts.VARIABLE,
    show_envvar=True,
    metavar="NAME",
    is_eager=True,
    expose_value=False,
    callback=contexts.ask_for,
    help="Talk to the server of this context (see tcprepl context).",
)
@click.version_option(tcprepl.__version__, message="tcprepl %(version)s")
def cli() -> None:
    """Replicate the streams of a Matrix-style homeserver.

    \b
    Example:
      tcprepl serve &
      tcprepl tail --since start &
      tcprepl publish typing '["!room:example.com", ["@alice:example.com"]]'
    """


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        code = cli.main(
            args=None if args is None else list(args), prog_name="tcprepl", standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ConfigError as error:
        return _complain(error, 2)
    except (_ReaderGoneError, BrokenPipeError):
        # That is how `tcprepl tail | head` ends. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TcpreplError, OSError) as error:
        return _complain(error, 1)
    except (click.Abort, KeyboardInterrupt):
        return 1
    return code if isinstance(code, int) else 0


def _complain(error: Exception, code: int) -> int:
    text = "\n  ".join([str(error), *getattr(error, "__notes__", ())])
    click.echo(f"tcprepl: {displayable(text, lines=True)}", err=True)
    return code


def _imported(module: str) -> ModuleType:
    """Import a module: of what that makes there is no garbage that would be worth looking for."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if collecting:
            gc.enable()


def open_standard_streams() -> None:
    """Let streams that whoever started us has closed lead nowhere.

    Otherwise the next file that is opened gets the number of one, and what is meant for a screen
    goes into a database.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def main() -> NoReturn:
    """Run the command line of this process."""
    open_standard_streams()
    if RELOADED.intersection(sys.argv[1:2]):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code = run()
    # Python would look through everything more than once before it ends: a sixth of a short run.
    gc.freeze()
    sys.exit(code)
