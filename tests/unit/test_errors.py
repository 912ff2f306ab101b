"""The tree of exceptions: its shape, what each says, and every way to close."""

from __future__ import annotations

import inspect
import re

import pytest

from tcprepl import errors
from tcprepl.errors import (
    BadRow,
    CloseReason,
    ConnectionFailed,
    LocalProtocolError,
    LogCorrupt,
    LogFenced,
    LogHeld,
    LogLocked,
    LogTooNew,
    MalformedCommand,
    ProtocolError,
    RemoteProtocolError,
    TcpreplError,
    TokenFromFuture,
    TokenOrder,
    TokenTooOld,
    UnknownStream,
    WrittenElsewhere,
    did_you_mean,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception)
]


def test_everything_is_one_tree() -> None:
    assert all(issubclass(value, TcpreplError) for value in CLASSES)


def test_the_docstring_names_every_class() -> None:
    tree = str(errors.__doc__).partition("::")[2]
    named = set(re.findall(r"\b[A-Z]\w+", tree))
    public = {value.__name__ for value in CLASSES if not value.__name__.startswith("_")}
    missing = {name for name in public - named if name != "PositionError"}
    assert not missing


@pytest.mark.parametrize(
    "kind",
    [value for value in CLASSES if issubclass(value, ProtocolError)],
    ids=lambda kind: kind.__name__,
)
def test_a_protocol_error_says_its_line(kind: type[ProtocolError]) -> None:
    error = kind("what is wrong", snippet="x")
    assert str(error) == error.wire_text == "what is wrong"
    error.line_number = 7
    assert str(error) == error.wire_text == "line 7: what is wrong"
    assert error.snippet == "x"
    assert error.close_reason is None or isinstance(error.close_reason, CloseReason)


def test_only_what_can_be_skipped_lets_the_connection_live() -> None:
    survivors = {
        value.__name__
        for value in CLASSES
        if issubclass(value, RemoteProtocolError)
        and value is not RemoteProtocolError
        and value.close_reason is None
    }
    assert survivors == {"MalformedCommand", "UnknownCommand"}
    assert MalformedCommand.close_reason is None
    assert LocalProtocolError.close_reason is CloseReason.LOCAL_ERROR


def test_each_way_to_close_has_its_own_word() -> None:
    assert len({reason.value for reason in CloseReason}) == len(CloseReason)
    assert all(reason.value == reason.name.lower() for reason in CloseReason)


def test_connection_failed_says_whether_to_try_again() -> None:
    error = ConnectionFailed("refused", reason=CloseReason.CONNECTION_LOST)
    assert error.transient
    assert error.reason is CloseReason.CONNECTION_LOST
    assert not ConnectionFailed("no", reason=CloseReason.WRONG_SERVER, transient=False).transient


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (UnknownStream("tpying"), ["'tpying'"]),
        (UnknownStream("tpying", ["typing", "caches"]), ["tpying", "did you mean typing?"]),
        (
            BadRow("typing", "user_ids[2]", "5", "a string", 3),
            ["typing", "row 3", "user_ids[2]", "a string", "5"],
        ),
        (BadRow("typing", "", "{}", "an array"), ["typing", "an array", "{}"]),
        (TokenTooOld("typing", "master", 3, 9), ["typing", "master", "3", "9"]),
        (TokenFromFuture("typing", "master", 9, 3), ["typing", "master", "9", "3"]),
        (TokenOrder("typing", "master", 9, 9), ["typing", "master", "9"]),
        (LogLocked("/data", 12), ["/data", "process 12"]),
        (LogLocked("/data", None), ["/data", "another process"]),
        (LogHeld("here", "master", "h:1"), ["here", "master", "h:1", "--standby"]),
        (LogHeld("here", "master", "h:1", "wait"), ["here: instance master is", "h:1: wait"]),
        (LogFenced("master", "gone"), ["instance master", "gone"]),
        (WrittenElsewhere("s", "i", "two"), ["stream s of i", "written by two", "publish there"]),
        (LogCorrupt("bad block", table="block", token=5), ["bad block"]),
        (LogTooNew("/data/log.db", 9, 2), ["/data/log.db", "9", "2", "newer"]),
    ],
)
def test_stream_errors_say_what_where_and_what_helps(error: TcpreplError, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("tping", ["caches", "typing"], "; did you mean typing?"),
        ("TYPING", ["caches", "typing"], "; did you mean typing?"),
        ("xxx", ["a", "b"], "; there are a, b"),
        ("xxx", list("abcdefgh"), "; there are a, b, c, d, e, f and 2 more"),
        ("xxx", [], ""),
    ],
)
def test_the_nearest_name_or_some(name: str, known: list[str], expected: str) -> None:
    assert did_you_mean(name, known) == expected


def test_none_may_be_listed() -> None:
    assert did_you_mean("xxx", ["a"], shown=0) == ""


def test_one_name_is_not_many() -> None:
    assert did_you_mean("zzz", ["op"]) == "; there is op"
    assert did_you_mean("zzz", ["op", "xy"]) == "; there are op, xy"
    assert did_you_mean("zzz", ["op", "xy"], 1) == "; there are op and 1 more"
