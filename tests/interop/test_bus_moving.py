"""Moving a homeserver to the bus and back, by the commands we show; and how long a restart is."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from tcprepl.cli import recording
from tcprepl.replication.redis.resp import RespReader, encode, encode_publish
from tests.benchmarks.measure import cpu_ns
from tests.harness import Running, environment, start, tcprepl, wait_until
from tests.interop.busing import Bus
from tests.interop.environments import find_program
from tests.interop.moving import MOVING, commands
from tests.interop.processes import accepts
from tests.interop.relaying import StubbornRedis

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

NAME = "example.com"
#: CPU time that stopping and starting may take: what a restart costs on a machine of its own.
RESTART_CPU_S = 2.0


@contextmanager
def running(command: str, where: Path) -> Iterator[Running]:
    """Run such a command, with its data in *where*, and stop it in the end."""
    words = shlex.split(command.replace("/var/lib/tcprepl-bus", str(where / "data")))
    with Running([sys.executable, "-m", *words], where, words[1]) as process:
        process.wait_for_output(f"{words[1]}.ready")
        yield process
        assert process.stop() == 0


@contextmanager
def redis_server(where: Path) -> Iterator[None]:
    """Run a Redis at its usual address."""
    argv = [find_program("redis-server", "redis-server"), "--save", "", "--bind", "127.0.0.1"]
    with Running(argv, where, "redis") as process:
        wait_until(lambda: accepts(6379), "Redis listens")
        yield
        process.stop()


class Writer:
    """A process of a homeserver, as far as its Redis sees it: it writes events."""

    def __init__(self) -> None:
        self.token = 100

    def write(self, rows: int) -> None:
        """Publish rows on a new connection, and where they end; wait for the answers."""
        lines = [f"POSITION events w1 {self.token} {self.token}"]
        for _ in range(rows):
            self.token += 1
            lines.append(f'RDATA events w1 {self.token} ["ev", [{self.token}]]')
        with socket.create_connection(("127.0.0.1", 6379), 10.0) as connection:
            connection.sendall(encode_publish(NAME.encode(), [line.encode() for line in lines]))
            reader, answered = RespReader(), 0
            while answered < len(lines):
                answered += len(reader.feed(connection.recv(65_536))[1])


def tail(rows: int) -> list[int]:
    """Return the tokens of the events that ``tcprepl tail`` shows, from the replication port."""
    argv = [sys.executable, "-m", "tcprepl", "tail", "events", "--since", "start"]
    argv += ["--count", str(rows)]
    done = subprocess.run(
        argv, capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    return [int(token) for token in re.findall(r"^RDATA events w1 ([0-9]+) ", done.stdout, re.M)]


def recorded(file: Path) -> list[int]:
    """Return the tokens of the events in a recording, once there is one."""
    begun = file.exists() and file.stat().st_size  # the first lines are written in one go
    lines = recording.read(file) if begun else ()
    rows = [line.line.split(b" ", 4) for line in lines if line.line.startswith(b"RDATA ")]
    assert all((row[1], row[2]) == (b"events", b"w1") for row in rows)
    return [int(row[3]) for row in rows]


def test_a_homeserver_moves_in_and_out_and_loses_nothing(tmp_path: Path) -> None:
    relay, bus = commands()
    writer = Writer()
    with redis_server(tmp_path), running(relay, tmp_path) as beside:
        beside.wait_for_output("redis.up")
        writer.write(10)
        assert tail(10) == list(range(101, 111))
    with running(bus, tmp_path):
        pong = re.search(r"^\$ (redis-cli .*)\n(.*)\n", MOVING, re.MULTILINE)
        assert pong is not None
        said = subprocess.run(shlex.split(pong[1]), capture_output=True, text=True, check=True)
        assert said.stdout == pong[2] + "\n"
        file = tmp_path / "bus.rec"
        argv = ["record", str(file), "events", "--since", "start", "--count", "20"]
        with start(tmp_path, *argv) as recorder:
            wait_until(
                lambda: recorded(file) == list(range(101, 111)), "what was there is recorded"
            )
            writer.write(10)
            assert recorder.wait() == 0
        assert recorded(file) == list(range(101, 121))
        # one log: what the relay heard, and what was said to the bus
        assert tail(20) == list(range(101, 121))
    with redis_server(tmp_path), running(relay, tmp_path) as beside:
        beside.wait_for_output("redis.up")
        writer.write(10)
        assert tail(30) == list(range(101, 131))


def test_settings_of_the_playbook_make_the_path_that_the_bus_listens_at() -> None:
    (listened,) = re.findall(r"--listen-redis unix:(\S+):mode", MOVING)
    settings = next(
        yaml.safe_load(block)
        for block in re.findall(r"^```\n(.*?)^```$", MOVING, re.M | re.S)
        if "matrix_synapse_redis_path" in block
    )
    mounted = settings["matrix_synapse_redis_path_host"]
    assert mounted + settings["matrix_synapse_redis_path_socket"] == listened
    (shown,) = re.findall(r"^redis: .*path: (\S+)\}$", MOVING, re.MULTILINE)
    assert shown == listened


def test_redis_lets_names_in_that_it_was_given(tmp_path: Path) -> None:
    (given,) = re.findall(r"^user (worker1 .*)$", MOVING, re.MULTILINE)
    with StubbornRedis(tmp_path) as redis:
        assert redis.command("AUTH", "worker1", "any").startswith("WRONGPASS ")
        assert redis.command("ACL", "SETUSER", *given.split()) == "OK"
        assert redis.command("AUTH", "worker1", "any") == "OK"


def test_systemd_exchanges_bus_and_redis_one_after_the_other(tmp_path: Path) -> None:
    (unit,) = re.findall(r"^```\n(\[Unit\]\n.*?)^```$", MOVING, re.MULTILINE | re.DOTALL)
    settings = dict(line.split("=") for line in unit.splitlines()[1:])
    assert settings == dict.fromkeys(("Conflicts", "After"), "redis-server.service")
    assert (
        tcprepl("files", "systemd", "--out", str(tmp_path), "--command", "/bin/true").returncode
        == 0
    )
    more = tmp_path / "tcprepl-bus.service.d" / "override.conf"
    more.parent.mkdir()
    more.write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "tcprepl-bus.service")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_restart_is_short_and_those_who_wait_come_back(tmp_path: Path) -> None:
    """It is measured as CPU time: that it waits for other programs is not the bus's doing."""
    with ExitStack() as stack:
        bus = stack.enter_context(Bus(NAME, tmp_path))
        with socket.create_connection(("127.0.0.1", bus.port), 10.0) as connection:
            lines = [b"RDATA events w1 %d [1]" % token for token in range(1, 20_001)]
            connection.sendall(encode_publish(NAME.encode(), lines))
            reader, answered = RespReader(), 0
            while answered < len(lines):
                answered += len(reader.feed(connection.recv(65_536))[1])
            before = cpu_ns(bus.pid)
            pid = bus.pid
            bus.child._popen.terminate()
            wait_until(lambda: not accepts(bus.port), "nobody listens")
            stopping = cpu_ns(pid) - before if Path(f"/proc/{pid}/task").exists() else 0
            bus.stop()
        bus.start()
        assert (stopping + cpu_ns(bus.pid)) / 1e9 < RESTART_CPU_S
        with socket.create_connection(("127.0.0.1", bus.port), 10.0) as connection:
            connection.sendall(encode(b"SUBSCRIBE", NAME.encode()) + encode(b"PING"))
            assert b"subscribe" in connection.recv(65_536)
