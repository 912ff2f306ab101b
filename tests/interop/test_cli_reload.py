"""SIGHUP to real processes: what has changed holds from then on, and the log says what it was."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.harness import TCPREPL, Running, Server, environment, start, tcprepl, wait_until
from tests.ports import free_port


def hang_up(process: Running) -> str:
    """Send SIGHUP, wait for its end, and return what was logged of it."""
    before = len(process.stderr)
    process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: re.search(r"event=reload\.(done|refused)", process.stderr[before:]),
        f"an end of the reload:\n{process.stderr}",
    )
    return process.stderr[before:]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "tcprepl.yaml"
    path.write_text("http: {token: first}\n", encoding="utf-8")
    return path


@pytest.fixture
def server(tmp_path: Path, file: Path) -> Iterator[Server]:
    """A server that was started with it."""
    with Server(tmp_path, "--config", str(file)) as running:
        yield running


def publish(server: Server, token: str) -> int:
    """Publish a row with a token and return the exit code."""
    return tcprepl(
        "publish", "device_lists", '["@a:b"]', "--to", server.url, "--token", token
    ).returncode


def test_tokens_level_limits_and_retention(server: Server, file: Path) -> None:
    """They hold at once; connections stay; the rest is named, and nothing secret is told."""
    reader = start(
        server.where, "tail", "device_lists", "--since", "start", "--from", server.address
    )
    with reader:
        assert publish(server, "first") == 0
        reader.wait_for_lines(1)
        file.write_text(
            "http: {token: second}\nlog: {level: debug}\ninstance: other\n"
            "streams: {retention: {rows: 1}}\nreplication: {max_connections: 1}\n",
            encoding="utf-8",
        )
        told = hang_up(server.process)
        assert "setting=http.token" in told
        assert "setting=log.level was=info now=debug" in told
        assert "setting=replication.max_connections was=10000 now=1" in told
        assert re.search(r"event=reload\.needs_restart setting=instance\b", told)
        assert "second" not in told
        assert publish(server, "first") == 1
        assert publish(server, "second") == 0
        # The connection that there was has stayed, and has seen what retention has let go.
        assert len(reader.wait_for_lines(2)) == 2
        held = tcprepl("poll", "device_lists", "--since", "start", "--until-head",
                       "--url", server.url, "--token", "second")  # fmt: skip
        (line,) = held.stdout.splitlines()
        assert line.startswith('device_lists 2 ["@a:b"')
        turned_away = tcprepl("positions", "--from", server.address)
        assert turned_away.returncode == 1
        assert "too many connections; the limit is 1" in turned_away.stderr
        assert "level=debug" in server.process.stderr


def test_a_faulty_file_changes_nothing(server: Server, file: Path) -> None:
    """All its faults are told; the old settings hold, and a mended file is taken."""
    file.write_text("http: {token: second}\nserver_nam: x\nlog: {level: loud}\n", encoding="utf-8")
    told = hang_up(server.process)
    assert "did you mean server_name?" in told
    assert "log.level: found 'loud'" in told
    assert "the old settings hold" in told
    assert publish(server, "first") == 0
    file.write_text("http: {token: second}\n", encoding="utf-8")
    hang_up(server.process)
    assert publish(server, "second") == 0


def test_a_command_waits_for_the_answer(server: Server, file: Path) -> None:
    """Its exit code says whether the file was taken: what `systemctl reload` shows."""

    def reload() -> tuple[int, str]:
        done = tcprepl("reload", "--data", str(server.where / "data"))
        return done.returncode, done.stdout + done.stderr

    pid = server.process.pid
    file.write_text("http: {token: second}\ninstance: other\n", encoding="utf-8")
    assert reload() == (
        0,
        f"process {pid} has reloaded\n  changed: http.token\n  needs a restart: instance\n",
    )
    file.write_text("http: {token: third}\nserver_nam: x\n", encoding="utf-8")
    code, told = reload()
    assert code == 1
    assert f"process {pid} refuses, the old settings hold:\n  " in told
    assert "did you mean server_name?" in told
    assert publish(server, "second") == 0
    assert server.process.stop() == 0
    code, told = reload()
    assert code == 1
    assert "no process uses it" in told


def test_two_at_once_and_one_in_the_start(tmp_path: Path, file: Path) -> None:
    """Whenever it comes it ends nothing."""
    server = Server(tmp_path, "--config", str(file))
    running = start(
        tmp_path, "serve", "--config", str(file), "--listen", server.address,
        "--http", f"127.0.0.1:{server.http_port}", "--data", str(tmp_path / "data"),
    )  # fmt: skip
    with running:
        # Python itself takes a moment before anything can be heard.
        wait_until(lambda: ignores_hangups(running.pid), "the command runs")
        while "serve.ready" not in running.stderr:
            running.send_signal(signal.SIGHUP)
            assert running.process.poll() is None
        for _ in range(20):
            running.send_signal(signal.SIGHUP)
        hang_up(running)
        server.running = running
        assert publish(server, "first") == 0
        assert running.stop() == 0


def ignores_hangups(pid: int) -> bool:
    """Return whether a process does not die of SIGHUP."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    masks = re.findall(r"^Sig(?:Ign|Cgt):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) & 1 for mask in masks)


