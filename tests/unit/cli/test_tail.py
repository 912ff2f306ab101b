"""``tcprepl tail``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tcprepl.addresses import Address
from tcprepl.cli import contexts, following, run, tail
from tests.cli_world import CliWorld

#: Returns the lines printed.
Out = Callable[[], list[str]]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Out:
    """A server with rows, and what the command prints."""
    world = CliWorld(monkeypatch)
    world.adopt(tail)
    world.publish("device_lists", ["@1:a"], ["@2:a"], ["@3:a"])

    def lines() -> list[str]:
        return capfd.readouterr().out.splitlines()

    return lines


def test_lines(out: Out) -> None:
    """From the start to the head, as lines of the wire."""
    assert run(["tail", "--since", "start", "--until-head"]) == 0
    assert out() == [f'RDATA device_lists master {n} ["@{n}:a"]' for n in (1, 2, 3)]


def test_objects_after_a_token(out: Out) -> None:
    """After a token of an instance, as objects, so many and no more."""
    args = [
        "tail",
        "device_lists",
        "--since",
        "1",
        "--instance",
        "master",
        "--json",
        "--count",
        "1",
    ]
    assert run(args) == 0
    assert [json.loads(line)["row"] for line in out()] == [["@2:a"]]


@pytest.mark.parametrize(
    "args",
    [
        ["--since", "1"],
        ["--since", "yesterday"],
        ["--since", "9223372036854775808", "typing"],
        ["--json", "--commands"],
        ["--format", "%s", "--commands"],
        ["--format", "%s", "--json"],
        ["--format", "%o"],
        ["--count", "0"],
    ],
)
def test_what_makes_no_sense(args: list[str]) -> None:
    """Exit code 2, before anything is connected."""
    assert run(["tail", *args]) == 2


def test_since_takes_what_it_gave() -> None:
    """A default that is parsed already is left alone."""
    assert tail.SINCE.convert(5, None, None) == 5


def test_in_a_form(out: Out) -> None:
    """Letter by letter."""
    form = "%s/%p %t %k"
    assert run(["tail", "--since", "start", "--until-head", "--format", form]) == 0
    assert out() == [f"device_lists/master {n} @{n}:a" for n in (1, 2, 3)]


def test_a_name_is_looked_up_for_each_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The context names another server after a while, with another token."""
    world = CliWorld(monkeypatch)
    world.adopt(tail)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    went: list[tuple[str, str]] = []

    def endpoint(_: object, address: Address) -> object:
        went.append((str(address), "" if address.token is None else address.token()))
        return world.network.client_endpoint("x")

    monkeypatch.setattr(following, "client_endpoint", endpoint)

    def move(text: str, token: str) -> None:
        (tmp_path / "token").write_text(token, encoding="utf-8")
        made = contexts.Context([text], token_file=str(tmp_path / "token"))
        contexts.write(contexts.Contexts("main", {"main": made}))
        for wire in world.network.wires.values():
            wire.cut()

    def spoil() -> None:
        contexts.write(contexts.Contexts("main", {"main": contexts.Context(url="http://h")}))
        world.network.wires["x"].cut()

    move("a:1", "one")
    world.later(10, lambda: move("b:2", "two"))
    world.later(20, spoil)
    world.later(30, lambda: world.publish("typing", ["!r:x", []]))
    assert run(["tail", "--follow-name", "--count", "1"]) == 0
    assert list(dict.fromkeys(went)) == [("a:1", "one"), ("b:2", "two")]
    told = capfd.readouterr()
    assert "RDATA typing master 1" in told.out
    assert run(["tail", "--follow-name", "--for", "1", "--from", "c:3"]) == 0
    assert went[-1][0] == "c:3"
