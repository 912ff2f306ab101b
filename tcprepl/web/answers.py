"""What the faces answer, as types: what is encoded, and what ``/openapi.json`` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tcprepl import limits
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.replication.status import LinkStatus, PeerStatus
from tcprepl.streams.holding import DatabaseStatus

#: Two elements. (Tools that read OpenAPI stumble over the schema of a tuple.)
_PAIR = Meta(min_length=2, max_length=2)
#: A place in a stream.
TokenField: TypeAlias = Annotated[Token, Meta(ge=0, le=limits.MAX_TOKEN)]
#: A position as the long poll writes it.
PositionField: TypeAlias = Annotated[
    TokenField | Annotated[str, Meta(pattern="^[^,~]+~[0-9]+(,[^,~]+~[0-9]+)*$")],
    Meta(description="A number, or instance~number for each writer, joined by commas."),
]


class Error(Struct):
    """A refusal."""

    errcode: Annotated[str, Meta(description="Which kind of refusal.")]
    error: Annotated[str, Meta(description="What is wrong, and what was expected.")]


class Missing(Struct):
    """Rows that cannot be had any more."""

    errcode: Literal["TCPREPL_FORKED", "TCPREPL_ROWS_MISSING", "TCPREPL_TOKEN_TOO_OLD"]
    error: Annotated[str, Meta(description="Which rows, and why.")]
    stream: StreamName
    instance: Annotated[InstanceName, Meta(description="Whose rows.")]
    held: Annotated[Token, Meta(description="Where to go on: behind what is missing.")]
    parameter: Annotated[str, Meta(description="Whose position is meant.")]
    position: PositionField


class Forked(Struct):
    """Rows that this log does not have: it was restored from a copy, or is another one."""

    errcode: Literal["TCPREPL_FORKED"]
    error: Annotated[str, Meta(description="Which rows.")]
    stream: StreamName
    instance: Annotated[InstanceName, Meta(description="Whose rows.")]
    held: Annotated[Token, Meta(description="Where to go on; what came after it is void.")]


class Table(Struct):
    """One table of an answer to a long poll."""

    position: int | str
    field_names: list[str]
    rows: list[list[Any]]


class Updates(Struct, omit_defaults=True):
    """What a reader missed."""

    updates: Annotated[
        Sequence[Annotated[Sequence[int | Raw], _PAIR]],
        Meta(description="[token, row], ascending; equal tokens belong together."),
    ]
    upto_token: int
    limited: Annotated[
        bool, Meta(description="Whether there is more up to the token asked for; ask on.")
    ]
    missing: Annotated[
        Annotated[Sequence[int], _PAIR] | UnsetType,
        Meta(
            description="After and up to which token rows are past retention, or in a gap: the "
            "upstream of a relay could not tell them, or began anew."
        ),
    ] = UNSET


class HealthNow(Struct, omit_defaults=True):
    """Whether a process lives and can serve."""

    live: bool
    ready: bool
    reason: str | UnsetType = UNSET
    degraded: Annotated[
        list[str] | UnsetType,
        Meta(
            description="What it serves is not whole, or not new: rows that cannot be read from "
            "the disk; an upstream, or a Redis, that is away, for how long and why."
        ),
    ] = UNSET


class Status(Struct):
    """Everything that the status page shows."""

    server_name: str
    instance: InstanceName
    version: str
    ready: bool
    reason: str | None
    uptime_seconds: float
    rows_per_second: float
    streams: list[dict[str, Any]]
    peers: list[PeerStatus]
    closed: dict[str, int]
    destinations: list[dict[str, Any]]
    links: list[LinkStatus]
    damage: list[str]
    database: DatabaseStatus | None
