"""What is published on a channel, before anybody knows what it says: as lines, and as JSON."""

from __future__ import annotations

import msgspec

from tcprepl.streams.json_rows import is_json, one_value


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


def are_lines(payloads: list[bytes]) -> bool:
    """Return whether each of *payloads* can be relayed as it is; what is odd may be false."""
    together = b"\n".join(payloads)
    return together.isascii() and b"\r" not in together and together.count(b"\n") < len(payloads)


def are_json(rows: list[bytes]) -> bool:
    """Return whether all of *rows* are JSON, as Synapse reads it."""
    try:
        for row in rows:
            one_value(row)
    except (msgspec.DecodeError, RecursionError):
        return all(map(is_json, rows))
    return True
