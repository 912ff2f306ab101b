"""Versions, clock, files, disk."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from pathlib import Path

import pytest

from tcprepl.app.doctor import machine
from tcprepl.app.doctor.findings import Verdict
from tests.doctor_kit import FAULT, GOOD, WARNING, config, one


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "twisted" in one(machine.versions(config())).text
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 31, 0))
    assert one(machine.versions(config())).verdict is FAULT


@pytest.mark.parametrize(("told", "verdict"), [("yes", GOOD), ("no", WARNING), ("", GOOD)])
def test_clock(told: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_said", lambda *words: told)
    assert time.time() > machine.EARLIEST_S
    assert one(machine.clock(config())).verdict is verdict
    monkeypatch.setattr(machine.time, "time", lambda: 1e9)
    assert one(machine.clock(config())).text == "shows 2001-09-09 01:46 UTC"


def test_what_programs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._said("echo", "yes") == "yes"
    assert machine._said("no-such-program") == ""
    monkeypatch.setattr(machine, "WAIT_S", 0.05)
    assert machine._said("sleep", "30") == ""


def test_descriptors() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = {"max_connections": limit - machine.OTHER_DESCRIPTORS}
    many = {"max_connections": limit - machine.OTHER_DESCRIPTORS + 1}
    assert one(machine.descriptors(config(replication=few))).verdict is GOOD
    assert one(machine.descriptors(config(replication=many))).verdict is WARNING


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "data"

    def verdicts() -> list[Verdict]:
        return [f.verdict for f in machine.data(config(data_directory=str(directory)))]

    assert one(machine.data(config(data_directory=None))).verdict is WARNING
    shared = config(data_directory=None, data="postgresql://me:secret@db.example/x")
    assert one(machine.data(shared)).text.startswith("the log is in postgresql://db.example/x,")
    assert list(machine.room(shared)) == []
    assert verdicts() == [GOOD]
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert verdicts() == [FAULT]
        directory.mkdir(0o700)
        assert verdicts() == [FAULT]
    assert verdicts() == [GOOD]
    directory.chmod(0o755)
    assert verdicts() == [WARNING, GOOD]
    directory.chmod(0o700)
    lock = directory / "lock"
    lock.write_text("4711", encoding="ascii")
    found = one(machine.data(config(data_directory=str(directory))))
    assert found.text.endswith("not in use")
    with lock.open("r") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = one(machine.data(config(data_directory=str(directory))))
    assert found.text.endswith("in use by process 4711")
    assert lock.read_text(encoding="ascii") == "4711"
    if os.geteuid() == 0:
        os.chown(lock, 12345, -1)
        assert verdicts() == [FAULT, GOOD]


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_bytes(b"12345")
    free = [1 << 50]
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]})
    )
    given = config(data_directory=str(tmp_path))
    assert list(machine.room(config(data_directory=None))) == []
    assert one(machine.room(given)).verdict is GOOD
    free[0] = 2 << 30
    assert one(machine.room(given)).verdict is WARNING
    free[0] = 1 << 20
    assert one(machine.room(given)).verdict is FAULT
