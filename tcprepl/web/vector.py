"""Positions as a client of the long poll writes them (protocol.md section 13).

A stream may have several writers, each with its own position. What the server itself wrote
is a plain number, as it was in 2016; as soon as another instance has written, the position is
a text that names each: ``master~12,persister1~40``. An instance that is not named stands at 0.
A name with ``~``, ``,`` or ``=`` in it has ``=XX`` (the byte in hexadecimal) for those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from tcprepl.ids import InstanceName, Token
from tcprepl.limits import MAX_NAME_CHARS, MAX_TOKEN

#: The position of each instance; one that is missing stands at 0.
Vector: TypeAlias = Mapping[InstanceName, Token]

#: Asked for instead of a vector: from as far back as the log goes.
START = -1

_TOKEN = re.compile(r"0|[1-9][0-9]{0,18}")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")
_SPECIAL = re.compile(r"[=,~]")


def format_vector(vector: Vector, own: InstanceName) -> int | str:
    """Return *vector* as a number, if nobody but *own* has written, else as a text."""
    written = {instance: token for instance, token in vector.items() if token}
    if written.keys() <= {own}:
        return written.get(own, 0)
    return ",".join(f"{_escape(instance)}~{written[instance]}" for instance in sorted(written))


def parse_vector(text: str, own: InstanceName) -> Vector | None:
    """Return what `format_vector` wrote; None for -1, the start.

    Raises:
        ValueError: *text* is neither -1, nor a token, nor a list of instance~token.
    """
    if text == str(START):
        return None
    if "~" not in text:
        return {own: _token(text)}
    vector: dict[InstanceName, Token] = {}
    for pair in text.split(","):
        name, _, token = pair.partition("~")
        instance = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)
        if not 0 < len(instance) <= MAX_NAME_CHARS:
            raise ValueError("a pair has no name")
        if instance in vector:
            raise ValueError("an instance is named twice")
        vector[instance] = _token(token)
    return vector


def _token(text: str) -> Token:
    if not _TOKEN.fullmatch(text) or int(text) > MAX_TOKEN:
        raise ValueError("not a token")
    return int(text)


def _escape(name: str) -> str:
    return _SPECIAL.sub(lambda found: f"={ord(found[0]):02X}", name)
