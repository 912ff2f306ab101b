"""The log that a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tcprepl.app import opening as module
from tcprepl.app.opening import open_log_of, room_in_words, where_logs_are
from tcprepl.config import build
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tests.log_kit import result

URL = "postgresql://u:secret@db:5/x?connect_timeout=3"


def opened(**raw: Any) -> Any:
    """Return the log of a configuration."""
    made = open_log_of(build(raw, "x").config, Registry(), Clock())  # type: ignore[arg-type]
    return result(Deferred.fromCoroutine(made))


def test_a_directory_or_memory_or_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(opened(data_directory=None), MemoryLog)
    asked: list[Any] = []

    def open_log(directory: Path, *_: object, **__: object) -> str:
        return f"in {directory.name}"

    async def open_shared_log(url: str, instance: str, *_: object, **more: Any) -> str:
        asked.append((url, instance, more["standby"]))
        await succeed(None)
        return "shared"

    monkeypatch.setattr(module, "open_log", open_log)
    monkeypatch.setattr(module, "open_shared_log", open_shared_log)
    assert opened(data_directory=str(tmp_path / "d")) == "in d"
    assert opened(data=URL, instance="two", standby=True) == "shared"
    assert asked == [(URL, "two", True)]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"data_directory": None}, "memory"),
        ({"data_directory": "d"}, "d"),
        ({"data": URL}, "postgresql://db:5/x"),
    ],
)
def test_people_are_told_where_without_the_password(raw: dict[str, Any], words: str) -> None:
    assert where_logs_are(build(raw, "x").config) == words


def test_disk_and_retention_in_words(tmp_path: Path) -> None:
    def words(**raw: object) -> dict[str, str]:
        told = room_in_words(build(raw, "test").config)
        return {title: text.replace("\u202f", " ") for title, text in told.items()}

    (tmp_path / "log").write_bytes(b"x" * 1_500)
    told = words(data_directory=str(tmp_path))
    assert told["Disk"].startswith(f"1.5 kB in {tmp_path}, ")
    assert told["Retention"] == "7 d 0 h, 1.1 GB, 10 000 000 rows of a durable stream"
    assert words(data_directory=None)["Disk"] == "everything is in memory only"
    told = words(
        data="postgresql://me:secret@db.example/x", data_directory=str(tmp_path / "absent")
    )
    assert told["Database"] == "postgresql://db.example/x"
