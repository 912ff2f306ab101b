"""The shipped files, read by whom they are for: systemd, Prometheus, man."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.harness import (
    TCPREPL,
    Lines,
    Running,
    Server,
    program,
    start,
    tcprepl,
    wait_until,
)
from tests.ports import free_port

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.interop


def written(kind: str, where: Path, *words: str) -> list[Path]:
    """Write the files of a kind, and return where they are."""
    done = tcprepl("files", kind, "--out", str(where), *words)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Nothing is unknown to it, and what it calls exposure is low."""
    units = written("systemd", tmp_path, "--command", "/bin/true")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for unit in units:
        if unit.suffix == ".service":
            rated = subprocess.run(
                ["systemd-analyze", "security", "--offline=yes", str(unit)],
                capture_output=True,
                text=True,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
            (exposure,) = re.findall(r"Overall exposure level .*: ([0-9.]+)", rated.stdout)
            assert float(exposure) < 2.5, rated.stdout


def test_a_socket_unit_starts_the_server(tmp_path: Path) -> None:
    """As the units say it: with the first connection, on the sockets that it is handed."""
    lines, http = free_port(), free_port()
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        "server_name: example.com\n"
        f"data_directory: {tmp_path / 'data'}\n"
        'replication: {listen: "systemd:domain=INET:index=0"}\n'
        'http: {listen: "systemd:domain=INET:index=1"}\n'
    )
    activate = [program("systemd-socket-activate"), "--setenv=PYTHONPATH", "--fdname=lines:http"]
    listen = [f"--listen=127.0.0.1:{port}" for port in (lines, http)]
    argv = [*activate, *listen, *TCPREPL, "serve", "--config", str(config)]
    with Running(argv, tmp_path) as systemd:
        systemd.wait_for_output("Listening on .*:" + str(http))
        with Lines(lines) as reader:
            assert reader.readline() == "SERVER example.com"
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/health") as answer:
            assert answer.status == 200
        assert systemd.stop() == 0


def test_prometheus_takes_the_alerts(tmp_path: Path) -> None:
    (rules,) = written("alerts", tmp_path)
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_prometheus_takes_what_the_documents_tell_it(tmp_path: Path) -> None:
    text = (ROOT / "tcprepl" / "docs" / "operation.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```yml\n(scrape_configs:\n.*?)```", text, re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(found, encoding="utf-8")
    (tmp_path / "tcprepl.token").write_text("secret\n", encoding="utf-8")
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_live_server_exposes_what_is_asked_for(tmp_path: Path) -> None:
    """And promtool has nothing to say of how."""
    with Server(tmp_path) as server, urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read()
    for name in ("reactor_lateness_seconds", "data_bytes", "data_free_bytes"):
        (value,) = re.findall(rf"^tcprepl_{name} (\S+)$", text.decode(), re.MULTILINE)
        assert float(value) >= 0
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    # names that are Synapse's are as Synapse has them
    ours = [line for line in done.stderr.decode().splitlines() if line.startswith("tcprepl_")]
    assert ours == []


def test_a_live_sender_exposes_what_its_alerts_ask_for(tmp_path: Path) -> None:
    """And says that its writer is away."""
    http = free_port()
    with Server(tmp_path) as server:
        words = ["federation-sender", "--from", server.address, "--http", f"127.0.0.1:{http}"]
        with start(tmp_path / "sender", *words) as sender:
            sender.wait_for_output("sends the EDUs")
            ask = ["check", "health", "--to", f"http://127.0.0.1:{http}", "--warn-degraded"]
            wait_until(lambda: tcprepl(*ask).returncode == 0 or None, "a sender in good health")
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics") as answer:
                text = answer.read()
            assert b"# TYPE tcprepl_outbox_oldest_seconds gauge" in text
            up = f'tcprepl_link_up{{kind="writer",link="{server.address}"}} 1.0'
            assert up in text.decode().splitlines()
            done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
            assert [line for line in done.stderr.decode().splitlines() if "tcprepl_" in line] == []
            server.process.kill()
            told = wait_until(
                lambda: found if (found := tcprepl(*ask)).returncode == 1 else None, "a warning"
            )
            assert f"writer {server.address}: away for" in told.stdout
            assert sender.stop() == 0


def test_man_shows_the_pages(tmp_path: Path) -> None:
    pages = written("man", tmp_path / "man1")
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings=w", "--local-file", str(page)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, ""), page
        assert re.search(r"^NAME$", re.sub(".\b", "", done.stdout), re.MULTILINE)
    shown = subprocess.run(
        ["man", "--local-file", str(tmp_path / "man1" / "tcprepl-publish.1")],
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    assert "--to" in shown
