"""Which history a reader over HTTP got its position in (protocol.md sections 7.11 and 13).

Every answer names the incarnation of the log in a header. A reader that says it with the position
that came in that answer is told if this log has other rows under that token by now.
"""

from __future__ import annotations

from typing import Final

from tcprepl.http.calls import ApiError, Call, invalid
from tcprepl.ids import IncarnationId, Pair, Token
from tcprepl.limits import MAX_NAME_CHARS
from tcprepl.streams.log import Log

#: The header of an answer, and of a request that says where its positions are from.
INCARNATION_HEADER: Final = "Tcprepl-Incarnation"


def said_incarnation(call: Call) -> IncarnationId | None:
    """Return the incarnation in which the reader got its positions, if it says.

    Raises:
        ApiError: 400, it is none.
    """
    said = call.header(INCARNATION_HEADER)
    if said is not None and not 0 < len(said) <= MAX_NAME_CHARS:
        raise invalid(INCARNATION_HEADER, said, "what the header of an answer said")
    return said


def void_above(log: Log, pair: Pair, token: Token, said: IncarnationId | None) -> Token | None:
    """Return above which token a reader's rows are void; None if all of them count."""
    if said is None or not token:
        return None
    shared = log.history.shared(pair, token, said)
    if shared == token:
        return None
    return log.goes_on_after(pair, shared or 0)


def forked(pair: Pair, token: Token, held: Token, extra: dict[str, object]) -> ApiError:
    """Return the refusal of a position in a history that this log does not have."""
    stream, instance = pair
    return ApiError(
        410,
        "TCPREPL_FORKED",
        f"rows of {stream} of {instance} up to {token} are not all of this log, which was restored "
        f"from a copy, or is another one; forget what came after {held}, and go on from there",
        extra={"stream": stream, "instance": instance, "held": held, **extra},
    )
