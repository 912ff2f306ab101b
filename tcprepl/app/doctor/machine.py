"""The machine that this runs on: versions, clock, files, disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from tcprepl.app.doctor.findings import WAIT_S, Finding, Verdict, user
from tcprepl.app.opening import where_logs_are
from tcprepl.app.settings import registry_of, retention_of
from tcprepl.settings import Config
from tcprepl.storage.lock import holder_of
from tcprepl.web.amounts import size

#: Descriptors of a process besides its connections.
OTHER_DESCRIPTORS = 200
#: Fewer bytes than this on a disk are too few whatever is to be kept.
LITTLE_ROOM_BYTES = 1 << 30
#: Nothing of this program was written before (2025-01-01): a clock that shows less is wrong.
EARLIEST_S = 1_735_689_600
#: The oldest SQLite in which everything that is used works: UPSERT, and WAL that is sound.
SQLITE_MIN = (3, 35, 0)


def versions(config: Config) -> Iterator[Finding]:
    """What this runs on."""
    parts = ["tcprepl", "twisted", "msgspec", "pyopenssl"]
    found = ", ".join(f"{name} {metadata.version(name)}" for name in parts)
    text = f"Python {platform.python_version()}, {found}, SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        wanted = ".".join(map(str, SQLITE_MIN))
        yield Finding(
            Verdict.FAULT, "versions", text, f"use a Python with SQLite {wanted} or newer"
        )
    else:
        yield Finding(Verdict.GOOD, "versions", text)


def clock(config: Config) -> Iterator[Finding]:
    """Whether the time of day is right; stamps, signatures and retention go by it."""
    if time.time() < EARLIEST_S:
        shown = time.strftime("%Y-%m-%d %H:%M", time.gmtime(time.time()))
        yield Finding(
            Verdict.FAULT, "clock", f"shows {shown} UTC", "set it, and start an NTP client"
        )
        return
    told = _said("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if told == "no":
        yield Finding(
            Verdict.WARNING,
            "clock",
            "is not kept by NTP",
            "systemctl enable --now systemd-timesyncd",
        )
    else:
        text = (
            "is kept by NTP" if told == "yes" else "is plausible; nobody says whether NTP keeps it"
        )
        yield Finding(Verdict.GOOD, "clock", text)


def descriptors(config: Config) -> Iterator[Finding]:
    """Whether as many connections as are allowed can be open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = config.replication.max_connections
    text = f"{limit} may be open; replication.max_connections is {allowed}"
    if limit != resource.RLIM_INFINITY and limit < allowed + OTHER_DESCRIPTORS:
        yield Finding(
            Verdict.WARNING,
            "file limit",
            f"{text} (of this shell; a unit of systemd has its own)",
            f"LimitNOFILE={allowed + OTHER_DESCRIPTORS} in the unit, or ulimit -n (at most {most})",
        )
    else:
        yield Finding(Verdict.GOOD, "file limit", text)


def data(config: Config) -> Iterator[Finding]:
    """Whether the data directory can be used, by us alone, and who uses it."""
    directory = config.data_directory
    if config.data is not None:
        where = where_logs_are(config)
        yield Finding(Verdict.GOOD, "data", f"the log is in {where}, which each start looks at")
    elif directory is None:
        yield Finding(
            Verdict.WARNING,
            "data",
            "everything is kept in memory, and lost at each end of the process",
            "set data_directory",
        )
    if directory is None:
        return
    if not directory.exists():
        above = next(path for path in directory.absolute().parents if path.exists())
        if os.access(above, os.W_OK | os.X_OK):
            yield Finding(Verdict.GOOD, "data", f"{directory} will be made at the first start")
        else:
            yield Finding(
                Verdict.FAULT,
                "data",
                f"{directory} is not there, and {above} does not let {user()} make it",
                f"install -d -m 0700 -o {user()} {directory}",
            )
        return
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            Verdict.FAULT,
            "data",
            f"{directory} belongs to somebody else than {user()}",
            f"run this as the user of the server, or chown -R {user()} {directory}",
        )
        return
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            Verdict.WARNING,
            "data",
            f"{directory} can be read by others (mode {mode:04o}); rows may hold access tokens",
            f"chmod 0700 {directory}",
        )
    strangers = [
        path for path in directory.rglob("*") if path.stat().st_uid != directory.stat().st_uid
    ]
    if strangers:
        yield Finding(
            Verdict.FAULT,
            "data",
            f"{strangers[0]} has another owner than its directory (was a command run as root?)",
            f"chown -R --reference={directory} {directory}",
        )
    yield Finding(Verdict.GOOD, "data", _in_use(directory))


def room(config: Config) -> Iterator[Finding]:
    """Whether what retention lets grow finds room on the disk."""
    directory = config.data_directory
    if directory is None or config.data is not None:
        return
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    used = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    retention = retention_of(config)
    registry = registry_of(config)
    bounds = [
        retention.streams.get(stream, retention.durable).max_bytes
        for stream in registry.names()
        if registry.get(stream).durable
    ]
    most = sum(bound for bound in bounds if bound is not None)
    text = f"{size(free)} free, {size(used)} used; retention keeps up to {size(most)} an instance"
    if None in bounds:
        text += " and some streams without a bound in bytes"
    if free < LITTLE_ROOM_BYTES:
        yield Finding(
            Verdict.FAULT,
            "disk",
            text,
            "make room: a full disk refuses appends (and goes on by itself)",
        )
    elif free + used < most:
        yield Finding(
            Verdict.WARNING, "disk", text, "lower streams.retention.bytes, or give it a larger disk"
        )
    else:
        yield Finding(Verdict.GOOD, "disk", text)


def _in_use(directory: Path) -> str:
    pid = holder_of(directory)
    return f"{directory} is ours, and {'not in use' if pid is None else f'in use by process {pid}'}"


def _said(*words: str) -> str:
    """Return what a program prints; "" if there is none, or it has nothing to say."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()
