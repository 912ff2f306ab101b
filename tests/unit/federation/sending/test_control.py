"""The operator's handles, through a real socket and without a sender."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.testing import StringTransport

from tcprepl.federation.sending import control
from tcprepl.federation.sending.control import ControlError, Handles, ask, ask_offline, socket_name
from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_world import RawRows, World

NAME = "remote1.example"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with structlog.testing.capture_logs():
        made = World(tmp_path / "outbox.sqlite", 1)
        made.remote(NAME).mode = "dead"
        row = edu_row(build_edu("here.example", NAME, "m.test", {"n": 1}))
        made.rows.append((1, row))
        made.sender.intake.handle_rows("federation", "master", 1, RawRows(row))
        made.run(10)
        yield made
        made.kill()


def say(world: World, line: bytes, forget: Any = None) -> Any:
    """Send one line to the control socket and return its answer."""
    connection = control._Connection(Handles(world.sender, forget))
    transport = StringTransport()
    connection.makeConnection(transport)
    connection.dataReceived(line + b"\n")
    world.run(1)
    return json.loads(transport.value())


def do(world: World, operation: str, destination: str | None = NAME, forget: Any = None) -> Any:
    request = json.dumps({"op": operation, "destination": destination}).encode()
    return say(world, request, forget)


def test_each_handle(world: World) -> None:
    assert do(world, "ls", None)["ok"][0]["destination"] == NAME
    assert do(world, "show")["ok"]["failures"] > 0
    assert do(world, "pause")["ok"]["paused"]
    assert do(world, "resume")["ok"]["paused"] is False
    assert do(world, "retry")["ok"]["taken_up_again"] == 0
    assert do(world, "retry-quarantined")["ok"]["taken_up_again"] == 0
    assert do(world, "drop")["ok"]["dropped"] == 0
    assert do(world, "forget-discovery", forget=lambda name: name == NAME)["ok"]["forgotten"]
    assert do(world, "forget-discovery")["ok"]["forgotten"] is False
    assert do(world, "purge")["ok"]["purged"] == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"op":"nonsense","destination":"y"}',
        b'{"op":"show"}',
        b'{"op":"show","destination":"not a name"}',
    ],
)
def test_what_is_no_request_is_answered_with_an_error(world: World, line: bytes) -> None:
    assert say(world, line)["error"]


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(tmp_path, "ls")


def test_a_short_path_is_its_own_name_and_a_long_one_is_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp/control.sock")
    with socket_name(short) as name:
        assert name == str(short)
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    with socket_name(deep / "control.sock") as name:
        assert name == "control.sock"


def test_a_path_that_is_too_long_is_named_through_its_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    open_before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with socket_name(deep / "control.sock") as name, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
            listener.listen()
            with socket_name(deep / "control.sock") as seen, socket.socket(socket.AF_UNIX) as peer:
                peer.connect(seen)
        (deep / "control.sock").unlink()
    assert os.listdir("/proc/self/fd") == open_before


def test_a_name_that_no_system_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ControlError, match="too long"), socket_name(tmp_path / ("f" * 101)):
        raise AssertionError
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(control, "_DESCRIPTORS", str(tmp_path / "absent"))
    with pytest.raises(ControlError, match="too long"), socket_name(deep / "control.sock"):
        raise AssertionError


def test_nobody_there_at_the_end_of_a_long_path(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(tmp_path / ("d" * 60) / ("e" * 60), "ls")


def test_without_a_reactor_an_answer_is_there_at_once() -> None:
    class Inline:
        async def do(self, operation: str, destination: str | None) -> str:
            if operation == "bad":
                raise ControlError("no")
            return f"{operation} {destination}"

    handles: Any = Inline()
    assert ask_offline(handles, "show", "y") == "show y"
    with pytest.raises(ControlError):
        ask_offline(handles, "bad")
