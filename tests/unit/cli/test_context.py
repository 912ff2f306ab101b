"""``tcprepl context``: names that are kept, and what they do to other commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from unittest import mock

import click
import pytest

from tcprepl.cli import arguments, contexts, run, tail, writing
from tcprepl.cli.api import Api, ApiFailed
from tcprepl.cli.contexts import Context, Contexts
from tests.cli_world import CliWorld
from tests.pages import section


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for configurations, and nothing in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("CONTEXT", "FROM", "TO", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"TCPREPL_{name}", raising=False)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Run a command and return what it prints."""
    assert run(["context", *args]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def test_add_use_ls_rm(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "token").write_text("secret", encoding="utf-8")
    first = (
        "add",
        "main",
        "--from",
        "tls:repl.example.com:9092",
        "--to",
        "https://repl.example.com/",
    )
    assert printed(capsys, *first, "--token-file", str(home / "token")) == "main is in use\n"
    assert printed(capsys, "add", "here", "--from", "a:1", "--from", "b:2") == ""
    assert printed(capsys, "ls").splitlines() == [
        "* main  from tls:repl.example.com:9092  to https://repl.example.com  "
        f"token_file {home}/token",
        "  here  from a:1, b:2",
    ]
    assert printed(capsys, "use", "here") == "here is in use\n"
    assert json.loads(printed(capsys, "ls", "--json").splitlines()[1]) == {
        "name": "here",
        "current": True,
        "from": ["a:1", "b:2"],
    }
    printed(capsys, "add", "here", "--to", "tcprepl://b:3", "--server-name", "x", "--ca", __file__)
    assert contexts.read().contexts["here"].url == "tcprepl://b:3"
    assert contexts.read().contexts["here"].source == ["a:1", "b:2"]
    assert printed(capsys, "add", "other", "--to", "h:1", "--use") == "other is in use\n"
    assert printed(capsys, "use", "--none") == "none is in use\n"
    printed(capsys, "use", "other")
    printed(capsys, "rm", "other")
    printed(capsys, "rm", "here")
    assert contexts.read().current is None
    assert "secret" not in contexts.path().read_text(encoding="utf-8")


def test_paths_are_kept_absolute(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the directory that the command is typed in, also those within an address."""
    for name in ("token", "ca.pem"):
        (home / name).write_text("secret", encoding="utf-8")
    monkeypatch.chdir(home)
    files = ("--token-file", "token", "--ca", "ca.pem")
    address = "tls:h:1:certificate=c.pem:privateKey=k.pem"
    printed(capsys, "add", "x", "--from", address, "--to", "tcprepl://unix:run/s", *files)
    monkeypatch.chdir("/")
    found = contexts.read().contexts["x"]
    assert found.source == [f"tls:h:1:certificate={home}/c.pem:privateKey={home}/k.pem"]
    assert found.url == f"tcprepl://unix:{home}/run/s"
    assert (found.token_file, found.ca) == (f"{home}/token", f"{home}/ca.pem")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["add", "x"], "a context needs --from, or --to"),
        (["add", "x", "--from", "nowhere"], "expected HOST:PORT"),
        (["add", "x", "--from", "a:1", "--token-file", "/nowhere"], "does not exist"),
        (["add", "", "--to", "h:1"], "NAME is ''"),
        (["add", "a b", "--to", "h:1"], "NAME is 'a b'"),
        (["add", "a\u202eb", "--to", "h:1"], r"NAME is 'a\u202eb'"),
        (["use", "x"], "no context 'x'"),
        (["use"], "expected NAME, or --none"),
        (["use", "x", "--none"], "expected NAME, or --none"),
        (["rm", "x"], "no context 'x'"),
    ],
)
def test_what_is_wrong(capsys: pytest.CaptureFixture[str], args: list[str], why: str) -> None:
    assert why in printed(capsys, *args, code=2)
    assert not contexts.path().exists()


def test_an_empty_token_file_is_refused_at_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "token").touch()
    args = ["add", "x", "--to", "h:1", "--token-file", str(home / "token")]
    assert "is empty" in printed(capsys, *args, code=2)


class Asked:
    """Notes where a command asks, and with which token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.urls: list[str] = []
        self.tokens: list[str | None] = []

        def get(api: Api, _: str) -> object:
            self.urls.append(api.url)
            said = api._headers.get("Authorization")
            self.tokens.append(said and said.decode().removeprefix("Bearer "))
            raise ApiFailed(f"{api.url} does not answer")

        monkeypatch.setattr(Api, "get", get)


def test_the_option_then_the_environment_then_the_context(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its token goes to its own address, nowhere else."""
    asked = Asked(monkeypatch)
    (home / "token").write_text("secret", encoding="utf-8")
    run(["top", "--once"])
    run(["context", "add", "main", "--to", "http://m", "--token-file", str(home / "token")])
    run(["context", "add", "other", "--to", "http://o"])
    capsys.readouterr()
    assert run(["top", "--once"]) == 1
    told = capsys.readouterr().err
    assert told == "tcprepl: http://m does not answer\n  the address is that of the context main\n"
    run(["--context", "other", "top", "--once"])
    run(["top", "--once", "--token", "mine"])
    monkeypatch.setenv("TCPREPL_TO", "http://env")
    run(["top", "--once"])
    run(["top", "--once", "--to", "http://opt"])
    assert asked.urls == [
        "http://127.0.0.1:9093",
        "http://m",
        "http://o",
        "http://m",
        "http://env",
        "http://opt",
    ]
    assert asked.tokens == [None, "secret", None, "mine", None, None]
    monkeypatch.delenv("TCPREPL_TO")
    monkeypatch.setenv("TCPREPL_CONTEXT", "mian")
    capsys.readouterr()
    assert run(["top", "--once"]) == 2
    assert "did you mean main" in capsys.readouterr().err
    assert run(["top", "--once", "--to", "http://opt"]) == 1


def test_what_a_context_trusts_is_told_where_a_certificate_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "ca.pem").touch()
    run(["context", "add", "main", "--to", "http://m", "--ca", str(home / "ca.pem")])
    for reason in ("does not answer", "its certificate is not trusted"):
        monkeypatch.setattr(Api, "get", mock.Mock(side_effect=ApiFailed(reason)))
        capsys.readouterr()
        assert run(["top", "--once"]) == 1
        where = "  the address is that of the context main"
        if "certificate" in reason:
            where += f", which trusts the authorities in {home}/ca.pem: "
            where += "tcprepl context add main --ca FILE names another file"
        assert capsys.readouterr().err == f"tcprepl: {reason}\n{where}\n"


def test_the_authorities_of_a_context_go_with_its_addresses(home: Path) -> None:
    """Not into the environment, where what else speaks TLS in the process would find them."""
    main = Context(["tls:a:1", "b:2"], "tcprepl://tls:a:1", ca="/ca.pem")
    contexts.write(Contexts("main", {"main": main}))
    assert arguments.address_of(main).ca == Path("/ca.pem")
    assert arguments.address_of(Context(["a:1"])).ca is None
    with click.Context(click.Command("x")):
        param = click.Option(["--to"], type=arguments.RowsToType())
        assert arguments._context_url(None, param, None).ca == Path("/ca.pem")
        assert contexts.authorities() == "/ca.pem"


def test_the_example_of_the_documentation(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, in a home of its own."""
    monkeypatch.chdir(home)
    (home / "worker1-token").write_text("secret", encoding="utf-8")
    (example,) = re.findall(
        r"^```console\n(.*?)^```$", section("commands", "tcprepl context"), re.M | re.S
    )
    shown = ""
    for line in example.splitlines():
        if line.startswith("$ tcprepl "):
            assert run(shlex.split(line)[2:]) == 0
            shown += f"{line}\n{capsys.readouterr().out}"
    assert shown == example.replace("/home/ann", str(home))


def test_another_homeserver_than_the_one_of_the_context_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is it read from, nor published to."""
    world = CliWorld(monkeypatch)
    for module in (tail, writing):
        world.adopt(module)
    monkeypatch.setattr(
        writing, "client_endpoint", lambda reactor, address: world.network.client_endpoint("y")
    )
    world.server.door.publisher = world.publisher
    run(["context", "add", "main", "--from", "a:1", "--to", "tcprepl://a:1"])
    world.publish("device_lists", ["@a:x"])
    assert run(["tail", "--since", "start", "--until-head"]) == 0
    run(["context", "add", "main", "--server-name", "other.example"])
    capsys.readouterr()
    for command in (["publish", "device_lists", '["@b:x"]'], ["tail", "--for", "5"]):
        assert run(command) == 1
        told = capsys.readouterr().err
        assert "other.example" in told
        assert "the address is that of the context main" in told
    assert world.log.position("device_lists", "master") == 1
