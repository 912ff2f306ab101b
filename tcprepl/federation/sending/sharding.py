"""Which federation sender is responsible for a destination (protocol.md section 14).

The rule is Synapse's, so that both can share the work of one deployment: the SHA-256 digest of
the destination, read as one unsigned little-endian integer, modulo the number of senders. Every
sender has to hold the same list in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from tcprepl.ids import InstanceName, ServerName

#: Destinations whose sender is remembered.
_REMEMBERED = 65_536


def responsible_sender(
    destination: ServerName, senders: Sequence[InstanceName]
) -> InstanceName | None:
    """Return the name of the sender responsible for *destination*, None without senders."""
    if not senders:
        return None
    digest = sha256(destination.encode("utf-8")).digest()
    return senders[int.from_bytes(digest, "little") % len(senders)]


class Shard:
    """The share of one sender among all.

    Attributes:
        name: The sender's name.
        senders: All senders, in the agreed order.
    """

    def __init__(self, name: InstanceName, senders: Sequence[InstanceName]) -> None:
        """Make the share of *name*.

        Raises:
            ValueError: *name* is not one of *senders*, or one is there twice.
        """
        senders = tuple(senders) or (name,)
        if name not in senders:
            raise ValueError(f"name: {name!r}; expected one of the senders {', '.join(senders)}")
        if len(set(senders)) != len(senders):
            raise ValueError(f"senders: {', '.join(senders)}; expected each name once")
        self.name = name
        self.senders = senders
        self.whole = len(senders) == 1
        self._owns = lru_cache(_REMEMBERED)(self._compute)

    def owns(self, destination: ServerName) -> bool:
        """Whether *destination* is ours to send to."""
        return self.whole or self._owns(destination)

    def _compute(self, destination: ServerName) -> bool:
        return responsible_sender(destination, self.senders) == self.name
