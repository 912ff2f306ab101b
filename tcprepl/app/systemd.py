"""What systemd is told: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.logger import get_logger

log = get_logger(__name__)


def sd_notify(*states: str) -> bool:
    """Tell systemd states such as ``READY=1``; return whether it listens at all.

    The protocol is a datagram to the socket that ``NOTIFY_SOCKET`` names.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    name = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(name)
            sock.sendall("\n".join(states).encode())
        except OSError as error:
            log.warning("systemd.unreachable", error=str(error))
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Return after how long a silence systemd would restart this process; None for never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    interval = os.environ.get("WATCHDOG_USEC", "")
    if not (interval.isascii() and interval.isdigit()) or interval == "0":
        return None
    return int(interval) / 1e6


class Watchdog:
    """Tells systemd that this process gets on, for as long as it does.

    That its reactor turns is not enough: it says so only once *progress*, which it began the time
    before, has come to its end. A process whose disk or thread hangs falls silent, and systemd
    restarts it. One whose disk is full answers its callers, and so gets on.

    Args:
        reactor: Time.
        interval_s: The silence that systemd allows (``WatchdogSec=``).
        progress: Begins something that goes all the way through the process, such as a flush;
            fires with whatever came of it.
    """

    def __init__(
        self, reactor: IReactorTime, interval_s: float, progress: Callable[[], Deferred[None]]
    ) -> None:
        self._reactor = reactor
        self._interval_s = interval_s
        self._progress = progress
        self._began_s: float | None = None
        self._held_up = False

    def start(self) -> LoopingProcess:
        """Begin, three times in each interval."""
        return looping_background_process(
            self._reactor, "systemd_watchdog", self._interval_s / 3, self._look
        )

    def _look(self) -> None:
        now = self._reactor.seconds()
        if self._began_s is None:
            if self._held_up:
                self._held_up = False
                log.info("watchdog.getting_on")
            sd_notify("WATCHDOG=1")
            self._began_s = now
            _ = self._progress().addBoth(self._through)
        elif not self._held_up and now - self._began_s > self._interval_s / 2:
            self._held_up = True
            log.error(
                "watchdog.held_up",
                waited_s=round(now - self._began_s, 1),
                text="what waits for the disk is not answered; systemd restarts this process",
            )

    def _through(self, result: object) -> None:
        self._began_s = None
