"""What is asked for over HTTP, and what answers mean."""

from __future__ import annotations

import pytest

from tcprepl.errors import ConnectionFailed
from tcprepl.replication.following import catchup
from tcprepl.replication.following.catchup import Archive, CatchUpPage

PAGE = b'{"updates": [[2, ["!r:x", []]], [3, [1]]], "upto_token": 3, "limited": true}'


def test_what_is_asked_for() -> None:
    archive = Archive({"*": "http://main:9093/"}, "s3cret")
    question = archive.question("a/b", "w 1", 1, 9)
    path, _, query = question.url.partition("?")
    assert path.startswith("http://main:9093/_synapse/replication/get_repl_stream_updates/a%2Fb/")
    assert query == "from_token=1&upto_token=9&instance=w+1"
    assert question.headers == {"Authorization": "Bearer s3cret"}
    assert question.socket is None
    again = archive.question("a/b", "w 1", 1, 9)
    assert again.url != question.url  # each has an id of its own


def test_each_instance_has_its_place_and_may_get_another() -> None:
    archive = Archive({"master": "http://unix:/run/main.sock"})
    question = archive.question("typing", "master", 1, 9)
    assert question.socket == "/run/main.sock"
    assert question.url.startswith("http://localhost/_synapse/")
    assert question.headers == {}
    with pytest.raises(ConnectionFailed, match="no URL is configured for instance w1") as raised:
        archive.question("typing", "w1", 1, 9)
    assert not raised.value.transient
    archive.change({"w1": "http://w1"}, "new")
    assert archive.question("typing", "w1", 1, 9).headers == {"Authorization": "Bearer new"}


def test_a_page() -> None:
    question = Archive({"*": "http://main"}).question("typing", "master", 1, 9)
    rows = [(2, b'["!r:x", []]'), (3, b"[1]")]
    assert question.page(200, PAGE) == CatchUpPage(rows, 3, limited=True)
    gone = b'{"updates": [], "upto_token": 9, "limited": false, "missing": [1, 5]}'
    assert question.page(200, gone) == CatchUpPage([], 9, limited=False, missing=(1, 5))


@pytest.mark.parametrize(
    ("status", "body", "words", "transient"),
    [
        (400, b"no", r"master answered 400 when asked for typing \(1, 9\]: no", False),
        (429, b"", "answered 429", True),
        (502, b"\xff", "answered 502", True),
        (200, b"<html>", "something else than updates", False),
        (200, b"[" * 11, "more than 10 bytes", False),
    ],
)
def test_an_answer_that_will_not_do(
    status: int, body: bytes, words: str, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", 10)
    question = Archive({"*": "http://main"}).question("typing", "master", 1, 9)
    with pytest.raises(ConnectionFailed, match=words) as raised:
        question.page(status, body)
    assert raised.value.transient is transient


def test_an_answer_that_is_too_deep_is_a_fault_that_is_told() -> None:
    question = Archive({"*": "http://main"}).question("typing", "master", 1, 9)
    with pytest.raises(ConnectionFailed, match="something else than updates"):
        question.page(200, b'{"x": ' + b"[" * 100_000)


def test_an_answer_may_be_as_long_as_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", len(PAGE))
    question = Archive({"*": "http://main"}).question("typing", "master", 1, 9)
    assert question.page(200, PAGE).upto == 3
    with pytest.raises(ConnectionFailed, match="more than"):
        question.page(200, PAGE + b" ")
