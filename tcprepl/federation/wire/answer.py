"""What another server answered, and what that means (protocol.md section 14).

An answer is not believed by its status alone: a page with status 200, which every lapsed domain
gives, delivers nothing. Pure: no clock, no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto

import msgspec

#: Longest wait that an answer may ask for; more is taken for a mistake.
MAX_RETRY_AFTER_MS = 24 * 3600 * 1000

#: Refusals of which nobody can say from outside whether they are about us, the address, or
#: what was sent: the remote may not know us, or may not want this.
_ABOUT_US_OR_CONTENT = frozenset({401, 403, 404})
#: What a proxy says when it had no answer of the server behind it, which may have acted.
_NO_ANSWER_BEHIND = frozenset({502, 504, *range(520, 528)})
#: Statuses of which the request's content is not the reason, and another time may do better.
_ANOTHER_TIME = frozenset({407, 408, 421, 425})

#: What servers answer to a transaction without events.
_USUAL_RECEIPTS = frozenset({b"{}", b'{"pdus":{}}'})


class Meaning(Enum):
    """What an answer to a transaction means."""

    #: The remote has taken it.
    ACCEPTED = auto()
    #: The remote has not taken it and asks to be left alone for a while.
    BUSY = auto()
    #: The remote will not take this content, now or later.
    REFUSED = auto()
    #: The remote has not taken it; whether for its content, for us, or for its own trouble
    #: shows only when it is sent something else.
    DENIED = auto()
    #: The answer does not say whether the transaction was taken.
    UNCLEAR = auto()


class _ErrorBody(msgspec.Struct):
    errcode: str = ""
    error: str = ""


class _RetryBody(msgspec.Struct):
    retry_after_ms: float | None = None


class _TransactionBody(msgspec.Struct):
    pdus: dict[str, msgspec.Raw] = {}  # msgspec copies defaults
    errcode: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination answered.

    Attributes:
        status: The HTTP status.
        body: The body.
        retry_after_ms: How long it asked us to wait, if it did.
        content_type: What it says the body is; empty if it does not say.
        repeated: Whether the request was made before, and nobody knows what came of that.
    """

    status: int
    body: bytes
    retry_after_ms: int | None = None
    content_type: str = ""
    repeated: bool = False

    @property
    def errcode(self) -> str:
        """The Matrix error code of the body, empty if there is none."""
        return self._error().errcode

    @property
    def is_json(self) -> bool:
        """Whether the body may be JSON by what the answer says of it."""
        kind = self.content_type.partition(";")[0].strip().lower()
        return not kind or kind.endswith(("/json", "+json"))

    def describe(self) -> str:
        """Return a line for people: status, code and text, shortened."""
        found = self._error()
        words = [f"HTTP {self.status}", found.errcode, found.error]
        if self.status == 200:
            words = [
                "HTTP 200 without the answer to a transaction:",
                self.content_type or "no type",
            ]
        return " ".join(word for word in words if word)[:200]

    def meaning(self) -> Meaning:
        """Return what this means as the answer to a transaction."""
        status = self.status
        if status == 200:
            return Meaning.ACCEPTED if self._is_receipt() else Meaning.UNCLEAR
        if status in (429, 503):
            return Meaning.BUSY
        if status in _ABOUT_US_OR_CONTENT:
            return Meaning.DENIED
        if status >= 500 and (status not in _NO_ANSWER_BEHIND or self.errcode):
            return Meaning.DENIED
        if 400 <= status < 500 and status not in _ANOTHER_TIME:
            return Meaning.REFUSED
        return Meaning.UNCLEAR

    def _is_receipt(self) -> bool:
        """Whether the body is the answer to a transaction: an object, with ``pdus`` if any."""
        if self.content_type and not self.is_json:
            return False
        if self.body in _USUAL_RECEIPTS:
            return True
        try:
            body = msgspec.json.decode(self.body, type=_TransactionBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return body.errcode is msgspec.UNSET

    def _error(self) -> _ErrorBody:
        try:
            return msgspec.json.decode(self.body, type=_ErrorBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _ErrorBody()


def retry_after_ms(status: int, header: str, date: str, body: bytes, now_s: float) -> int | None:
    """Return how long an answer asks us to wait: by its header, or as Matrix has it.

    Args:
        status: Only 429 and 503 ask.
        header: Its ``Retry-After``: seconds, or an HTTP date; empty without one.
        date: Its ``Date``: against it a date is measured, as the clock over there may be wrong.
        body: Its body, which may hold ``retry_after_ms``.
        now_s: Wall-clock time, against which a date is measured without a ``Date``.
    """
    if status not in (429, 503):
        return None
    asked_ms: float | None = None
    header = header.strip()
    if header.isascii() and header.isdigit():
        asked_ms = int(header[:12]) * 1000
    elif header and (when_s := _http_date_s(header)) is not None:
        sent_s = _http_date_s(date)
        asked_ms = (when_s - (now_s if sent_s is None else sent_s)) * 1000
    if asked_ms is None:
        try:
            asked_ms = msgspec.json.decode(body, type=_RetryBody).retry_after_ms
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    return None if asked_ms is None else int(min(max(asked_ms, 0), MAX_RETRY_AFTER_MS))


def _http_date_s(text: str) -> float | None:
    """Return the time that an HTTP date names, None if it is not one."""
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError, TypeError):
        return None
