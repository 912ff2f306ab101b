"""``GET /_synapse/replication/get_repl_stream_updates/{stream}/{txn}`` (protocol.md section 13).

What a Synapse worker (1.13 and newer) asks when POSITION tells it that it missed rows. The
answer is whole tokens of ``(from_token, upto_token]`` of one instance, as they went out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct

from tcprepl import limits
from tcprepl.errors import UnknownStream
from tcprepl.http.calls import Call, Response, invalid, json_response, missing
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.metrics import DROPPED
from tcprepl.streams.cursor import AtHead, Limits
from tcprepl.streams.gaps import Cause, Gap, in_words
from tcprepl.streams.log import Page
from tcprepl.streams.masking import masked
from tcprepl.web.answers import Forked, Updates
from tcprepl.web.incarnations import forked, said_incarnation, void_above
from tcprepl.web.ingest import unknown_stream
from tcprepl.web.services import WebServices

logger = get_logger(__name__)

_EXPECTED = "an integer from 0 to 2^63-1"


class UpdatesQuery(Struct):
    """The parameters of a catch-up; a negative token, as old senders begin with, is 0."""

    from_token: Annotated[int, Meta(description="Exclusive.")]
    upto_token: Annotated[int, Meta(description="Inclusive.")]
    instance: Annotated[str, Meta(min_length=1, description="Whose rows, if not ours.")] | None = (
        None
    )


class CatchUp:
    """Serves what a reader missed.

    Args:
        services: The ports; uses *log*, *registry* and *instance*.
    """

    def __init__(self, services: WebServices) -> None:
        self._log = services.log
        self._registry = services.registry
        self._own = services.instance

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the path."""
        about = About(
            "What a Synapse worker missed: whole tokens of (from_token, upto_token]",
            Updates,
            UpdatesQuery,
            says="The rows.",
            refuses={410: Forked},
        )
        path = "/_synapse/replication/get_repl_stream_updates/{stream}/{txn}"
        yield Route("GET", path, self.get_updates, gate.reading, about)

    async def get_updates(self, call: Call) -> Response:
        """Answer ``{"updates": [[token, row], ...], "upto_token", "limited"}``.

        A reader of these has no way to be told to start anew, and an error would only make it
        ask again for ever: what is past retention, or in a gap, is left out, and ``missing``
        says which tokens that concerns. Rows before a gap come in an answer of their own.
        """
        stream = call.path_args["stream"]
        try:
            self._registry.get(stream)
        except UnknownStream as error:
            raise unknown_stream(error, 400) from None
        after = _token(call, "from_token")
        upto = _token(call, "upto_token")
        instance = self._instance(stream, call.param("instance"))
        said = said_incarnation(call)
        held = void_above(self._log, (stream, instance), after, said)
        if held is not None:
            raise forked((stream, instance), after, held, {})
        position = self._log.position(stream, instance)
        if after >= min(upto, position):  # also when the writer had to start anew
            # What is above the position is to come: nobody may take it for told.
            return _answer([], min(upto, max(after, position)), limited=False, gap=None)
        upto = min(upto, position)
        # A stream of states in memory still knows the newest row of each key below its floor.
        cursor = self._log.cursor((stream, instance), after, compacted=True)
        asked = Limits(upto, limits.CATCH_UP_ROWS)
        gaps: list[Gap] = []
        while not isinstance(answer := await cursor.arrived(asked), Page | AtHead):
            if isinstance(answer, Gap):  # else states are told again, all of them
                gaps.append(answer)
        gap = (after, gaps[-1].upto) if gaps else None
        if gap is not None:
            self._say(stream, instance, gap, gaps)
        if not isinstance(answer, Page):
            return _answer([], upto, limited=False, gap=gap)
        masks = call.grant.masks(stream)
        rows = [(token, Raw(masked(stream, row) if masks else row)) for token, row in answer.rows()]
        return _answer(rows, answer.upto, limited=answer.upto < upto, gap=gap)

    def _say(
        self,
        stream: StreamName,
        instance: InstanceName,
        missing: tuple[Token, Token],
        gaps: Sequence[Gap],
    ) -> None:
        """Count and log what a reader is not told."""
        others = [gap for gap in gaps if gap.cause is not Cause.RETENTION]
        past = len(others) < len(gaps)
        if past:
            DROPPED.labels("rows", "asked for past retention").inc()
        if others:
            DROPPED.labels("rows", "asked for in a gap").inc()
        logger.warning(
            "http.catch_up.gap",
            stream=stream,
            instance=instance,
            after=missing[0],
            upto=missing[1],
            why="; ".join(filter(None, ["past retention" * past, in_words(others)])),
        )

    def _instance(self, stream: StreamName, asked: str | None) -> InstanceName:
        if asked is not None:
            return asked
        writers = [
            instance
            for name, instance in self._log.pairs()
            if name == stream and self._log.position(name, instance)
        ]
        if self._own in writers or not writers:
            return self._own
        if len(writers) > 1:
            raise missing("instance", f"one of {', '.join(writers)}, who all write {stream}")
        return writers[0]


def _token(call: Call, name: str) -> Token:
    text = call.param(name)
    if text is None:
        raise missing(name, _EXPECTED)
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        raise invalid(name, text, _EXPECTED)
    return min(max(0, int(text)), limits.MAX_TOKEN)


def _answer(
    rows: list[tuple[Token, Raw]],
    upto: Token,
    *,
    limited: bool,
    gap: tuple[Token, Token] | None,
) -> Response:
    return json_response(Updates(rows, upto, limited, UNSET if gap is None else gap))
