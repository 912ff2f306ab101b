"""The file of contexts, and which of them holds."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from tcprepl.cli import contexts, run
from tcprepl.cli.contexts import Context, Contexts
from tcprepl.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for configurations."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("TCPREPL_CONTEXT", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    return tmp_path


def test_where_they_are(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert contexts.path() == home / "tcprepl" / "contexts.yaml"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        monkeypatch.setenv("HOME", "/home/me")
        assert contexts.path() == Path("/home/me/.config/tcprepl/contexts.yaml")


def test_what_is_written_is_read_and_its_owners_alone(home: Path) -> None:
    assert contexts.read() == Contexts()
    known = Contexts("main", {"main": Context(["a:1", "b:2"], server_name="example.com")})
    contexts.write(known)
    assert contexts.read() == known
    assert contexts.path().stat().st_mode & 0o777 == 0o600
    assert contexts.path().parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in contexts.path().parent.iterdir()] == ["contexts.yaml"]
    assert known.contexts["main"].words() == "from a:1, b:2  server_name example.com"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("contexts: {main: {form: x}}", "unknown field `form`"),
        ("contexts: [", "while parsing"),
        ("7", "Expected `object`"),
    ],
)
def test_a_file_that_is_none(home: Path, text: str, why: str) -> None:
    contexts.write(Contexts())
    contexts.path().write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"contexts.yaml: .*{why}"):
        contexts.read()


def test_a_file_that_others_can_change_or_nobody_can_read(home: Path) -> None:
    contexts.write(Contexts())
    contexts.path().chmod(0o660)
    with pytest.raises(ConfigError, match=r"others can change it.*chmod 600"):
        contexts.read()
    contexts.path().unlink()
    contexts.path().mkdir()
    with pytest.raises(ConfigError, match=r"contexts\.yaml: Is a directory"):
        contexts.read()


def command() -> click.Context:
    """Return what a command runs in."""
    return click.Context(click.Command("x"))


def test_which_one_holds(home: Path) -> None:
    here, main = Context(["a:1"]), Context(url="http://h")
    contexts.write(Contexts("here", {"here": here, "main": main}))
    with command() as ctx:
        assert contexts.chosen() == ("here", here)
        assert contexts.ask_for(ctx, None, "main") == "main"  # type: ignore[arg-type]
        assert contexts.chosen() == ("main", main)
        with pytest.raises(ConfigError, match=r"main does not say where.*add main --from"):
            contexts.use("from")
        assert contexts.in_use() is None
        assert contexts.use("to") == main
        assert contexts.in_use() == contexts.in_use(ctx) == "main"
        assert contexts.token() is None
        contexts.ask_for(ctx, None, "mian")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no context 'mian'; did you mean main"):
            contexts.chosen()
    assert contexts.in_use() is None


def test_without_any(home: Path) -> None:
    with command():
        assert contexts.chosen() is None
        assert contexts.use("from") is None


def test_its_token_and_authorities_are_used(home: Path) -> None:
    (home / "token").write_text("secret\n", encoding="utf-8")
    made = Context(["a:1"], token_file=str(home / "token"), ca="/ca.pem")
    contexts.write(Contexts("main", {"main": made}))
    with command():
        contexts.use("from")
        reader = contexts.token()
        assert reader is not None
        assert reader() == "secret"
        assert contexts.authorities() == "/ca.pem"
    assert contexts.authorities() is None
    assert "SSL_CERT_FILE" not in os.environ


RELATIVE = r"""
current: main
contexts:
  main:
    from:
    - tls:h:1:trustRoots=trusted:certificate=c\:1.pem:privateKey=/k.pem:timeout=3
    - ssl:h:1:certKey=c.pem:caCertsDir=trusted
    - unix:run/socket:timeout=3
    - h:1
    to: tcprepl://unix:path=run/socket
    token_file: token
    ca: ../ca.pem
  other:
    from: [unix:/run/socket]
    to: https://h/base
    token_file: /token
"""


def test_relative_paths_are_those_of_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working directory is."""
    there = home / "tcprepl"
    contexts.write(Contexts())
    contexts.path().write_text(RELATIVE, encoding="utf-8")
    (there / "token").write_text("secret", encoding="utf-8")
    monkeypatch.chdir("/")
    known = contexts.read()
    main, other = known.contexts["main"], known.contexts["other"]
    assert main.source == [
        rf"tls:h:1:trustRoots={there}/trusted:certificate={there}/c\:1.pem:privateKey=/k.pem:timeout=3",
        f"ssl:h:1:certKey={there}/c.pem:caCertsDir={there}/trusted",
        f"unix:{there}/run/socket:timeout=3",
        "h:1",
    ]
    assert main.url == f"tcprepl://unix:path={there}/run/socket"
    assert (main.token_file, main.ca) == (f"{there}/token", f"{there}/../ca.pem")
    reader = main.reader()
    assert reader is not None
    assert reader() == "secret"
    assert other == Context(["unix:/run/socket"], "https://h/base", "/token")


def test_a_directory_may_have_a_colon_in_its_name() -> None:
    absolute = contexts.absolute_address("unix:socket", Path("/a:b\\c"))
    assert absolute == r"unix:/a\:b\\c/socket"


def test_help_says_which_one_is_used(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "Addresses are those" not in capsys.readouterr().out
    contexts.write(Contexts("main", {"main": Context(["a:1"])}))
    assert run(["--help"]) == 0
    assert "Addresses are those of the context main." in capsys.readouterr().out
    contexts.path().write_text("[", encoding="utf-8")
    assert run(["--help"]) == 0
