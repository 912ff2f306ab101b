"""``tcprepl tail``."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tcprepl.cli import run, tail
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
        ["--count", "0"],
    ],
)
def test_what_makes_no_sense(args: list[str]) -> None:
    """Exit code 2, before anything is connected."""
    assert run(["tail", *args]) == 2


def test_since_takes_what_it_gave() -> None:
    """A default that is parsed already is left alone."""
    assert tail.SINCE.convert(5, None, None) == 5
