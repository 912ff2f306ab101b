"""What systemd is told, and what it hands over (sd_notify(3), sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger()


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


def sockets_passed() -> int:
    """Return how many sockets a ``.socket`` unit has handed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isascii() and count.isdigit() else 0
