"""Ports for servers that tests start as processes of their own.

A port that the kernel hands out and takes back may be anybody's next outgoing connection before
the server under test binds it. So ports are taken from below the range for outgoing connections,
each process of the test run from a part of its own, each port once.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import count

#: Where Linux (32768) and IANA (49152) let outgoing connections begin, and above what is usual.
_FIRST, _END = 11_000, 32_000
#: Parts that processes of one test run have for themselves.
_PARTS = 10
_PART = (_END - _FIRST) // _PARTS

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
# Two runs on one machine begin at different places.
_places = count(random.Random(os.urandom(8)).randrange(_PART))


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on and that was not returned before."""
    for _ in range(_PART):
        port = _FIRST + _worker * _PART + next(_places) % _PART
        with socket.socket() as probe:
            # As servers do: what ended a moment ago does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port among {_PART}")
