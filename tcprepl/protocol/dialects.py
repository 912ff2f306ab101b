"""What differs between the dialects of the wire, as data (protocol.md section 15).

A dialect is named after the first Synapse release that spoke it, except for ``2017``
(0.21 to 1.12), ``redis`` (one line to a pub/sub payload, 1.92 and later) and ``tcprepl``,
which is the newest form plus chosen streams and in-band resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tcprepl.limits import MAX_LINE_BYTES, MAX_NATIVE_LINE_BYTES

#: The instance that dialects without instance names mean.
DEFAULT_INSTANCE: Final = "master"
#: The name of the dialect that only our own peers speak.
NATIVE: Final = "tcprepl"
#: Marks a peer that understands the ``tcprepl`` dialect, in the greeting's PING.
NATIVE_TAG: Final = "tcprepl/1"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect; everything that code may branch on is an attribute here.

    Attributes:
        name: Its key in `DIALECTS`.
        rdata_instance: Whether RDATA and POSITION name the instance.
        position_tokens: How many tokens POSITION carries.
        in_band_resume: Whether REPLICATE names a stream and a token, and the server sends
            the rows that were missed.
        announced: Whether RDATA counts only after a POSITION of its stream.
        user_sync_arguments: How many arguments USER_SYNC has.
        ack_instance: Whether FEDERATION_ACK names the instance.
        over_tcp: Whether it is spoken on a connection of our own.
        max_line_bytes: Longest line the peer accepts, delimiter excluded.
    """

    name: str
    rdata_instance: bool
    position_tokens: int
    in_band_resume: bool
    announced: bool
    user_sync_arguments: int
    ack_instance: bool
    over_tcp: bool
    max_line_bytes: int


def _dialect(
    name: str,
    *,
    rdata_instance: bool = True,
    position_tokens: int = 2,
    in_band_resume: bool = False,
    announced: bool = True,
    user_sync_arguments: int = 4,
    ack_instance: bool = True,
    over_tcp: bool = True,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Dialect:
    return Dialect(
        name,
        rdata_instance,
        position_tokens,
        in_band_resume,
        announced,
        user_sync_arguments,
        ack_instance,
        over_tcp,
        max_line_bytes,
    )


#: Every dialect by name, oldest first.
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            _dialect(
                "2017",
                rdata_instance=False,
                position_tokens=1,
                in_band_resume=True,
                announced=False,
                user_sync_arguments=3,
                ack_instance=False,
            ),
            _dialect("1.13", position_tokens=1, ack_instance=False),
            _dialect("1.14", position_tokens=1, ack_instance=False),
            _dialect("1.18", position_tokens=1),
            _dialect("1.22"),
            _dialect(
                "redis",
                user_sync_arguments=5,
                over_tcp=False,
                max_line_bytes=MAX_NATIVE_LINE_BYTES,
            ),
            _dialect(
                NATIVE,
                in_band_resume=True,
                user_sync_arguments=5,
                max_line_bytes=MAX_NATIVE_LINE_BYTES,
            ),
        )
    }
)
