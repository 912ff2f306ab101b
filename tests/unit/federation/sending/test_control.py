"""The operator's handles, through a real socket and without a sender."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest import mock

import pytest
import structlog
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from tcprepl.federation.sending import control
from tcprepl.federation.sending.control import (
    OPERATIONS,
    ControlError,
    Handles,
    StandingBy,
    answers,
    ask,
    ask_offline,
    socket_name,
)
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
    assert do(world, "show")["ok"]["state"] == "paused"
    assert do(world, "resume")["ok"]["paused"] is False
    assert do(world, "show")["ok"]["state"] == "waiting"
    assert do(world, "retry")["ok"]["taken_up_again"] == 0
    assert do(world, "retry-quarantined")["ok"]["taken_up_again"] == 0
    assert do(world, "drop")["ok"]["dropped"] == 0
    assert do(world, "forget-discovery", forget=lambda name: name == NAME)["ok"]["forgotten"]
    assert do(world, "forget-discovery")["ok"]["forgotten"] is False
    assert do(world, "purge")["ok"]["purged"] == 1
    assert "nothing waits" in do(world, "retry")["error"]


def test_only_who_asks_for_it_tries_what_is_in_quarantine(world: World) -> None:
    remote = world.remote(NAME)
    remote.mode, remote.poison = "ok", {1}
    assert do(world, "retry")["ok"]["taken_up_again"] == 0
    world.run(5)
    assert do(world, "show")["ok"]["quarantined_edus"] == 1
    assert do(world, "retry")["ok"]["taken_up_again"] == 0
    remote.poison = set()
    assert do(world, "retry-quarantined")["ok"]["taken_up_again"] == 1
    world.run(5)
    assert len(remote.deliveries) == 1


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
    for length in (99, 100):
        with socket_name(exact := Path("/" + "c" * (length - 1))) as name:
            assert name == str(exact)
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


def test_the_file_in_such_a_directory_may_have_a_long_name_as_well(tmp_path: Path) -> None:
    """Up to what fits behind the number of the descriptor."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with socket_name(deep / "f") as name:
        room = control._MAX_PATH_BYTES - len(name) + 1
    with socket_name(deep / ("f" * room)) as name:
        assert len(name) == control._MAX_PATH_BYTES
    with pytest.raises(ControlError, match="too long"), socket_name(deep / ("f" * (room + 1))):
        raise AssertionError


class FakeReactor:
    """Takes one listener."""

    def __init__(self, stopped: Deferred[None] | None = None) -> None:
        self.listening: list[tuple[str, Any, int]] = []
        self.stopped = stopped

    def listenUNIX(self, name: str, factory: Any, *, mode: int) -> Any:
        """Note what is listened for."""
        self.listening.append((name, factory, mode))
        return mock.Mock(stopListening=lambda: self.stopped)


@pytest.mark.parametrize("waits", [True, False])
def test_only_we_may_connect_and_the_name_is_kept_until_the_end(
    tmp_path: Path, waits: bool
) -> None:
    """Of an unlinked socket, if an earlier process left one."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    (deep / control.SOCKET_FILE).write_text("left over")
    open_before = os.listdir("/proc/self/fd")
    reactor: Any = FakeReactor(Deferred() if waits else None)
    made = control.ControlSocket(reactor, deep, Handles(mock.Mock()))
    assert not (deep / control.SOCKET_FILE).exists()
    ((name, factory, mode),) = reactor.listening
    assert mode == 0o600
    assert os.path.realpath(os.path.dirname(name)) == str(deep)
    assert isinstance(factory.buildProtocol(None), control._Connection)
    closed = Deferred.fromCoroutine(made.close())
    if waits:
        assert os.path.isdir(os.path.dirname(name))
        assert not closed.called
        reactor.stopped.callback(None)
    assert closed.called
    assert os.listdir("/proc/self/fd") == open_before


class Answering(Thread):
    """A sender's end of the socket in a directory: takes one line, and says *answer*."""

    def __init__(self, data: Path, answer: bytes | None) -> None:
        super().__init__(daemon=True)
        self.answer = answer
        self.asked: Any = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.done = Event()
        with socket_name(data / control.SOCKET_FILE) as name:
            self.listener.bind(name)
        self.listener.listen()
        self.start()

    def run(self) -> None:
        """Take one connection; without an answer it stays open until *done*."""
        connection, _ = self.listener.accept()
        with self.listener, connection:
            self.asked = json.loads(connection.makefile("rb").readline())
            if self.answer is None:
                self.done.wait(30)
            else:
                connection.sendall(self.answer)


def test_what_the_sender_answers_is_told(tmp_path: Path) -> None:
    sender = Answering(tmp_path, b'{"ok":[1,2]}\n')
    assert ask(tmp_path, "show", "y.example") == [1, 2]
    assert sender.asked == {"op": "show", "destination": "y.example"}


@pytest.mark.parametrize(
    ("answer", "told"), [(b'{"error":"no such thing"}\n', "no such thing"), (b"", "ended without")]
)
def test_what_the_sender_cannot_answer_is_an_error(
    tmp_path: Path, answer: bytes, told: str
) -> None:
    Answering(tmp_path, answer)
    with pytest.raises(ControlError, match=told):
        ask(tmp_path, "ls")


def test_a_sender_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.05)
    sender = Answering(tmp_path, None)
    with pytest.raises(TimeoutError):
        ask(tmp_path, "ls")
    sender.done.set()
    sender.join()


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


def test_one_that_stands_by_says_so_and_who_has_it() -> None:
    holder = ["host:7"]
    waiting = StandingBy("fed1", holder.pop)
    for operation in OPERATIONS:
        holder.append("host:7")
        failed: list[Any] = []
        _ = Deferred.fromCoroutine(waiting.do(operation, NAME)).addErrback(failed.append)
        assert failed[0].getErrorMessage() == (
            "this sender stands by, and sends nothing: the outbox of fed1 is held by host:7 "
            "(HOST:PROCESS); ask there"
        )
    holder.append("")
    _ = Deferred.fromCoroutine(waiting.do("ls", None)).addErrback(failed.append)
    assert "is held by another process" in failed[-1].getErrorMessage()


def test_whether_somebody_answers(tmp_path: Path) -> None:
    assert not answers(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        assert not answers(tmp_path)
        listening.listen()
        assert answers(tmp_path)