def common_name(port: int, ca: Path) -> str:
    """Return the serial number of the certificate that a listener shows."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def issue(authority: trustme.CA, path: Path) -> None:
    """Write a fresh certificate and its key into one file."""
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)


@pytest.mark.parametrize("with_file", [True, False])
def test_certificates(tmp_path: Path, with_file: bool) -> None:
    """New connections get the new one; broken files leave the old one in use."""
    authority = trustme.CA()
    pem, ca = tmp_path / "server.pem", tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    issue(authority, pem)
    port, http_port = free_port(), free_port()
    if with_file:
        config = tmp_path / "x.yaml"
        tls = f"{{certificate: {pem}, private_key: {pem}}}"
        config.write_text(
            f"replication: {{listen: '127.0.0.1:{port}', tls: {tls}}}\n"
            f"http: {{listen: '127.0.0.1:{http_port}', tls: {tls}}}\n",
            encoding="utf-8",
        )
        arguments = ["--config", str(config)]
    else:
        arguments = ["--listen", f"ssl:{port}:interface=127.0.0.1:privateKey={pem}",
                     "--http", f"ssl:{http_port}:interface=127.0.0.1:privateKey={pem}"]  # fmt: skip
    with start(tmp_path, "serve", *arguments, "--data", str(tmp_path / "data")) as process:
        process.wait_for_output("serve.ready")
        first = [common_name(p, ca) for p in (port, http_port)]
        issue(authority, pem)
        told = hang_up(process)
        assert "event=reload.certificates listeners=2" in told
        assert ("without --config" in told) is not with_file
        second = [common_name(p, ca) for p in (port, http_port)]
        assert second[0] == second[1] != first[0] == first[1]
        pem.write_text("nonsense", encoding="utf-8")
        assert "reload.refused" in hang_up(process)
        assert [common_name(p, ca) for p in (port, http_port)] == second
        assert process.stop() == 0


def test_relay_and_sender(tmp_path: Path) -> None:
    """The others that stay do the same."""
    with Server(tmp_path) as upstream:
        http_port = free_port()
        relay_file, sender_file = tmp_path / "relay.yaml", tmp_path / "sender.yaml"
        base = f"server_name: example.com\ndata_directory: {tmp_path / 'relay'}\n"
        relay_file.write_text(base, encoding="utf-8")
        sender_file.write_text("log: {level: warning}\n", encoding="utf-8")
        with (
            start(tmp_path, "relay", "--upstream", upstream.address, "--config", str(relay_file),
                  "--listen", "127.0.0.1:0", "--http", f"127.0.0.1:{http_port}") as relay,
            start(tmp_path, "federation-sender", "--from", upstream.address, "--config",
                  str(sender_file), "--data", str(tmp_path / "sender")) as sender,
        ):  # fmt: skip
            relay.wait_for_output("relay.ready")
            sender.wait_for_output("tcprepl sends the EDUs")
            assert status_of(http_port) == 200
            relay_file.write_text(base + "http: {token: guarded}\n", encoding="utf-8")
            assert "setting=http.token" in hang_up(relay)
            assert status_of(http_port) == 401
            sender_file.write_text(
                "log: {level: info}\nserver_name: other.example\n"
                "federation: {resolve: {b.example: '127.0.0.1:1'}}\n",
                encoding="utf-8",
            )
            told = hang_up(sender)
            assert "setting=federation.resolve" in told
            assert "event=reload.needs_restart setting=server_name" in told
            asked = tcprepl("reload", "--data", str(tmp_path / "sender"))
            assert asked.stdout == (
                f"process {sender.pid} has reloaded\n  needs a restart: server_name\n"
            )
            assert relay.stop() == 0
            assert sender.stop() == 0


def status_of(port: int) -> int:
    """Return with what a server answers to who wants its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/_tcprepl/v1/status")
    status = connection.getresponse().status
    connection.close()
    return status


def test_other_commands_die_of_it_as_ever(tmp_path: Path) -> None:
    """A terminal that goes away takes a tail with it."""
    with Server(tmp_path) as server:
        with start(tmp_path, "tail", "--commands", "--from", server.address) as tail:
            tail.wait_for_output("POSITION typing")
            assert tail.stop(signal.SIGHUP) == -signal.SIGHUP
        without = Server(tmp_path / "without")
        with without:
            told = hang_up(without.process)
            assert "started without --config" in told
            assert without.process.stop() == 0


def test_systemd_is_told(tmp_path: Path, socket_directory: Path) -> None:
    """RELOADING with the time, then READY, as Type=notify-reload wants it."""
    path = str(socket_directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(30.0)
        child = subprocess.Popen(
            [*TCPREPL, "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
             "--data", str(tmp_path / "data")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment(), "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "6000000"},
        )  # fmt: skip

        def told() -> bytes:
            while (heard := systemd.recv(1000)) == b"WATCHDOG=1" or heard.startswith(b"STATUS="):
                pass
            return heard

        try:
            assert told().startswith(b"READY=1\n")
            assert systemd.recv(1000) == b"WATCHDOG=1"
            child.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", told())
            assert told() == b"READY=1"
            child.terminate()
            assert told() == b"STOPPING=1"
            assert child.wait(30) == 0
        finally:
            child.kill()
            child.wait()
