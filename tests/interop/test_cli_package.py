"""What is given away: an sdist and a wheel, each complete, on each Python that is supported."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.harness import ROOT, Running
from tests.interop.environments import find_interpreter
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

#: The Python that runs the tests gets the sdist, too.
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()


def environment_with(what: str, where: Path, interpreter: Path | str = sys.executable) -> Path:
    """Make an environment in *where* that has *what*; return the directory of its programs.

    Our own pip fills it: one for each would take most of the time.
    """
    subprocess.run([str(interpreter), "-m", "venv", "--without-pip", str(where)], check=True)
    python = str(where / "bin" / "python")
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*argv, "--python", python, "install", what], cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return where / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the sdist and the wheel, made of what is tracked."""
    where = tmp_path_factory.mktemp("built")
    python = environment_with("setuptools>=77", where / "venv") / "python"
    copy = where / "copy"
    for name in TRACKED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "from setuptools import build_meta as b; import sys; where = sys.argv[1];"
        "print(b.build_sdist(where), b.build_wheel(where))"
    )
    done = subprocess.run(
        [str(python), "-c", build, str(where)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sdist, wheel = (where / name for name in done.stdout.split()[-2:])
    return sdist, wheel


def test_they_are_complete(built: tuple[Path, Path]) -> None:
    """The sdist has all that is tracked, the wheel all of the package and nothing else."""
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(TRACKED) - held == set()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in TRACKED if name.startswith("tcprepl/")} - set(names) == set()
    assert not any(name.startswith("tests/") for name in names)


@pytest.mark.parametrize(
    ("version", "kind"), [(HERE, 0), (HERE, 1), ("3.12", 1), ("3.13", 1)],
    ids=["sdist", "wheel", "wheel-3.12", "wheel-3.13"],
)  # fmt: skip
def test_it_runs_alone(built: tuple[Path, Path], tmp_path: Path, version: str, kind: int) -> None:
    """In an empty environment: help, a server, a row in and out, a clean end."""
    python = sys.executable if version == HERE else find_interpreter(version)
    beside = environment_with(str(built[kind]), tmp_path / "venv", python)
    port, http = free_port(), free_port()

    def tcprepl(*words: str) -> str:
        done = subprocess.run(
            [str(beside / "tcprepl"), *words],
            cwd=tmp_path,
            env={"TCPREPL_FROM": f"127.0.0.1:{port}", "TCPREPL_TO": f"http://127.0.0.1:{http}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert tcprepl("help", "tutorial").startswith("# Tutorial\n")
    assert tcprepl("help", "protocol").startswith("# ")
    assert "[Service]" in tcprepl("files", "systemd")
    # -I: the checkout is not importable, and nothing of it is needed
    argv = [str(beside / "python"), "-I", str(beside / "tcprepl"), "serve", "--server-name", "a.b"]
    listen = ["--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}"]
    with Running([*argv, *listen], tmp_path) as server:
        server.wait_for_output("serve.ready")
        assert tcprepl("publish", "caches", '["f", ["k"], null]') == "caches master 1\n"
        shown = tcprepl("tail", "caches", "--since", "start", "--until-head")
        assert shown == 'RDATA caches master 1 ["f", ["k"], null]\n'
        assert server.stop() == 0
    assert "Traceback" not in server.stderr
