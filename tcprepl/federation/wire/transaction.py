"""The body of a transaction, put together from bytes (protocol.md section 14).

The body is canonical JSON because its parts are: the contents of EDUs come as canonical bytes
and are spliced in, the few other members are written in sorted order. Nothing is decoded, and
the same EDUs with the same timestamp give the same body, so a retry after a restart is equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from msgspec import Raw, Struct

from tcprepl import limits
from tcprepl.errors import FederationError
from tcprepl.federation.wire.edu import PRESENCE, Edu
from tcprepl.ids import ServerName

#: Most EDUs in a transaction; a receiver refuses more.
MAX_EDUS = 100
#: Most PDUs in a transaction; a receiver refuses more.
MAX_PDUS = 50
#: Largest body of a transaction unless configured otherwise.
MAX_TRANSACTION_BYTES = 4 * 1024 * 1024
#: Smallest setting for it: any row that a stream takes has to fit, alone.
MIN_TRANSACTION_BYTES = 2 * limits.MAX_ROW_BYTES
#: Most users in one presence EDU.
MAX_PRESENCE_USERS = 50

#: Everything in a body that is not an EDU or a PDU: names, brackets, timestamp, origin.
ENVELOPE_BYTES = 512
#: What is around a content: ``{"content":``, a comma.
_AROUND_CONTENT_BYTES = 12
_HEAD = b',{"content":'
#: Types whose tail is remembered.
_MAX_TAILS = 1_024

_tails: dict[str, bytes] = {}


class TransactionTooLarge(FederationError):
    """More was put into a transaction than its limits allow: a bug of the caller."""


@dataclass(frozen=True, slots=True)
class TransactionLimits:
    """What one transaction may hold.

    Attributes:
        edus: Most EDUs, up to `MAX_EDUS`.
        pdus: Most PDUs, up to `MAX_PDUS`.
        max_bytes: Largest body, at least `MIN_TRANSACTION_BYTES`.
    """

    edus: int = MAX_EDUS
    pdus: int = MAX_PDUS
    max_bytes: int = MAX_TRANSACTION_BYTES

    def __post_init__(self) -> None:
        if not 1 <= self.edus <= MAX_EDUS:
            raise ValueError(f"edus: {self.edus}; expected 1 to {MAX_EDUS}")
        if not 0 <= self.pdus <= MAX_PDUS:
            raise ValueError(f"pdus: {self.pdus}; expected 0 to {MAX_PDUS}")
        if self.max_bytes < MIN_TRANSACTION_BYTES:
            raise ValueError(
                f"max_bytes: {self.max_bytes}; expected at least {MIN_TRANSACTION_BYTES}"
            )


class _Push(Struct, gc=False, forbid_unknown_fields=True):
    push: list[Raw]


_decode_push = msgspec.json.Decoder(_Push).decode


def _tail(edu_type: str) -> bytes:
    """Return what follows the content of an EDU of *edu_type*."""
    tail = _tails.get(edu_type)
    if tail is None:
        tail = b',"edu_type":%b}' % msgspec.json.encode(edu_type)
        if len(_tails) < _MAX_TAILS:
            _tails[edu_type] = tail
    return tail


@lru_cache(maxsize=16)
def _origin(origin: ServerName) -> bytes:
    """Return what follows the EDUs of a body from *origin*, up to the time."""
    return b'"origin":%b,"origin_server_ts":' % msgspec.json.encode(origin)


def edu_bytes(edu: Edu) -> int:
    """Return how many bytes *edu* takes in a body, its comma included."""
    return len(edu.content) + len(_tail(edu.edu_type)) + _AROUND_CONTENT_BYTES


def build_body(
    origin: ServerName,
    origin_server_ts: int,
    edus: Iterable[Edu],
    pdus: Sequence[bytes | Raw] = (),
    limits: TransactionLimits | None = None,
) -> bytes:
    """Return the canonical JSON body of a transaction.

    Presence EDUs that hold nothing but users are joined into EDUs of up to 50 users, again
    without decoding a user; they stand last. All else keeps its order.

    Args:
        origin: Who sends it.
        origin_server_ts: Wall-clock time in ms at which it was made.
        edus: What to send; contents are canonical JSON.
        pdus: Events to send, canonical JSON each.
        limits: What the transaction may hold.

    Raises:
        TransactionTooLarge: It would exceed a limit.
    """
    limits = limits or TransactionLimits()
    parts: list[bytes | Raw] = []
    presence: list[Edu] = []
    count = 0
    tails = _tails
    for edu in edus:
        edu_type = edu.edu_type
        if edu_type == PRESENCE:
            presence.append(edu)
            continue
        parts += (_HEAD, edu.content, tails.get(edu_type) or _tail(edu_type))
        count += 1
    if presence:
        count += _join_presence(presence, parts)
    if count > limits.edus or len(pdus) > limits.pdus:
        raise TransactionTooLarge(f"{count} EDUs and {len(pdus)} PDUs in one transaction")
    if parts:
        parts[0] = b'{"edus":[{"content":'
        parts.append(b"],")
    else:
        parts.append(b"{")
    parts += (_origin(origin), b'%d,"pdus":[' % origin_server_ts, b",".join(pdus), b"]}")
    body = b"".join(parts)
    if len(body) > limits.max_bytes:
        raise TransactionTooLarge(f"{len(body)} bytes in one transaction")
    return body


def _join_presence(presence: Sequence[Edu], parts: list[bytes | Raw]) -> int:
    """Append presence EDUs to *parts*, joined where they are plain; returns how many they are."""
    tail = _tail(PRESENCE)
    if len(presence) == 1:
        parts += (_HEAD, presence[0].content, tail)
        return 1
    count = 0
    users: list[Raw] = []
    for edu in presence:
        try:
            users += _decode_push(edu.content).push
        except msgspec.DecodeError:
            parts += (_HEAD, edu.content, tail)
            count += 1
    for start in range(0, len(users), MAX_PRESENCE_USERS):
        joined = b",".join(users[start : start + MAX_PRESENCE_USERS])
        parts += (_HEAD, b'{"push":[%b]}' % joined, tail)
        count += 1
    return count
