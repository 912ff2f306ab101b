"""Virtual environments with real Synapse releases, made on demand and kept between runs.

Each release lives in ``.interop-cache/synapse-VERSION`` (``TCPREPL_INTEROP_CACHE`` names
another directory) with a stamp that says what it was made from: a changed recipe makes it
anew, an equal one costs nothing. Making is guarded by a file lock, so that several test
processes may ask at once. ``python -m tests.interop.environments [VERSION ...]`` makes them
in parallel ahead of a test run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
#: Longest a single pip run may take.
INSTALL_TIMEOUT_S = 900


class SetupError(Exception):
    """Something that the interop tests need is missing; the text says what to install."""


@dataclass(frozen=True)
class Release:
    """How one Synapse release is installed.

    Attributes:
        name: The release, or ``newest``.
        python: The interpreter it needs, ``major.minor``.
        bootstrap: What pip installs first.
        requirements: What pip installs then.
        constraints: Whether ``constraints-synapse-NAME.txt`` pins the dependencies.
    """

    name: str
    python: str
    bootstrap: tuple[str, ...]
    requirements: tuple[str, ...]
    constraints: bool

    @property
    def constraints_path(self) -> Path | None:
        """The file that pins the dependencies, if any."""
        return HERE / f"constraints-synapse-{self.name}.txt" if self.constraints else None

    def recipe(self) -> str:
        """Return a digest of everything that decides what gets installed."""
        pinned = self.constraints_path.read_text() if self.constraints_path else ""
        recipe = [self.python, self.bootstrap, self.requirements, pinned]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


_OLD_PIP = ("pip<24.1", "setuptools<58", "wheel")

RELEASES = {
    release.name: release
    for release in (
        Release(
            "1.66.0",
            "3.10",
            (),
            ("matrix-synapse[postgres]==1.66.0", "setuptools<81"),
            constraints=True,
        ),
        Release(
            "1.12.4",
            "3.7",
            _OLD_PIP,
            ("matrix-synapse==1.12.4", "jinja2", "bleach"),
            constraints=True,
        ),
        Release(
            "1.0.0",
            "3.7",
            _OLD_PIP,
            ("matrix-synapse==1.0.0", "jinja2", "bleach"),
            constraints=True,
        ),
        Release("newest", "3.11", (), ("matrix-synapse[postgres,redis]",), constraints=False),
    )
}


def cache_directory() -> Path:
    """Return where the environments are kept."""
    named = os.environ.get("TCPREPL_INTEROP_CACHE")
    return Path(named).resolve() if named else REPOSITORY / ".interop-cache"


def python_of(name: str) -> Path:
    """Return the interpreter of release *name*, making its environment if need be.

    Raises:
        SetupError: The interpreter is missing or the installation failed.
    """
    release = RELEASES[name]
    cache = cache_directory()
    cache.mkdir(exist_ok=True)
    home = cache / f"synapse-{name}"
    python = home / "bin" / "python"
    with _locked(cache / f"synapse-{name}.lock"):
        if _stamped(home) != release.recipe():
            _make(release, home)
    return python


def installed_version(name: str) -> str:
    """Return the Synapse version that the environment of *name* holds."""
    shown = subprocess.run(
        [python_of(name), "-m", "pip", "show", "matrix-synapse"],
        capture_output=True,
        text=True,
        check=True,
    )
    fields = dict(line.split(": ", 1) for line in shown.stdout.splitlines() if ": " in line)
    return fields["Version"]


def find_interpreter(wanted: str) -> Path:
    """Return an interpreter of version *wanted* from the PATH or from pyenv.

    Raises:
        SetupError: There is none.
    """
    for candidate in _interpreters(wanted):
        # A shim may lie on the PATH for a version that is not switched on: ask it.
        asked = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0 and asked.stdout.strip() == wanted:
            return candidate
    raise SetupError(
        f"Python {wanted} is needed for the interop tests and was not found: put python{wanted} "
        f"on the PATH, or install it with `pyenv install {wanted}`"
    )


def find_program(name: str, package: str) -> str:
    """Return the path of server program *name*.

    Raises:
        SetupError: It is not installed; the text names the Debian *package*.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None and name in {"postgres", "initdb", "pg_basebackup"}:
        found = _postgres_program(name)
    if found is None:
        raise SetupError(f"{name} was not found: install it (Debian: apt install {package})")
    return found


def _postgres_program(name: str) -> str | None:
    # Debian keeps the server programs of each major version in a directory of its own.
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(candidates[-1]) if candidates else None


def _interpreters(wanted: str) -> Iterator[Path]:
    if f"{sys.version_info.major}.{sys.version_info.minor}" == wanted:
        base = Path(sys.base_prefix) / "bin" / f"python{wanted}"
        if base.exists():
            yield base
    for directory in os.get_exec_path():
        path = Path(directory) / f"python{wanted}"
        if path.exists():
            yield path
    root = os.environ.get("PYENV_ROOT")
    if root is None and shutil.which("pyenv") is not None:
        asked = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
        root = asked.stdout.strip() or None
    if root is not None:
        yield from sorted((Path(root) / "versions").glob(f"{wanted}.*/bin/python{wanted}"))


def _stamped(home: Path) -> str | None:
    try:
        return str(json.loads((home / "stamp.json").read_text())["recipe"])
    except (OSError, ValueError, KeyError):
        return None


def _make(release: Release, home: Path) -> None:
    interpreter = find_interpreter(release.python)
    shutil.rmtree(home, ignore_errors=True)
    _run([str(interpreter), "-m", "venv", str(home)], f"make a Python {release.python} venv")
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if release.bootstrap:
        _run([*pip, *release.bootstrap], "install pip's own tools")
    pins = ["-c", str(release.constraints_path)] if release.constraints else []
    _run([*pip, *pins, *release.requirements], f"install Synapse {release.name}")
    (home / "stamp.json").write_text(json.dumps({"recipe": release.recipe()}) + "\n")


def _run(command: Sequence[str], what: str) -> None:
    ran = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if ran.returncode != 0:
        raise SetupError(
            f"could not {what} (exit code {ran.returncode}); a package index, a C compiler and "
            f"the headers of PostgreSQL (Debian: build-essential, libpq-dev) are needed. "
            f"The last lines:\n{ran.stdout[-2000:]}"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(names: Sequence[str]) -> int:
    """Make the named environments, or all, in parallel; return the exit code."""
    wanted = list(names) or list(RELEASES)
    unknown = [name for name in wanted if name not in RELEASES]
    if unknown:
        print(f"unknown release {unknown[0]}; known: {', '.join(RELEASES)}", file=sys.stderr)
        return 2
    failed = False
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        for name, made in [(name, pool.submit(installed_version, name)) for name in wanted]:
            try:
                print(f"synapse-{name}: {made.result()}", flush=True)
            except SetupError as error:
                print(f"synapse-{name}: {error}", file=sys.stderr, flush=True)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
