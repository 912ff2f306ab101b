"""SIGTERM at any moment: whatever a process is about, it ends within 10 s."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import (
    FULL,
    TCPREPL,
    Lines,
    Running,
    Server,
    environment,
    pause,
    start,
    wait_until,
)
from tests.ports import free_port

#: What whoever starts a process allows it.
ALLOWED_S = 10.0
#: The state of a connection in ``/proc/net/tcp`` that nobody has answered.
SYN_SENT = "02"
#: Names cannot be looked up: the server of names does not answer.
NO_NAMES = (
    "import socket, sys, threading\n"
    "def never(*args, **options):\n"
    "    print('looking a name up', file=sys.stderr, flush=True)\n"
    "    threading.Event().wait(120)\n"
    "socket.getaddrinfo = never\n"
    "from tcprepl.cli import main\n"
    "sys.argv[0] = 'tcprepl'\n"
    "main()\n"
)


def ends_in_time(process: Running) -> int:
    """Ask a process to end, and return its exit code once it has, in time."""
    began = time.monotonic()
    code = process.stop(signal.SIGTERM)
    assert time.monotonic() - began < ALLOWED_S, process.stderr
    return code


def is_unanswered(process: Running, port: int) -> bool:
    """Return whether *process* itself has a connection to *port* that waits for an answer.

    The table names the sockets of everybody, also of who comes back to a port that was its own.
    """
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    waiting = {
        f"socket:[{fields[9]}]"
        for fields in table
        if fields[2].endswith(f":{port:04X}") and fields[3] == SYN_SENT
    }
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            if str(descriptor.readlink()) in waiting:
                return True
    return False


def from_command(source: str) -> dict[str, tuple[str, ...]]:
    """Return every command that stays, following *source*."""
    return {
        "federation-sender": ("federation-sender", "--from", source, "--data", "sender"),
        "relay": ("relay", "--upstream", source, "--server-name", "example.com",
                  "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        "tail": ("tail", "--from", source),
        "record": ("record", "x.rec", "--from", source),
        "watch": ("watch", "typing", "--from", source),
        "positions": ("positions", "--from", source),
        "until-head": ("tail", "--until-head", "--from", source),
    }  # fmt: skip


@pytest.mark.parametrize("command", from_command(""))
@pytest.mark.parametrize("after_s", [0.0, 2.3] if FULL else [0.0])
def test_where_nobody_listens(command: str, after_s: float, tmp_path: Path) -> None:
    """Between two tries, in the middle of one, early and late."""
    arguments = from_command(f"127.0.0.1:{free_port()}")[command]
    with start(tmp_path, *arguments, name="process") as process:
        if command in ("positions", "until-head"):
            assert process.wait() == 1
            return
        if command == "watch":
            process.wait_for_output("replication.client.unreachable")
        else:
            process.wait_for_output("unreachable|relay.ready")
        pause(after_s)
        assert ends_in_time(process) == 0


@pytest.mark.parametrize("command", from_command(""))
def test_where_the_other_end_says_nothing(command: str, tmp_path: Path) -> None:
    """A connection is there, and no word comes."""
    with socket.create_server(("127.0.0.1", free_port())) as silent:
        arguments = from_command(f"127.0.0.1:{silent.getsockname()[1]}")[command]
        with start(tmp_path, *arguments, name="process") as process:
            connection, _ = silent.accept()
            with connection:
                assert ends_in_time(process) == 0


@pytest.mark.parametrize("command", from_command(""))
def test_while_a_name_is_looked_up(command: str, tmp_path: Path) -> None:
    """A thread of the resolver cannot be stopped; nobody waits for it."""
    arguments = from_command("nowhere.example:9092")[command]
    with Running([sys.executable, "-c", NO_NAMES, *arguments], tmp_path) as process:
        process.wait_for_output("looking a name up")
        assert process.process.poll() is None
        assert ends_in_time(process) == 0


def test_a_connection_that_is_not_answered(tmp_path: Path) -> None:
    """The kernel's queue is full: the connection is neither made nor refused."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", port))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        arguments = from_command(f"127.0.0.1:{port}")["federation-sender"]
        process = stack.enter_context(start(tmp_path, *arguments))
        wait_until(lambda: is_unanswered(process, port), "an attempt to connect")
        assert ends_in_time(process) == 0


def test_a_reader_that_takes_nothing_does_not_hold_up_the_server(tmp_path: Path) -> None:
    """Whoever does not read is cut off in time, and everything is written out."""
    with Server(tmp_path) as server, Lines(server.port) as reader:
        reader.send("REPLICATE * * 0\n")
        reader.expect("POSITION typing")
        for _ in range(40):
            server.publish("device_lists", *[["@a:example.com" + "x" * 60_000] for _ in range(10)])
        assert ends_in_time(server.process) == 0
        assert "serve.stopped" in server.process.stderr


def test_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """A process that is stuck in a write ends, too."""
    with Server(tmp_path) as server:
        for _ in range(30):
            server.publish("device_lists", *[["@a:example.com" + "x" * 10_000] for _ in range(10)])
        tail = subprocess.Popen(
            [*TCPREPL, "tail", "--since", "start", "--from", server.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert tail.stdout.read(1)
        pause(1.0)  # until the pipe is full
        tail.send_signal(signal.SIGTERM)
        tail.wait(ALLOWED_S)
        tail.stdout.close()
        tail.stderr.close()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Who insists does not wait for readers to be drained."""
    with Server(tmp_path) as server, Lines(server.port) as reader:
        reader.send("REPLICATE * * 0\n")
        reader.expect("POSITION typing")
        for _ in range(40):
            server.publish("device_lists", *[["@a:example.com" + "x" * 60_000] for _ in range(10)])
        server.process.send_signal(signal.SIGTERM)
        server.process.wait_for_output("serve.stopping")
        began = time.monotonic()
        assert server.process.stop(signal.SIGINT) == 1
        assert time.monotonic() - began < 2.0
