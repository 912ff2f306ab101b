"""Memory that is free goes back to the system: how the C library's allocator is set.

glibc raises what it calls large whenever a large piece is freed, up to 32 MiB, and gives back what
is free at the end of its heap only beyond twice that. A process that once held a page of rows or
what a slow reader was sent keeps such pieces among small ones from then on, and each thread does so
in a heap of its own: what it holds free grows for hours though what is in use does not. Neither do
the pages go back that came free between others. Source: mallopt(3), "Dynamic mmap threshold", and
malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from time import thread_time
from typing import Final

from twisted.internet.defer import Deferred

from tcprepl.background import looping_background_process
from tcprepl.clocks import Reactor

#: What is at least as large has pages of its own, which go back once it is freed.
LARGE_BYTES: Final = 512 * 1024
#: As much may be free at the end of the heap.
FREE_BYTES: Final = 1024 * 1024
#: Threads share so many heaps: what one frees the next can use.
HEAPS: Final = 1

#: How often pages that are free are given back.
TRIM_INTERVAL_S: Final = 60.0
#: CPU time that may be spent on it at once; beyond that it is done half as often as before, until
#: so many intervals are between two times.
TRIM_S: Final = 0.01
MAX_INTERVALS: Final = 64

#: mallopt's names for them, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def give_back_what_is_free(environment: Mapping[str, str] = os.environ) -> bool:
    """Have what is freed go back to the system soon; return whether the allocator was set.

    It is not where the C library is another one, or where *environment* sets its allocator:
    whoever runs the process knows better. May be called once there are threads; does more before.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {
        _M_MMAP_THRESHOLD: LARGE_BYTES,
        _M_TRIM_THRESHOLD: FREE_BYTES,
        _M_ARENA_MAX: HEAPS,
    }
    return all(mallopt(name, value) for name, value in wanted.items())


class Trimming:
    """Gives pages that are free back to the system, now and then, until `stop`.

    That takes a moment in which nothing else is done, about 0.1 ms for each megabyte in small
    pieces; so it is done the less often the longer it takes. Not where the C library cannot.

    Args:
        reactor: Time.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        #: How many intervals are between two times, and how many are left until the next.
        self._every = self._left = 1
        self._looping = looping_background_process(reactor, "trimming", TRIM_INTERVAL_S, self._look)

    def stop(self) -> Deferred[None]:
        """Do so no more."""
        return self._looping.stop()

    def _look(self) -> None:
        self._left -= 1
        if self._trim is None or self._left > 0:
            return
        began = thread_time()
        self._trim(0)
        took_s = thread_time() - began
        self._every = min(self._every * 2, MAX_INTERVALS) if took_s > TRIM_S else 1
        self._left = self._every
