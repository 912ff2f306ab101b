"""Rows in: ``POST /_tcprepl/v1/streams/{stream}/rows`` (protocol.md section 13).

A request is atomic: all of its rows are published, or none. They are answered once they are
safe, as the log understands it. A request with a transaction id may be sent again, also
after a restart, and is answered with the tokens of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tcprepl import limits
from tcprepl.errors import BadRow, LogError, UnknownStream, WrittenElsewhere
from tcprepl.http.calls import (
    ApiError,
    Call,
    Response,
    TransactionId,
    busy,
    idempotency_key_of,
    invalid,
    json_response,
    other_request,
    to_the_end,
)
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.metrics import Live
from tcprepl.protocol.display import counted
from tcprepl.protocol.grammar import INSTANCE_SHAPE, is_instance_name
from tcprepl.streams.json_rows import rows_in
from tcprepl.streams.log import Appended
from tcprepl.web.services import WebServices

if TYPE_CHECKING:
    from tcprepl.streams.registry import Registry

T = TypeVar("T")

#: For how long a refusal of the log counts, when nobody tries again.
TROUBLE_S = 10.0

PENDING_BYTES = Live(
    "tcprepl_http_ingest_pending_bytes", "Bytes of posted rows that are not safe yet"
)


class RowsQuery(msgspec.Struct):
    """The parameters of a request with rows."""

    batch: Annotated[bool, Meta(description="Whether all rows share one token.")] = False
    instance: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=limits.MAX_NAME_CHARS,
                description="The writing instance, if it is another one.",
            ),
        ]
        | None
    ) = None
    txn_id: TransactionId | None = None


class Published(Appended, frozen=True, gc=False, omit_defaults=True):
    """The tokens that the rows got, and whether somebody will not hear of them."""

    warning: Annotated[
        str | None, Meta(description="Who will not get these rows, and why; left out if nobody.")
    ] = None


ABOUT = About(
    "Publish rows: all of them, or none",
    Published,
    RowsQuery,
    Annotated[list[Any], Meta(min_length=1, max_length=limits.MAX_INGEST_ROWS)],
    says="The tokens that the rows got.",
    refuses={404: None, 409: None, 503: None},
)


class Ingest:
    """Takes rows over HTTP, as fast as the log does.

    Args:
        services: The ports; uses *registry*, *publisher*, *reactor* and *limits*.
    """

    def __init__(self, services: WebServices) -> None:
        self._registry = services.registry
        self._publisher = services.publisher
        self._unpublished = services.unpublished
        self._max_pending_bytes = services.limits.max_pending_bytes
        self._pending_bytes = 0
        self._reactor = services.reactor
        self._trouble: tuple[float, str] | None = None
        self._source = PENDING_BYTES.add_source(lambda: [((), float(self._pending_bytes))])

    @property
    def trouble(self) -> str | None:
        """Why rows could not be written a moment ago; None when they could, or none came."""
        if self._trouble is None:
            return None
        since, reason = self._trouble
        return reason if self._reactor.seconds() - since < TROUBLE_S else None

    def close(self) -> None:
        """Leave the metrics."""
        PENDING_BYTES.remove_source(self._source)

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the path."""
        path = "/_tcprepl/v1/streams/{stream}/rows"
        yield Route("POST", path, self.post_rows, gate.writing, ABOUT)

    async def post_rows(self, call: Call) -> Response:
        """Publish the rows of the body."""
        stream = call.path_args["stream"]
        check_stream(self._registry, stream)
        asked = call.parameters(RowsQuery, closed=True)
        transaction_id = idempotency_key_of(call, "rows", asked.txn_id)
        if asked.instance is not None:
            check_instance(asked.instance)
        rows = rows_of(call)
        if not rows:
            raise ApiError(
                400, "M_BAD_JSON", "the body is an empty array: expected at least one row"
            )
        if len(rows) > limits.MAX_INGEST_ROWS:
            raise ApiError(
                413,
                "M_TOO_LARGE",
                f"the body has {len(rows)} rows: expected at most {limits.MAX_INGEST_ROWS}",
            )
        appended = await self.publish(
            stream,
            rows,
            batch=asked.batch,
            instance=asked.instance,
            transaction_id=transaction_id,
        )
        count = appended.last - appended.first + 1
        if count != (1 if asked.batch else len(rows)):
            what = counted(len(rows), "row") + (" with one token" if asked.batch else "")
            raise other_request(what, msgspec.structs.asdict(appended))
        warn = self._unpublished
        warning = None if warn is None else warn(appended.stream, appended.instance)
        return json_response(Published(**msgspec.structs.asdict(appended), warning=warning))

    async def publish(
        self,
        stream: str,
        rows: list[bytes],
        *,
        batch: bool = False,
        instance: str | None = None,
        transaction_id: str | None = None,
    ) -> Appended:
        """Publish *rows* and return their tokens.

        Raises:
            ApiError: a row does not fit, the log cannot do it now, or too much waits for the
                disk already.
        """
        size = sum(map(len, rows))
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise busy(429, "rows that were posted before are not on disk yet")

        def settle(result: T) -> T:
            self._pending_bytes -= size
            return result

        try:
            work = self._publisher.publish_json(
                stream, rows, batch=batch, instance=instance, transaction_id=transaction_id
            )
            if not work.called or work.paused:
                self._pending_bytes += size
                # a client that leaves unpublishes nothing
                work = to_the_end(work.addBoth(settle))
            appended = await work
        except BadRow as error:
            extra = {"stream": error.stream, "row": error.index, "field": error.field}
            raise ApiError(400, "TCPREPL_BAD_ROW", str(error), extra=extra) from None
        except UnknownStream as error:
            raise unknown_stream(error, 404) from None
        except WrittenElsewhere as error:
            extra = {"instance": error.instance, "writer": error.writer}
            raise ApiError(409, "TCPREPL_WRITTEN_ELSEWHERE", str(error), extra=extra) from None
        except LogError as error:
            self._trouble = (self._reactor.seconds(), str(error))
            raise busy(503, str(error)) from error
        self._trouble = None
        return appended


def rows_of(call: Call) -> list[bytes]:
    """Return the rows of the body, each as it came.

    Raises:
        ApiError: 400, the body is not a JSON array.
    """
    try:
        return [bytes(row) for row in call.json(list[msgspec.Raw])]
    except ApiError as refusal:
        if refusal.errcode != "M_NOT_JSON":
            raise
        # What msgspec does not take may be JSON all the same.
        try:
            return [bytes(row) for row in rows_in(call.body)]
        except ValueError:
            raise refusal from None


def check_stream(registry: Registry, stream: str) -> None:
    """Refuse a path that names no stream.

    Raises:
        ApiError: 404.
    """
    try:
        registry.get(stream)
    except UnknownStream as error:
        raise unknown_stream(error, 404) from None


def unknown_stream(error: UnknownStream, status: int) -> ApiError:
    """Return the refusal of a stream that the registry does not know."""
    return ApiError(status, "TCPREPL_UNKNOWN_STREAM", str(error), extra={"stream": error.stream})


def check_instance(name: str) -> None:
    """Refuse what the line protocol could not tell from a token or a word of its own.

    Raises:
        ApiError: 400.
    """
    if not is_instance_name(name):
        raise invalid("instance", name, INSTANCE_SHAPE)
