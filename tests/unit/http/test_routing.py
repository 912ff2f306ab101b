"""The router, requests and responses."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred, succeed

from tcprepl.http.calls import ApiError, Call, Response, excerpt, json_response
from tcprepl.http.channel import LimitedSite
from tcprepl.http.routing import About, Route, Router, header_lines
from tests.web_site import Exchange, Stage

ABOUT = About("Something")


class Numbers(Struct):
    """Parameters of the test's own."""

    n: Annotated[int, Meta(ge=-1, le=9)]
    f: bool = False


class Small(Stage):
    """A site of a few routes of the test's own."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Deferred[Response]] = []
        self.cancelled = 0

        def let_in(call: Call) -> None:
            if call.param("denied") is not None:
                raise ApiError(403, "M_FORBIDDEN", "no")

        def show(call: Call) -> Response:
            return json_response({"args": call.path_args, "query": call.query})

        def number(call: Call) -> Response:
            asked = call.parameters(Numbers)
            return json_response([asked.n, asked.f])

        def body(call: Call) -> Response:
            return json_response(call.json(list[int]))

        def header(call: Call) -> Response:
            return json_response(call.header("X-Test"))

        def broken(call: Call) -> Response:
            raise RuntimeError("a bug")

        def later(call: Call) -> Deferred[Response]:
            def cancel(_: Deferred[Response]) -> None:
                self.cancelled += 1

            self.waiting.append(Deferred(cancel))
            return self.waiting[-1]

        def chained(call: Call) -> Deferred[Response]:
            return succeed(call).addCallback(later)

        async def nothing(call: Call) -> Response:
            return Response(204)

        routes = (
            Route("GET", "/a/{b}/c", show, let_in, ABOUT),
            Route("PUT", "/a/{b}/c", show, let_in, ABOUT, cors=True),
            Route("GET", "/number", number, let_in, ABOUT),
            Route("POST", "/body", body, let_in, ABOUT),
            Route("GET", "/header", header, let_in, ABOUT),
            Route("GET", "/broken", broken, let_in, ABOUT),
            Route("GET", "/later", later, let_in, ABOUT),
            Route("GET", "/chained", chained, let_in, ABOUT),
            Route("GET", "/nothing", nothing, let_in, ABOUT),
        )
        self.site = LimitedSite(Router(routes), self.clock)


@pytest.fixture
def small() -> Any:
    """A small site, checked for leftovers."""
    stage = Small()
    yield stage
    stage.close()


def test_arguments_and_query_are_decoded(small: Small) -> None:
    """Percent-encoding is undone once, plus means a blank."""
    answer = small.ask("GET", "/a/%21r%2Fx/c?q=%C3%A9+y&empty=&q2=a%2526")
    assert answer.json == {
        "args": {"b": "!r/x"},
        "query": [["q", "é y"], ["empty", ""], ["q2", "a%26"]],
    }
    assert answer.headers["server"] == "tcprepl"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_head_is_a_get_without_its_body(small: Small) -> None:
    """The length is told all the same."""
    answer = small.ask("HEAD", "/a/b/c")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/", "/a", "/a//c", "/a/b/c/", "/x/y/z", "/a/b/c/%2E%2E"])
def test_unknown_paths_are_404(small: Small, path: str) -> None:
    """With what was asked for in the error."""
    status, errcode, error = small.get(path).error
    assert (status, errcode) == (404, "M_UNRECOGNIZED")
    assert error.startswith("no such path: '/")


def test_unknown_method_is_405_with_the_allowed_ones(small: Small) -> None:
    """GET brings HEAD along."""
    answer = small.ask("DELETE", "/a/b/c")
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, PUT, HEAD"


def test_preflight_is_answered_where_scripts_may_come(small: Small) -> None:
    """Only for routes that allow other origins."""
    answer = small.ask("OPTIONS", "/a/b/c")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert small.ask("OPTIONS", "/number").status == 405
    assert small.ask("PUT", "/a/b/c").headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in small.ask("GET", "/a/b/c").headers


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/number", "parameter 'n' is missing: expected an integer from -1 to 9"),
        ("/number?n=", "n is '': expected an integer from -1 to 9"),
        ("/number?n=10", "n is '10': expected an integer from -1 to 9"),
        ("/number?n=1.0", "n is '1.0': expected an integer from -1 to 9"),
        ("/number?n=1&n=2", "n is ['1', '2']: expected it once"),
        ("/number?n=1&f=maybe", "f is 'maybe': expected 1 or 0"),
    ],
)
def test_bad_parameters_say_what_was_expected(small: Small, path: str, message: str) -> None:
    """Name, value, expectation."""
    assert small.get(path).error[::2] == (400, message)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("n=-1", [-1, False]),
        ("n=9&f=1", [9, True]),
        ("n=0&f=true", [0, True]),
        ("n=0&f=0", [0, False]),
    ],
)
def test_good_parameters(small: Small, path: str, expected: list[object]) -> None:
    """Integers and flags."""
    assert small.get(f"/number?{path}").json == expected


@pytest.mark.parametrize("path", ["/a/b/c?q=%ff", "/a/%ff/c", "/a/b/c?q=\u00e9"])
def test_what_is_not_utf8_is_400(small: Small, path: str) -> None:
    """In the path and in the query."""
    exchange = Exchange(small).send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
    assert exchange.answer.status == 400
    exchange.leave()


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b"[1,", "M_NOT_JSON"),
        (b"[" * 100_000, "M_BAD_JSON"),
        (b"\xff", "M_NOT_JSON"),
        (b"{}", "M_BAD_JSON"),
        (b'["x"]', "M_BAD_JSON"),
    ],
)
def test_bad_bodies(small: Small, body: bytes, errcode: str) -> None:
    """Not JSON, or JSON of another shape."""
    assert small.ask("POST", "/body", body=body).error[:2] == (400, errcode)
    assert small.ask("POST", "/body", body=b"[1]").json == [1]
    assert small.ask("POST", "/body").error[2] == "the body is empty: expected JSON"


def test_a_header_given_twice_is_refused(small: Small) -> None:
    """Two answers to one question are none."""
    assert small.get("/header").json is None
    assert small.ask("GET", "/header", headers={"X-Test": "a"}).json == "a"
    raw = b"GET /header HTTP/1.1\r\nHost: x\r\nX-Test: a\r\nX-Test: b\r\n\r\n"
    exchange = Exchange(small).send(raw)
    assert exchange.answer.error[2] == "header X-Test is given twice: expected once"
    exchange.leave()


def test_the_guard_is_asked_first(small: Small) -> None:
    """A refusal never reaches the handler."""
    assert small.get("/broken", denied=1).error == (403, "M_FORBIDDEN", "no")


def test_a_bug_is_logged_where_it_happened_and_answered_with_500(small: Small) -> None:
    """The client learns nothing of it but that it was not its fault."""
    with capture_logs() as logs:
        answer = small.get("/broken")
    assert answer.error[:2] == (500, "M_UNKNOWN")
    assert "a bug" not in answer.json["error"]
    failed = [entry for entry in logs if entry["event"] == "http.request.failed"]
    assert [(entry["route"], entry["exc_info"]) for entry in failed] == [("/broken", True)]


def test_an_answer_may_come_later(small: Small) -> None:
    """The connection is kept meanwhile, and pipelined requests wait their turn."""
    exchange = small.open("GET", "/later").send(b"GET /number?n=3 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not exchange.answered
    small.waiting[0].callback(json_response("now"))
    first, second = exchange.transport.value().split(b"HTTP/1.1 200 OK")[1:]
    assert first.endswith(b'"now"')
    assert second.endswith(b"[3,false]")
    exchange.leave()


@pytest.mark.parametrize("path", ["/later", "/chained"])
def test_a_client_that_leaves_cancels_the_work(small: Small, path: str) -> None:
    """Nothing is written to it; also where the work has begun, and waits for some more."""
    exchange = small.open("GET", path)
    exchange.leave()
    assert small.cancelled == 1
    assert exchange.transport.value() == b""


def test_a_cancelled_handler_is_a_bug_when_the_client_is_there(
    small: Small, unhandled_errors: list[str]
) -> None:
    """It does not pass for a client that left."""
    with capture_logs() as logs:
        exchange = small.open("GET", "/later")
        small.waiting[0].cancel()
    assert [entry["event"] for entry in logs] == ["background.failed"]
    exchange.leave()
    unhandled_errors.clear()


def test_an_answer_without_a_body(small: Small) -> None:
    """204 has neither body nor type."""
    answer = small.get("/nothing")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers.get("content-type") is None


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\x85", "\u2028"])
def test_no_header_makes_a_second_one(end: str) -> None:
    """A value is one line, whatever it is."""
    assert header_lines({"A": f"b{end}C: d"}) == b"A: b C: d\r\n"


def test_excerpts_are_short_and_harmless() -> None:
    """Control characters are escaped, long values cut."""
    assert excerpt("\x1b[2J\n") == "'\\x1b[2J\\n'"
    assert len(excerpt("x" * 1000)) == 80
