"""One request and its answer, as handlers see them.

What comes from outside is decoded here and nowhere else: header values, the query, the body.
None of it can raise anything but `ApiError`, which is a refusal with a status, a code for
programs and a sentence for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.access import NOTHING
from tcprepl.errors import did_you_mean
from tcprepl.http.parameters import Unfit, parameters_of
from tcprepl.http.request import Request
from tcprepl.ids import idempotency_key
from tcprepl.logger import get_logger

logger = get_logger(__name__)

JSON = "application/json"
#: Sends the head of an answer that goes on, given what pauses it.
Begin: TypeAlias = Callable[[Any], None]

T = TypeVar("T")

#: The query parameter that makes a request safe to repeat.
TransactionId: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=limits.MAX_TRANSACTION_ID_CHARS,
        description="Makes the request safe to repeat; the header Idempotency-Key says the same.",
    ),
]


class ApiError(Exception):
    """An answer that refuses: a status, a code for programs and a sentence for people.

    Attributes:
        status: The HTTP status.
        errcode: Which kind of refusal; a Matrix ``M_...`` code, or one of ours.
        message: What is wrong, where, and what was expected.
        headers: Further response headers.
        extra: Further members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        errcode: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.message = message
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def response(self) -> Response:
        """Return what goes to the client."""
        return json_response(
            {"errcode": self.errcode, "error": self.message, **self.extra},
            status=self.status,
            headers=self.headers,
        )


def missing(name: str, expectation: str) -> ApiError:
    """Return the refusal of a request that lacks the parameter *name*."""
    return ApiError(
        400, "M_MISSING_PARAM", f"parameter {name!r} is missing: expected {expectation}"
    )


def invalid(name: str, value: object, expectation: str) -> ApiError:
    """Return the refusal of *value* for *name*."""
    return ApiError(
        400,
        "M_INVALID_PARAM",
        f"{name} is {excerpt(value)}: expected {expectation}",
    )


def excerpt(value: object, length: int = 80) -> str:
    """Return *value* quoted for a message, shortened, without line ends."""
    text = ascii(value)
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass(slots=True)
class Response:
    """What a handler answers.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        content_type: Its media type.
        headers: Further headers.
        stream: For an answer that goes on: called with the request and a function that sends the
            head, given an ``IPushProducer``; it writes and finishes. *body* is ignored then.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[Request, Begin], None] | None = None


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *value* as a JSON response."""
    return Response(status, msgspec.json.encode(value), JSON, headers or {})


