"""``tcprepl publish``: rows in, chunks, transaction ids, what is printed."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tcprepl.cli import publish, run
from tcprepl.cli.publish import (
    Given,
    NotJson,
    all_in_one,
    as_they_come,
    check_row,
    in_full,
    read_lines,
)
from tcprepl.cli.recording import BOM


class FakeApi:
    """Takes rows, and gives them tokens from 1 on."""

    made: list[FakeApi]

    def __init__(self, url: str, token: Callable[[], str] | None, retry_s: float) -> None:
        self.url = url
        self.token = token and token()
        self.retry_s = retry_s
        self.calls: list[dict[str, Any]] = []
        FakeApi.made.append(self)

    def post_rows(self, stream: str, rows: list[bytes], **options: Any) -> tuple[str, list[int]]:
        """Note the call."""
        first = 1 + sum(len(call["rows"]) for call in self.calls)
        self.calls.append({"stream": stream, "rows": rows, "retry_s": self.retry_s, **options})
        return options["instance"] or "master", list(range(first, first + len(rows)))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    """Put the fake in the place of the real one."""
    FakeApi.made = []
    monkeypatch.setattr(publish, "Api", FakeApi)
    return FakeApi


@contextlib.contextmanager
def stdin_of(monkeypatch: pytest.MonkeyPatch, text: bytes) -> Iterator[None]:
    """Give the process *text* on stdin, through a pipe."""
    reader, writer = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as out:
            out.write(text)

    thread = threading.Thread(target=feed)
    thread.start()
    with io.TextIOWrapper(os.fdopen(reader, "rb")) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield
    thread.join()


def test_rows_as_arguments(api: type[FakeApi], capsys: pytest.CaptureFixture[str]) -> None:
    """Each row gets its line; options reach the request."""
    args = ["publish", "typing", "[1]", "[2]", "--instance", "w", "--token", "t", "--to", "h:1"]
    assert run(args) == 0
    assert capsys.readouterr().out == "typing w 1\ntyping w 2\n"
    (made,) = api.made
    assert (made.url, made.token, made.retry_s) == ("http://h:1", "t", 10.0)
    (call,) = made.calls
    assert call["rows"] == [b"[1]", b"[2]"]
    assert call["retry_s"] == 0.0
    assert call["batch"] is False
    assert call["transaction_id"].endswith(".0")


def test_quiet_batch_with_retry(
    api: type[FakeApi], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch from stdin is one request, however long."""
    with stdin_of(monkeypatch, b"[1]\n" * 3_000):
        assert run(["publish", "typing", "--batch", "-q", "--retry", "5"]) == 0
    assert capsys.readouterr().out == ""
    (call,) = api.made[0].calls
    assert len(call["rows"]) == 3_000
    assert call["retry_s"] == 5.0


def test_a_dash_is_stdin(api: type[FakeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    with stdin_of(monkeypatch, b"[1]\n[2]\n"):
        assert run(["publish", "typing", "-", "--batch"]) == 0
    (call,) = api.made[0].calls
    assert len(call["rows"]) == 2


def test_chunks_of_a_named_transaction_depend_on_the_rows_alone(
    api: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows again make the same requests again."""
    for _ in range(2):
        with stdin_of(monkeypatch, b"[1]\n" * 4_500):
            assert run(["publish", "typing", "--transaction-id", "mine"]) == 0
    first, again = (
        [(call["transaction_id"], len(call["rows"])) for call in made.calls] for made in api.made
    )
    assert first == again == [("mine.0", 2_000), ("mine.1", 2_000), ("mine.2", 500)]


def test_a_bad_row_stops_before_its_chunk(
    api: type[FakeApi], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of the row is that of the input."""
    with stdin_of(monkeypatch, b"[1]\n" * 2_000 + b"[2,]\n"):
        assert run(["publish", "typing", "--transaction-id", "mine", "-q"]) == 1
    assert "line 2001: not JSON at column 4" in capsys.readouterr().err
    assert len(api.made[0].calls) == 1


def test_lines_are_counted_as_an_editor_does(
    api: type[FakeApi], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blank ones too; and it is said how many rows were taken before the fault."""
    with stdin_of(monkeypatch, BOM + b"[1]\n\n\n" + b"[1]\n" * 2_000 + b"\n[2,]\n"):
        assert run(["publish", "typing", "--transaction-id", "mine", "-q"]) == 1
    told = capsys.readouterr().err
    assert "line 2005: not JSON at column 4" in told
    assert "2000 rows before were taken" in told


def test_a_terminal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgot the row is told."""
    monkeypatch.setattr("sys.stdin", type("Tty", (), {"isatty": lambda self: True})())
    assert run(["publish", "typing"]) == 2


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (b'{"a": 1}', b'{"a": 1}'),
        (b'["\\ud800"]', b'["\\ud800"]'),
        (b"[1,\n 2]", b"[1, 2]"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[\xff]", "not UTF-8 at byte 2"),
        (b"[1, x]", "not JSON at column 5"),
        (b"", "not JSON at column 1"),
        (b"[" * 100_000, "row 1: nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "row 1: an integer of too many digits"),
        (b"[" + b"1, " * 100 + b"x]", "not JSON at column 302"),
    ],
)
def test_check_row(text: bytes, result: bytes | str) -> None:
    """Good rows pass as they are; faults have a place, and a mark under it."""
    if isinstance(result, bytes):
        assert check_row(text, "row 1") == result
        return
    with pytest.raises(NotJson, match=result) as caught:
        check_row(text, "row 1")
    lines = str(caught.value).splitlines()
    if len(lines) == 3 and text:
        assert lines[1][lines[2].index("^")] == "x"


def texts(group: list[Given]) -> list[bytes]:
    """Return the rows themselves."""
    return [given.text for given in group]


def test_lines_come_as_the_pipe_has_them() -> None:
    """What is at hand goes at once; lines that are cut wait for their end."""
    reader, writer = os.pipe()
    groups = read_lines(reader)
    os.write(writer, BOM + b"[1]\n[2]\n[3")
    assert next(groups) == [Given(b"[1]", "line 1"), Given(b"[2]", "line 2")]
    os.write(writer, b"]\r\n\n")
    assert next(groups) == [Given(b"[3]", "line 3")]
    os.write(writer, b"  ")
    os.write(writer, b"[4]")
    os.close(writer)
    assert list(groups) == [[Given(b"[4]", "line 5")]]
    os.close(reader)


def test_cutting_chunks() -> None:
    """Bounds by rows and by bytes; nothing makes no chunk."""
    big, one, two = (Given(text, "") for text in (b"x" * (3 * 2**20), b"1", b"2"))
    assert [len(c) for c in in_full([[one] * 2_001])] == [2_000, 1]
    assert [len(c) for c in in_full([[big, big], [big]])] == [1, 1, 1]
    assert [len(c) for c in as_they_come([[one], [two] * 2_001, []])] == [1, 2_000, 1]
    assert list(map(texts, all_in_one([[one], [two]]))) == [[b"1", b"2"]]
    assert list(all_in_one([[]])) == []


def test_a_stream_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["publish", "", "[1]"]) == 2
    assert "expected the name of a stream" in capsys.readouterr().err


def test_an_empty_transaction_id_protects_nothing_and_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["publish", "typing", "[1]", "--transaction-id", ""]) == 2
    assert "expected 1 to 255 characters" in capsys.readouterr().err
