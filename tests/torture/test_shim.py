"""The shim: it knows a checkpoint and a trim of ours when it sees one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import environment
from tests.torture.shim import CHECKPOINT, TRIM, Shim, build

#: Appends and trims until there was a checkpoint, several times over.
STORE = """
import sys
from pathlib import Path
from tests.log_kit import SqliteStore, add
from tcprepl.streams.retention import Bounds, Retention
store = SqliteStore(Path(sys.argv[1]), Retention(Bounds(3600.0, 1 << 20, 4)))
for number in range(40):
    add(store, "device_lists", *(b'["@%d:x"]' % number for _ in range(2)))
store.close()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


class Store:
    """A process that writes a log, under a shim."""

    def __init__(self, library: Path, where: Path) -> None:
        self.shim = Shim(library, where / "control")
        self._log = where / "log"

    def run(self) -> tuple[int, str]:
        """Write; return how the process ended, and its words."""
        argv = [sys.executable, "-c", STORE, str(self._log)]
        env = {**environment(), **self.shim.environment}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr


@pytest.fixture
def store(library: Path, tmp_path: Path) -> Store:
    return Store(library, tmp_path)


@pytest.mark.parametrize(("place", "name"), [(CHECKPOINT, "a checkpoint"), (TRIM, "a trim")])
def test_a_kill_in_a_checkpoint_and_in_a_trim(place: int, name: str, store: Store) -> None:
    store.shim.kill_at(place, 2)
    code, said = store.run()
    assert (code, store.shim.killed) == (-signal.SIGKILL, name), said
    assert store.shim.met(place) == 2
    store.shim.spare()
    store.shim.forget()
    assert store.run() == (0, "")
    assert not store.shim.killed
    assert not store.shim.bad_disk


def test_a_checkpoint_that_fails_fails_nothing_else(store: Store) -> None:
    store.shim.fail_at(CHECKPOINT, True)
    assert store.run() == (0, "")
    assert store.shim.bad_disk


def test_a_trim_that_fails(store: Store) -> None:
    store.shim.fail_at(TRIM, True)
    code, said = store.run()
    assert code == 1
    assert "LogUnavailable" in said
