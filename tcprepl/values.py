"""What values of a configuration may look like: durations, sizes, names, streams, addresses.

Each is read from what YAML or a command line gives; what does not fit is a `ValueError`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf

from tcprepl import limits
from tcprepl.access import ALL, Streams
from tcprepl.addresses import Address, parse_address

_NAME = re.compile(r"[^\s\x00-\x1f\x7f*]+")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNITS_BYTES = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _addresses(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(parse_address(item) if isinstance(item, str) else item for item in value)
    return value


def _host_port(value: str) -> str:
    if parse_address(value).port is None:
        raise ValueError("no port")
    return value


def _range(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)", value)
        if not found:
            raise ValueError("no unit")
        return float(found[1]) * _UNITS_S[found[2]]
    return value


def _size(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+)\s*([BKMGT]?)(?:i?B)?", value)
        if not found:
            raise ValueError("no size")
        return int(found[1]) * _UNITS_BYTES[found[2]]
    return value


def _version(value: object) -> object:
    """Let 1.13 be written without quotes."""
    return str(value) if isinstance(value, float) else value


def _or_none(value: object) -> object:
    """Let a command line say null."""
    return None if str(value) == "none" else value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value) > limits.MAX_NAME_CHARS:
        raise ValueError("not a name")
    return value


def _token_name(value: str) -> str:
    if value == "anonymous":
        raise ValueError("it stands for who says no token; expected another name")
    return _name(value)


def _streams(value: object) -> object:
    if value == "all":
        return ALL
    if isinstance(value, list | tuple):
        return Streams(frozenset(_name(str(item)) for item in value))
    return value


def _name_or_any(value: str) -> str:
    return value if value == "*" else _name(value)


Addresses: TypeAlias = Annotated[tuple[Address, ...], BeforeValidator(_addresses)]
AddressRange: TypeAlias = Annotated[str, AfterValidator(_range)]
HostPort: TypeAlias = Annotated[str, AfterValidator(_host_port)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Size: TypeAlias = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Name: TypeAlias = Annotated[str, AfterValidator(_name)]
NameOrAny: TypeAlias = Annotated[str, AfterValidator(_name_or_any)]
TokenName: TypeAlias = Annotated[str, AfterValidator(_token_name)]
StreamNames: TypeAlias = Annotated[InstanceOf[Streams], BeforeValidator(_streams)]
DialectName: TypeAlias = Annotated[Literal["auto", "1.13", "1.22"], BeforeValidator(_version)]
Directory: TypeAlias = Annotated[Path | None, BeforeValidator(_or_none)]