class Call:
    """One request, as handlers see it.

    Attributes:
        request: The request as it came.
        path_args: The arguments of its path.
        caller: Whose transaction ids its own are among; the guard that let it in says so.
        grant: What the caller may do; the guard says that as well.
        token: The digest of the token that it was let in with.
    """

    __slots__ = ("_query", "caller", "grant", "path_args", "request", "token")

    def __init__(self, request: Request, path_args: Mapping[str, str]) -> None:
        self.request = request
        self.path_args = path_args
        self.caller = ""
        self.grant = NOTHING
        self.token: bytes | None = None
        self._query: list[tuple[str, str]] | None = None

    @property
    def method(self) -> str:
        """The method, upper case."""
        return self.request.method.decode("ascii", "replace")

    @property
    def body(self) -> bytes:
        """The whole request body."""
        return self.request.body

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The query's (name, value) pairs, decoded, in order."""
        if self._query is None:
            raw = self.request.uri.partition(b"?")[2]
            if not raw:
                self._query = []
                return self._query
            try:
                self._query = parse_qsl(
                    raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=200
                )
            except ValueError as error:
                raise ApiError(
                    400, "M_INVALID_PARAM", f"the query is not percent-encoded UTF-8: {error}"
                ) from None
        return self._query

    def param(self, name: str) -> str | None:
        """Return the query parameter *name*; None when absent; refuse it when given twice."""
        found = [value for key, value in self.query if key == name]
        if len(found) > 1:
            raise invalid(name, found, "it once")
        return found[0] if found else None

    def parameters(self, type_: type[T], *, closed: bool = False) -> T:
        """Return the query parameters that the struct *type_* names; refuse what does not fit.

        Others are passed over, or refused if the type is *closed*.
        """
        given: dict[str, object] = {}
        asked = self.query
        known = parameters_of(cast("Any", type_))
        if closed and asked:
            names = {parameter.name for parameter in known}
            for name, _ in asked:
                if name not in names:
                    near = did_you_mean(name, names)
                    raise ApiError(
                        400, "M_INVALID_PARAM", f"unknown parameter {excerpt(name)}{near}"
                    )
        for parameter in known:
            text = self.param(parameter.name) if asked else None
            if text is not None:
                try:
                    given[parameter.name] = parameter.read(text)
                except Unfit:
                    raise invalid(parameter.name, text, parameter.expectation) from None
            elif parameter.required:
                raise missing(parameter.name, parameter.expectation)
        return msgspec.convert(given, type_)

    def header_values(self, name: str) -> list[str]:
        """Return every value of the header *name*.

        Raises:
            ApiError: 400, one of them is not UTF-8.
        """
        values = self.request.headers.get(name.lower().encode("ascii"), [])
        try:
            return [value.decode("utf-8") for value in values]
        except UnicodeDecodeError:
            raise ApiError(400, "M_INVALID_PARAM", f"header {name} is not UTF-8") from None

    def header(self, name: str) -> str | None:
        """Return the header *name*; None when absent; refuse it when given twice."""
        values = self.header_values(name)
        if len(values) > 1:
            raise ApiError(400, "M_INVALID_PARAM", f"header {name} is given twice: expected once")
        return values[0] if values else None

    def json(self, type_: type[T]) -> T:
        """Return the body decoded as *type_*; refuse it with the place that is wrong."""
        body = self.body
        if not body:
            raise ApiError(400, "M_NOT_JSON", "the body is empty: expected JSON")
        try:
            body.decode("utf-8")
            return msgspec.json.decode(body, type=type_)
        except UnicodeDecodeError as error:
            raise ApiError(
                400, "M_NOT_JSON", f"the body is not UTF-8 at byte {error.start}"
            ) from None
        except msgspec.ValidationError as error:
            raise ApiError(400, "M_BAD_JSON", f"the body does not fit: {error}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise ApiError(400, "M_NOT_JSON", f"the body is not JSON: {error}") from None


def busy(status: int, why: str) -> ApiError:
    """Return the refusal of a request that may be sent again a little later."""
    return ApiError(
        status,
        "M_LIMIT_EXCEEDED" if status == 429 else "TCPREPL_LOG_UNAVAILABLE",
        f"not now: {why}",
        headers={"Retry-After": str(limits.INGEST_RETRY_S)},
        extra={"retry_after_ms": limits.INGEST_RETRY_S * 1000},
    )


def idempotency_key_of(call: Call, door: str, *given: str | None) -> str | None:
    """Return what makes *call* safe to repeat, if it says so; it counts for its caller only.

    Args:
        call: The request; its header Idempotency-Key may say it, too.
        door: Which path; another one's ids are others.
        given: What the query and the body say.

    Raises:
        ApiError: 400, it has no usable length, or is given in two ways that differ.
    """
    names = ("header Idempotency-Key", "txn_id", "transaction_id")
    found = {
        name: value
        for name, value in zip(names, (call.header("Idempotency-Key"), *given), strict=False)
        if value is not None
    }
    for name, value in found.items():
        if not 0 < len(value) <= limits.MAX_TRANSACTION_ID_CHARS:
            raise invalid(name, value, f"1 to {limits.MAX_TRANSACTION_ID_CHARS} characters")
    if len(set(found.values())) > 1:
        raise ApiError(400, "M_INVALID_PARAM", f"{' and '.join(found)} differ: expected one id")
    return idempotency_key(door, call.caller, *set(found.values())) if found else None


def other_request(what: str, answer: Mapping[str, object]) -> ApiError:
    """Return the refusal of a transaction id that was taken with other rows.

    Args:
        what: What this request has, in words.
        answer: The stream, the instance, and the tokens that those rows got.
    """
    return ApiError(
        409,
        "TCPREPL_OTHER_REQUEST",
        f"this transaction id was taken with other rows, {answer['first']} to {answer['last']} of "
        f"{answer['stream']}; this request has {what}, and nothing of it was written: give it an "
        "id of its own",
        extra=answer,
    )


def to_the_end(work: Deferred[T]) -> Deferred[T]:
    """Return a Deferred with the outcome of *work* that may be cancelled, and *work* not.

    For what is not undone when the client goes away, or what others wait for as well.
    """
    outcome: Deferred[T] = Deferred()

    def settle(result: T | Failure) -> None:
        if not outcome.called:
            outcome.callback(cast("T", result))
        elif isinstance(result, Failure) and not result.check(ApiError):
            logger.error("http.work.failed", exc_info=result.value)

    _ = work.addBoth(settle)
    return outcome
