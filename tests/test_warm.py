"""What is forked warm is a process of its own, as one that is executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.harness import TCPREPL, Running, Server, environment, start


def test_it_is_what_the_command_line_says(tmp_path: Path) -> None:
    """Arguments, directory, output and exit code are those of one that is executed."""
    (tmp_path / "tcprepl.yaml").write_text("nonsense: 1\n", encoding="utf-8")
    argv = ["serve", "--config", "tcprepl.yaml"]
    executed = subprocess.run(
        [*TCPREPL, *argv], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    with start(tmp_path, *argv) as forked:
        assert isinstance(forked.process, warm.Forked)
        assert forked.wait() == executed.returncode != 0
        assert (forked.stdout, forked.stderr) == (executed.stdout, executed.stderr)


def test_it_is_killed_by_its_id(tmp_path: Path) -> None:
    """Its session is its own; a signal ends it, and how it ended is told; others go on."""
    with Server(tmp_path / "one") as one, Server(tmp_path / "other") as other:
        assert os.getsid(one.process.pid) == one.process.pid != other.process.pid
        one.process.kill()
        assert one.process.wait() == -signal.SIGKILL
        assert not Path(f"/proc/{one.process.pid}").exists()
        assert other.publish("typing", ["!room:example.com", []]) == [1]
        assert one.start().pid != other.process.pid
        assert one.process.stop() == 0


def test_who_waits_has_a_deadline(tmp_path: Path) -> None:
    """What goes on is told as such, and can still be ended."""
    with Server(tmp_path) as server:
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.process.wait(0.01)
        assert server.process.process.poll() is None
        assert server.process.stop() == 0


def test_what_is_read_of_the_environment_at_the_start_counts(tmp_path: Path) -> None:
    """What an interpreter reads before anything is forked is read anew where it differs."""
    argv = [*TCPREPL, "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    parents = []
    for number, extra in enumerate(({}, {"ANY": "1"}, {"PYTHONWARNINGS": "error::UserWarning"})):
        with Running(argv, tmp_path / str(number), extra=extra) as forked:
            forked.wait_for_output("serve.ready")
            parents.append(_parent(forked.pid))
    assert parents[0] == parents[1] != parents[2]
    told = Path(f"/proc/{parents[2]}/environ").read_bytes().split(b"\0")
    assert b"PYTHONWARNINGS=error::UserWarning" in told


def test_anything_else_is_executed(tmp_path: Path) -> None:
    """Only our own modules are imported beforehand."""
    with Running([sys.executable, "-c", "print(1)"], tmp_path) as process:
        assert isinstance(process.process, subprocess.Popen)
        assert process.wait() == 0
        assert process.stdout == "1\n"


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("PPid:")[1].split()[0])


def test_a_synapse_is_forked_by_its_own_interpreter_if_that_is_new_enough(tmp_path: Path) -> None:
    """And nothing else of what it has installed."""
    argv = [str(tmp_path / "bin" / "python"), "-m", "synapse.app.homeserver"]
    settings = tmp_path / "pyvenv.cfg"
    settings.write_text("home = /usr\nversion = 3.11.7\nexecutable = x\n", encoding="utf-8")
    assert warm._imported_for(argv) == warm.SYNAPSE
    assert warm._imported_for([*argv[:2], "synapse.app.admin_cmd"]) == ()
    assert warm._imported_for([*argv[:2], "tcprepl"]) == ()
    assert warm._imported_for([argv[0], "-c"]) == ()
    settings.write_text("version = 3.7.17\n", encoding="utf-8")
    warm._minor_version.cache_clear()
    assert warm._imported_for(argv) == ()
