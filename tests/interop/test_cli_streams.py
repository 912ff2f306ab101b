"""Standard streams that are closed, or that nobody reads."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import TCPREPL, Server, environment, tcprepl, wait_until
from tests.ports import free_port


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell."""
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, env=environment()
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_server_without_them(tmp_path: Path, closed: str) -> None:
    """It serves, and its files hold what belongs into them."""
    port, http_port = free_port(), free_port()
    command = shlex.join([
        *TCPREPL, "serve", "--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http_port}",
        "--data", str(tmp_path / "data"),
    ])  # fmt: skip
    url = f"http://127.0.0.1:{http_port}"
    nowhere = subprocess.DEVNULL
    line = ["sh", "-c", f"exec {command} {closed}"]
    with subprocess.Popen(line, env=environment(), stdout=nowhere, stderr=nowhere) as process:
        try:
            wait_until(
                lambda: (
                    tcprepl("publish", "device_lists", '["@a:b"]', "--to", url).returncode == 0
                    or process.poll() is not None
                ),
                "the server takes rows",
            )
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_commands_without_them(tmp_path: Path) -> None:
    """Nothing to print to, nothing to read from: no traceback."""
    with Server(tmp_path) as server:
        for line, code in (
            (f"tail --until-head --from {server.address} >&-", 0),
            (f"positions --from {server.address} >&-", 0),
            (f"publish typing --to {server.url} <&-", 0),
            (f"publish typing --to {server.url} < /dev/null", 0),
            (f"tail tping --from {server.address} 2>&-", 2),
        ):
            done = shell(f"{shlex.join(TCPREPL)} {line}")
            assert done.returncode == code, (line, done)
            assert "Traceback" not in done.stderr, line


def test_a_full_disk_behind_stdout_is_a_failure(tmp_path: Path) -> None:
    """Also for the last lines, when there is no more to wait for; it is said what is full."""
    with Server(tmp_path) as server:
        server.publish("device_lists", ["@a:b"])
        for until in ("--until-head", "--count 1", "--for 20"):
            line = f"tail device_lists --since start {until} --from {server.address} > /dev/full"
            done = shell(f"{shlex.join(TCPREPL)} {line}")
            assert done.returncode == 1, (until, done.stderr)
            assert done.stderr.endswith("No space left on device: 'stdout'\n")
            assert "Traceback" not in done.stderr


def test_bench_measures_a_running_server(tmp_path: Path) -> None:
    """And a second time only if that is meant."""
    with Server(tmp_path) as server:
        done = tcprepl("bench", "publish", "--from", server.address, "--rows", "300", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"] == 300
        assert done.stderr == ""
        again = tcprepl("bench", "latency", "--from", server.address)
        assert again.returncode == 2
        assert "--yes" in again.stderr
        done = tcprepl("bench", "follow", "--from", server.address)
        assert done.stdout.startswith("follow    300 rows")
