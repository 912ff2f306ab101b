"""What a long poll is told whose position cannot be served, and where it can go on."""

from __future__ import annotations

from collections.abc import Sequence

from tcprepl.errors import TokenFromFuture, TokenTooOld
from tcprepl.http.calls import ApiError
from tcprepl.ids import InstanceName, Token
from tcprepl.streams.gaps import Gap, in_words
from tcprepl.web.tables import Feed
from tcprepl.web.vector import Vector, format_vector


def too_old(error: TokenTooOld, feed: Feed, vector: Vector | None, own: InstanceName) -> ApiError:
    """Return the refusal of a position whose following rows are gone."""
    return ApiError(
        410,
        "TCPREPL_TOKEN_TOO_OLD",
        f"{error}; read on from {error.held}, or from -1",
        extra=where_to_go_on(feed, vector, error.instance, error.held, own),
    )


def rows_missing(
    feed: Feed,
    vector: Vector | None,
    instance: InstanceName,
    gaps: Sequence[Gap],
    own: InstanceName,
) -> ApiError:
    """Return the refusal of a position that stands in a gap, and in those that adjoin it."""
    held = gaps[-1].upto
    return ApiError(
        410,
        "TCPREPL_ROWS_MISSING",
        f"stream {feed.stream} of {instance}: {in_words(gaps)}; "
        f"go on from {held}, and forget what was built from earlier rows",
        extra=where_to_go_on(feed, vector, instance, held, own),
    )


def where_to_go_on(
    feed: Feed, vector: Vector | None, instance: InstanceName, held: Token, own: InstanceName
) -> dict[str, object]:
    """Return the members that say which position cannot be served, and what to ask instead."""
    return {
        "stream": feed.stream,
        "instance": instance,
        "held": held,
        "parameter": feed.parameter,
        "position": format_vector({**(vector or {}), instance: held}, own),
    }


def from_future(error: TokenFromFuture) -> ApiError:
    """Return the refusal of a position that was never written."""
    return ApiError(
        409,
        "TCPREPL_TOKEN_FROM_FUTURE",
        f"{error}; this log is not the one the position came from: start anew from -1",
        extra={"stream": error.stream, "instance": error.instance, "held": error.held},
    )
