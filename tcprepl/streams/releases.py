"""Which streams each release of Synapse has, as data (protocol.md sections 7.7 and 15.2).

A Synapse that is told of a stream that its release does not have logs an error, and since
1.97 gives up the connection on which it was told. So whoever writes to Synapse asks here.
The interop tests compare `SYNAPSE_STREAMS` with the releases that they run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from tcprepl.ids import StreamName

#: Major and minor number of a release.
Release: TypeAlias = tuple[int, int]

#: The newest release that this table was compared with; later ones are taken to be like it.
NEWEST: Final[Release] = (1, 163)

#: For each stream the first and the last release that have it; None: it is still there.
SYNAPSE_STREAMS: Final[Mapping[StreamName, tuple[Release, Release | None]]] = MappingProxyType(
    {
        "events": ((0, 21), None),
        "backfill": ((0, 21), None),
        "presence": ((0, 21), None),
        "presence_federation": ((1, 33), None),
        "typing": ((0, 21), None),
        "receipts": ((0, 21), None),
        "push_rules": ((0, 21), None),
        "pushers": ((0, 21), None),
        "caches": ((0, 21), None),
        "device_lists": ((0, 21), None),
        "to_device": ((0, 21), None),
        "federation": ((0, 21), None),
        "tag_account_data": ((0, 21), (1, 75)),
        "account_data": ((0, 21), None),
        "user_signature": ((1, 6), (1, 75)),
        "public_rooms": ((0, 21), (1, 40)),
        "groups": ((0, 24), (1, 60)),
        "current_state_deltas": ((0, 22), (0, 99)),
        "sticky_events": ((1, 148), None),
        "thread_subscriptions": ((1, 135), None),
        "un_partial_stated_room": ((1, 74), None),
        "un_partial_stated_event": ((1, 75), None),
        "quarantined_media": ((1, 152), None),
        "profile_updates": ((1, 163), None),
    }
)

#: The releases that may be at the other end where nothing says which it is: what a listener's
#: ``dialect`` stands for, and ``redis``.
ASSUMED: Final[Mapping[str, tuple[Release, Release]]] = MappingProxyType(
    {
        "1.13": ((1, 13), (1, 21)),
        "1.14": ((1, 14), (1, 17)),
        "1.18": ((1, 18), (1, 21)),
        "1.22": ((1, 22), (1, 66)),
        "auto": ((1, 33), (1, 66)),
        "redis": ((1, 33), NEWEST),
    }
)

_RELEASE = re.compile(r"v?([0-9]{1,3})\.([0-9]{1,4})(?:\.[0-9]{1,4})?(?:rc[0-9]+)?")


def parse_release(text: str) -> Release:
    """Return the release that *text* names, such as ``1.163`` or ``1.163.2``.

    Raises:
        ValueError: It names none.
    """
    found = _RELEASE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:32]!r} is not a release of Synapse; expected one such as 1.163.2")
    return int(found[1]), int(found[2])


def streams_of(first: Release, last: Release | None = None) -> frozenset[StreamName]:
    """Return the streams that every release from *first* to *last* has.

    Args:
        first: The oldest release; one later than `NEWEST` is taken for that.
        last: The newest release, included; None means *first* alone.
    """
    first = min(first, NEWEST)
    last = first if last is None else min(last, NEWEST)
    return frozenset(
        stream
        for stream, (begin, end) in SYNAPSE_STREAMS.items()
        if begin <= first and (end is None or last <= end)
    )


def assumed_streams(whom: str) -> frozenset[StreamName]:
    """Return the streams that may be told to *whom*, a key of `ASSUMED`."""
    return streams_of(*ASSUMED[whom])
