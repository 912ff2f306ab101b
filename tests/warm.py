"""Processes that start warm: forked from one that has imported what they need.

``python -m tcprepl serve`` has a second of CPU to import before it does anything, a Synapse two or
three, and the tests kill and start hundreds. What is forked here differs from what is executed in
that time alone, and in its command line: it runs the same ``__main__``, it has its session, its
directory, its environment and its standard files to itself, and is waited for and killed by its id.

Run as ``python -m tests.warm FD MODULE...``, by the interpreter of those modules (3.9 or newer), it
is the process that forks: it has no thread and no running reactor, and ends when nobody holds the
other end of the socket FD.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
#: What of ours may be started warm; anything else is executed.
MODULES = ("tcprepl", "tests.faults.")
#: What of Synapse may be.
SYNAPSE = ("synapse.app.homeserver", "synapse.app.generic_worker")
#: The parts of the environment that are read before anything is forked: each has its own template.
_READ_AT_START = ("PYTHON", "COV", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "LANG", "LC_", "TZ")
#: What would install the reactor: its descriptors would be shared by all.
_NOT_IMPORTED = frozenset({"tcprepl.cli.twist", "tcprepl.__main__"})
_ORDER_BYTES = 1 << 20


class Forked:
    """A process that was forked elsewhere, with the methods of `subprocess.Popen` for its end.

    Attributes:
        pid: Its id, which is nobody else's until its end was heard of.
        returncode: How it ended; None as long as that was not heard of.
    """

    stdin: IO[bytes] | None = None

    def __init__(self, pid: int, template: Template) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._template = template
        self._handle = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        with self._lock:
            if self.returncode is None and self._has_ended(0):
                self.returncode = self._template.reap(self.pid)
                os.close(self._handle)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal; a no-op once it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it (SIGKILL)."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def _has_ended(self, timeout_s: float | None) -> bool:
        ready = select.poll()
        ready.register(self._handle, select.POLLIN)
        return bool(ready.poll(None if timeout_s is None else timeout_s * 1000))


class Template:
    """A process that others are forked from; the first waits until all is imported.

    Args:
        python: Its interpreter.
        modules: What it imports.
        env: Its environment.
    """

    def __init__(self, python: str, modules: Sequence[str], env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [python, "-m", "tests.warm", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=dict(env),
                start_new_session=True,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], files: Sequence[int]
    ) -> Forked:
        """Start ``python -m ARGV`` with *files* as its standard input, output and error."""
        pid = self._ask({"argv": list(argv), "cwd": str(cwd), "env": dict(env)}, files)
        return Forked(pid, self)

    def reap(self, pid: int) -> int:
        """Return how *pid*, which has ended, did so."""
        return self._ask({"reap": pid})

    def _ask(self, order: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], files)
            answer = self._socket.recv(_ORDER_BYTES)
        assert answer, "the process that the others are forked from has ended"
        return int(answer)


_templates: dict[object, Template] = {}
_templates_lock = threading.Lock()


def start(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], out: IO[bytes], err: IO[bytes]
) -> Forked | None:
    """Start *argv* warm, its input closed; None for what cannot be, and has to be executed."""
    modules = _imported_for(argv)
    if not modules:
        return None
    read = frozenset(item for item in env.items() if item[0].startswith(_READ_AT_START))
    key = (argv[0], modules, read)
    with _templates_lock:
        template = _templates.get(key)
        if template is None:
            template = _templates[key] = Template(argv[0], modules, env)
    with Path(os.devnull).open("rb") as nothing:
        files = [file.fileno() for file in (nothing, out, err)]
        return template.start(argv[2:], cwd, env, files)


def _imported_for(argv: Sequence[str]) -> tuple[str, ...]:
    """Return what is imported for what is started so; nothing if it has to be executed."""
    if len(argv) < 3 or argv[1] != "-m":
        return ()
    if argv[0] == sys.executable:
        return ("tcprepl",) if argv[2].startswith(MODULES) else ()
    return SYNAPSE if argv[2] in SYNAPSE and _minor_version(argv[0]) >= 9 else ()


@cache
def _minor_version(python: str) -> int:
    settings = Path(python).parent.parent / "pyvenv.cfg"
    return int(re.findall(r"^version *= *3\.([0-9]+)", settings.read_text(), re.MULTILINE)[0])


# --- the process that forks -----------------------------------------------------------------------


def _import_everything(names: Sequence[str]) -> None:
    for name in names:
        module = importlib.import_module(name)
        for part in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            if part.name not in _NOT_IMPORTED:
                importlib.import_module(part.name)
    assert "tcprepl" not in names or "twisted.internet.reactor" not in sys.modules


def _serve_forks(orders: socket.socket) -> list[str]:
    """Fork for each order; return in the child alone, with what it has to run."""
    while True:
        data, files, _, _ = socket.recv_fds(orders, _ORDER_BYTES, 3)
        if not data:
            sys.exit()
        order = json.loads(data)
        if "reap" in order:
            _, status = os.waitpid(order["reap"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                orders.close()
                os.setsid()
                for number, file in enumerate(files):
                    os.dup2(file, number)
            for file in files:
                os.close(file)
            if not answer:
                os.chdir(order["cwd"])
                os.environ.clear()
                os.environ.update(order["env"])
                sys.path[0] = order["cwd"]
                argv: list[str] = order["argv"]
                return argv
        orders.send(b"%d" % answer)


def main() -> None:
    """Import, and fork until nobody asks any more."""
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        _import_everything(sys.argv[2:])
        gc.collect()
        gc.freeze()
        argv = _serve_forks(orders)
    sys.argv[:] = argv
    if argv[0] in SYNAPSE:
        _own_reactor()
        importlib.import_module(argv[0]).main()  # what its ``__main__`` does
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _own_reactor() -> None:
    """Have the descriptors of a reactor that was made before the fork to ourselves."""
    reactor: Any = sys.modules["twisted.internet.reactor"]
    reactor.waker = None
    reactor.__init__()


if __name__ == "__main__":
    main()
