"""The group of commands: lazy, helpful, and exact in its exit codes."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType
from typing import NoReturn

import click
import pytest

from tcprepl import cli
from tcprepl.errors import ConfigError, TcpreplError
from tests.harness import environment


def planted(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the command ``check-config`` raise *error*."""

    @click.command()
    def failing() -> NoReturn:
        raise error

    monkeypatch.setattr("tcprepl.cli.check_config.command", failing)


def test_help_lists_every_command_and_imports_none() -> None:
    """The list comes from the table: a broken command does not break help."""
    code = (
        "import sys; from tcprepl.cli import run; code = run(['--help']);"
        "print(*[m for m in sys.modules if m.startswith(('twisted', 'tcprepl.cli.'))]);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    *help_text, modules = done.stdout.splitlines()
    assert modules == "tcprepl.cli.contexts"
    for name, (_, summary) in cli.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in help_text), name


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command explains itself and shows itself in use."""
    assert cli.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: tcprepl {name}" in text
    assert "Example:" in text or "Commands:" in text


@pytest.mark.parametrize(
    ("names", "without"),
    [
        ("publish replay kick drain top check context", {"twisted", "pydantic", "structlog"}),
        ("tail watch positions record", {"pydantic"}),
    ],
)
def test_what_only_talks_to_a_server_is_quick_to_start(names: str, without: set[str]) -> None:
    """It needs no settings, and over HTTP no Twisted: that was a second of each call."""
    code = (
        "import sys; from tcprepl.cli import run;"
        f"assert not any([run([name, '--help']) for name in {names.split()}]);"
        f"sys.exit(' '.join({without} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr.strip() == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` says the package's."""
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tcprepl ")


@pytest.mark.parametrize(
    "args",
    [["frobnicate"], ["serve", "--dialect", "9"], ["publish"], ["tail", "--from", "x"]],
)
def test_wrong_command_line_exits_with_2(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage errors go to stderr, with what was wrong."""
    assert cli.run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error: " in captured.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("bad key"), 2, "tcprepl: bad key\n"),
        (TcpreplError("no such stream"), 1, "tcprepl: no such stream\n"),
        (PermissionError(13, "Permission denied"), 1, "tcprepl: [Errno 13] Permission denied\n"),
        (click.ClickException("no"), 1, "Error: no\n"),
        (KeyboardInterrupt(), 1, "\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user's mistake never shows a traceback."""
    planted(monkeypatch, error)
    assert cli.run(["check-config"]) == code
    assert capsys.readouterr().err == text


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is our own mistake is not dressed up."""
    planted(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.run(["check-config"])


def test_main_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script hands the code to the shell, and leaves Python nothing to look through."""
    monkeypatch.setattr(sys, "argv", ["tcprepl", "frobnicate"])
    frozen: list[object] = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert frozen == [True]


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_as_before_an_import(
    collecting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not while a command is imported, also where that fails."""
    seen = []

    def imported(name: str) -> ModuleType:
        seen.append(gc.isenabled())
        if name == "tcprepl.cli.typing":
            raise ImportError
        return ModuleType(name)

    monkeypatch.setattr("importlib.import_module", imported)
    was = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        for name, failure in (("serve", AttributeError), ("typing", ImportError)):
            with pytest.raises(failure):
                cli.cli.get_command(click.Context(cli.cli), name)
            assert gc.isenabled() is collecting
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == [False, False]


@pytest.mark.parametrize("error", [BrokenPipeError(), None])
def test_a_pipe_closed_in_a_command_or_at_the_end(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever read our rows has had enough: stdout leads nowhere from then on."""
    redirected: list[object] = []
    monkeypatch.setattr("os.dup2", lambda *_: redirected.append(True))
    if error is not None:
        planted(monkeypatch, error)
    else:

        @click.command()
        def fine() -> None:
            pass

        monkeypatch.setattr("tcprepl.cli.check_config.command", fine)
        monkeypatch.setattr("sys.stdout", Closed())
    assert cli.run(["check-config"]) == 0
    assert redirected == [True]


class Closed:
    """A stdout that cannot be flushed."""

    def flush(self) -> None:
        """Fail."""
        raise BrokenPipeError

    def fileno(self) -> int:
        """Be stdout."""
        return 1


def test_completing_lists_the_commands() -> None:
    """The group knows its names without importing them."""
    group = cli.cli
    assert group.list_commands(click.Context(group)) == list(cli.COMMANDS)


def test_a_closed_pipe_is_no_failure() -> None:
    """``tcprepl ... | head`` ends quietly."""
    code = (
        "import click, sys, tcprepl.cli.check_config as m; from tcprepl.cli import main\n"
        "@click.command()\n"
        "def command():\n"
        "    while True: print('x' * 1000)\n"
        "m.command = command\n"
        "sys.argv = ['tcprepl', 'check-config']; main()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    assert writer.stdout.readline().startswith(b"x")
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(30) == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["tial"], "no such command 'tial'; did you mean tail?"),
        (["fed", "shwo", "x"], "no such command 'shwo'; did you mean show?"),
        (["watch", "tping"], "did you mean typing?"),
        (["check", "xyz"], "no such command 'xyz'\n"),
        (["--hepl"], "No such option"),
    ],
)
def test_the_nearest_command_is_named(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(args) == 2
    assert told in capsys.readouterr().err
