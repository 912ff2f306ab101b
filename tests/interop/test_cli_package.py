"""What is given away: an sdist and a wheel, each complete."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.harness import ROOT


@pytest.mark.interop
@pytest.mark.timeout(300)
def test_sdist_and_wheel(tmp_path: Path) -> None:
    """The sdist has all that is tracked; what is built from it installs and runs alone."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "setuptools>=77"], check=True)
    copy = tmp_path / "copy"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "from setuptools import build_meta as b; import sys; where = sys.argv[1];"
        "print(b.build_sdist(where), b.build_wheel(where))"
    )
    built = subprocess.run(
        [str(python), "-c", build, str(tmp_path)],
        cwd=copy, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    sdist, wheel = (tmp_path / name for name in built[-2:])
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) - held == set()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {name for name in tracked if name.startswith("tcprepl/")}
    assert modules - set(names) == set()
    assert not any(name.startswith("tests/") for name in names)
    for package in (sdist, wheel):
        fresh = tmp_path / f"fresh-{package.suffix[1:]}"
        subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
        install = [str(fresh / "bin" / "python"), "-m", "pip", "--quiet",
                   "--disable-pip-version-check", "install", str(package)]  # fmt: skip
        subprocess.run(install, check=True, cwd=tmp_path)
        done = subprocess.run(
            [str(fresh / "bin" / "tcprepl"), "serve", "--help"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Usage: tcprepl serve" in done.stdout
