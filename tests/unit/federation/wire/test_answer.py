"""What an answer means: not its status alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.wire.answer import (
    MAX_RETRY_AFTER_MS,
    Answer,
    Meaning,
    retry_after_ms,
)

MATRIX = b'{"errcode":"M_FORBIDDEN","error":"no"}'
JSON = "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (Answer(200, b'{"pdus":{}}', None, JSON), Meaning.ACCEPTED),
        (Answer(200, b'{"pdus":{"$e":{"error":"no"}}}'), Meaning.ACCEPTED),
        (Answer(200, b"{}"), Meaning.ACCEPTED),
        (Answer(200, b"{}", None, "application/vnd.x+json"), Meaning.ACCEPTED),
        (Answer(200, b"<html></html>", None, "text/html"), Meaning.UNCLEAR),
        (Answer(200, b"<html></html>"), Meaning.UNCLEAR),
        (Answer(200, b"{}", None, "text/html"), Meaning.UNCLEAR),
        (Answer(200, b"[]", None, JSON), Meaning.UNCLEAR),
        (Answer(200, b'{"pdus":[]}', None, JSON), Meaning.UNCLEAR),
        (Answer(200, b'{"pdus":null}', None, JSON), Meaning.UNCLEAR),
        (Answer(200, MATRIX, None, JSON), Meaning.UNCLEAR),
        (Answer(200, b"\xff"), Meaning.UNCLEAR),
        (Answer(200, b""), Meaning.UNCLEAR),
        (Answer(204, b""), Meaning.UNCLEAR),
        (Answer(201, b"{}"), Meaning.UNCLEAR),
        (Answer(301, b""), Meaning.UNCLEAR),
        (Answer(400, b""), Meaning.REFUSED),
        (Answer(413, b"<html>"), Meaning.REFUSED),
        (Answer(422, MATRIX), Meaning.REFUSED),
        (Answer(408, b""), Meaning.UNCLEAR),
        (Answer(401, MATRIX), Meaning.DENIED),
        (Answer(403, b""), Meaning.DENIED),
        (Answer(404, MATRIX), Meaning.DENIED),
        (Answer(429, MATRIX), Meaning.BUSY),
        (Answer(503, b""), Meaning.BUSY),
        (Answer(500, b""), Meaning.DENIED),
        (Answer(502, MATRIX), Meaning.DENIED),
        (Answer(502, b"<html>"), Meaning.UNCLEAR),
        (Answer(504, b""), Meaning.UNCLEAR),
        (Answer(522, b""), Meaning.UNCLEAR),
    ],
)
def test_what_an_answer_means(answer: Answer, meaning: Meaning) -> None:
    assert answer.meaning() is meaning


@given(st.integers(100, 599), st.binary(max_size=60), st.text(max_size=20))
def test_any_answer_means_something(status: int, body: bytes, content_type: str) -> None:
    answer = Answer(status, body, None, content_type)
    assert (answer.meaning() is Meaning.ACCEPTED) <= (status == 200 and answer.is_json)
    assert len(answer.describe()) <= 200


def test_an_answer_in_words() -> None:
    assert Answer(403, MATRIX).describe() == "HTTP 403 M_FORBIDDEN no"
    assert Answer(502, b"<html>").describe() == "HTTP 502"
    assert Answer(502, b"\xff").errcode == ""
    page = Answer(200, b"<html>", None, "text/html")
    assert page.describe() == "HTTP 200 without the answer to a transaction: text/html"


NOW_S = 1_764_169_200.0  # Wed, 26 Nov 2025 15:00:00 GMT
DATE = "Wed, 26 Nov 2025 15:00:00 GMT"
LATER = "Wed, 26 Nov 2025 15:00:40 GMT"


@pytest.mark.parametrize(
    ("status", "header", "date", "body", "expected"),
    [
        (429, "7", "", b"", 7_000),
        (503, " 7 ", "", b"", 7_000),
        (500, "7", "", b"", None),
        (429, LATER, "", b"", 40_000),
        (503, LATER, DATE, b"", 40_000),
        # The clock over there is an hour ahead.
        (429, "Wed, 26 Nov 2025 16:00:40 GMT", "Wed, 26 Nov 2025 16:00:00 GMT", b"", 40_000),
        (429, "Wed, 26 Nov 2025 15:00:40", "", b"", 40_000),
        (429, "Wed, 26 Nov 2025 14:00:00 GMT", "", b"", 0),
        (429, "Wed, 26 Nov 9999 14:00:00 GMT", "nonsense", b"", MAX_RETRY_AFTER_MS),
        (429, "99999999999999999999", "", b"", MAX_RETRY_AFTER_MS),
        (429, "", "", b'{"retry_after_ms":1500}', 1_500),
        (429, "", "", b'{"retry_after_ms":1e300}', MAX_RETRY_AFTER_MS),
        (429, "", "", b'{"retry_after_ms":-5}', 0),
        (429, "soon", "", b'{"retry_after_ms":1500}', 1_500),
        (429, "-5", "", b"{}", None),
        (429, "\u0663", "", b"{}", None),
        (429, "", "", b"<html>", None),
        (429, "Wed, 99 Nov 2025 14:00:00 GMT", "", b"{}", None),
    ],
)
def test_how_long_an_answer_asks_us_to_wait(
    status: int, header: str, date: str, body: bytes, expected: int | None
) -> None:
    assert retry_after_ms(status, header, date, body, NOW_S) == expected


@given(st.text(max_size=40), st.text(max_size=40), st.binary(max_size=40))
def test_whatever_it_asks_is_bounded(header: str, date: str, body: bytes) -> None:
    found = retry_after_ms(429, header, date, body, NOW_S)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_MS
