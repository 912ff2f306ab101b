"""What is left out of rows for whoever may inspect streams, and not have what they keep secret.

Access tokens stand in rows of `caches` (they are the keys of some), push keys in `pushers`, and the
content of EDUs, account data and streams that are not built in is whatever somebody put there. So
of built-in streams it is known what to mask, and of any other the whole row is (protocol.md section
16.1).
"""

from __future__ import annotations

import json
from typing import Any, Final

from tcprepl.ids import StreamName
from tcprepl.streams.registry import BUILT_IN

#: What stands for what is left out.
REDACTED: Final = "<redacted>"
#: Fields of built-in streams that are masked, by place.
_FIELDS: Final[dict[StreamName, tuple[int, ...]]] = {
    "pushers": (2,),
    "federation": (1,),
    "account_data": (3,),
    "tag_account_data": (2,),
    "groups": (3,),
}
_KNOWN: Final = frozenset(stream.name for stream in BUILT_IN if stream.row_type is not None)


def without_access_tokens(stream: StreamName, row: bytes) -> bytes:
    """Return *row* without access tokens: some caches have them for keys."""
    # Escaped, the name of a cache may be written in many ways.
    if stream != "caches" or not (b"access_token" in row or b"\\" in row):
        return row
    value = json.loads(row)
    if not isinstance(value, list) or not value or "access_token" not in str(value[0]):
        return row
    return _compact([value[0], *map(_redacted, value[1:2]), *value[2:]])


def masked(stream: StreamName, row: bytes) -> bytes:
    """Return *row* of a stream without anything that may be secret in it."""
    if stream not in _KNOWN:
        return _compact(REDACTED)
    places = _FIELDS.get(stream)
    if places is None:
        return without_access_tokens(stream, row)
    value = json.loads(row)
    if not isinstance(value, list):
        return _compact(REDACTED)
    return _compact([_redacted(v) if place in places else v for place, v in enumerate(value)])


def _redacted(value: Any) -> Any:
    """Return what stands for *value*: nothing is nothing, and of a list it is known how long."""
    if isinstance(value, list):
        return [REDACTED] * len(value)
    return value and REDACTED


def masked_lines(stream: StreamName, lines: bytes) -> bytes:
    """Return RDATA lines of *stream* in the newest form, their rows masked."""
    parts: list[bytes] = []
    for line in lines.split(b"\n")[:-1]:
        word, name, instance, token, row = line.split(b" ", 4)
        parts.append(b"%b %b %b %b %b\n" % (word, name, instance, token, masked(stream, row)))
    return b"".join(parts)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
