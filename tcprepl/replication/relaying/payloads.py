"""What is published on a channel, before anybody knows what it says: as lines, and as JSON."""

from __future__ import annotations

import json

import msgspec

_valid_json = msgspec.json.Decoder(msgspec.Raw).decode


def as_line(payload: bytes) -> bytes | None:
    """Return *payload* as one line that can be relayed; None when it cannot."""
    if b"\n" in payload or payload.endswith(b"\r"):
        # Outside of strings, where JSON has no raw line ends, they are only space.
        payload = payload.replace(b"\n", b" ").rstrip()
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            return None
    return payload


def is_json(row: bytes) -> bool:
    """Return whether *row* is JSON, as Synapse reads it."""
    try:
        _valid_json(row)
    except msgspec.DecodeError:
        try:
            json.loads(row)
        except (ValueError, RecursionError):
            return False
    return True
