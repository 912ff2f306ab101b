"""The pages that are printed, and the help of commands."""

from __future__ import annotations

import click
import pytest

from tcprepl.cli import COMMANDS, cli, run
from tcprepl.cli.help import SUMMARIES, command, page


def test_pages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with what it is about, within 80 columns."""
    assert run(["help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SUMMARIES)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", list(SUMMARIES))
def test_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed as it is, with a title."""
    assert run(["help", name]) == 0
    text = capsys.readouterr().out
    assert text == page(name)
    assert text.startswith("# ")


@pytest.mark.parametrize("words", [["tail"], ["fed", "retry"], ["log", "show"]])
def test_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What its --help says."""
    assert run([*words, "--help"]) == 0
    wanted = capsys.readouterr().out
    assert run(["help", *words]) == 0
    assert capsys.readouterr().out == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tutoral"], "no such page or command 'tutoral'; did you mean tutorial?"),
        (["quite-other"], "no such page or command 'quite-other'; there are tutorial, "),
        (["fed", "retri"], "no such command 'fed retri'; did you mean retry?"),
        (["tail", "more"], "no such command 'tail more'"),
    ],
)
def test_unknown(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_person_gets_a_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, text is shown a screen at a time."""
    shown: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("click.echo_via_pager", shown.append)
    assert run(["help", "why"]) == 0
    assert shown == [page("why")]


def test_words_of_a_shell() -> None:
    """Pages and commands complete; what is both is offered once."""
    ctx = click.Context(command, parent=click.Context(cli, info_name="tcprepl"), info_name="help")
    items = [item.value for item in command.params[0].shell_complete(ctx, "ba")]
    assert items == ["backup"]
    everything = {item.value for item in command.params[0].shell_complete(ctx, "")}
    assert everything == set(SUMMARIES) | set(COMMANDS)
