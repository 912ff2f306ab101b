"""Memory that is free goes back to the system: how the C library's allocator is set.

glibc raises what it calls large whenever a large piece is freed, up to 32 MiB, and gives back what
is free at the end of its heap only beyond twice that. A process that once held a page of rows or
what a slow reader was sent keeps such pieces among small ones from then on, and each thread does so
in a heap of its own: what it holds free grows for hours though what is in use does not. Source:
mallopt(3), "Dynamic mmap threshold".
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final

#: What is at least as large has pages of its own, which go back once it is freed.
LARGE_BYTES: Final = 512 * 1024
#: As much may be free at the end of the heap.
FREE_BYTES: Final = 1024 * 1024
#: Threads share so many heaps: what one frees the next can use.
HEAPS: Final = 1

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
