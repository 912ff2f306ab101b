"""Arguments: what each may be, and what an error says of it."""

from __future__ import annotations

import pytest

from tcprepl.errors import MalformedCommand
from tcprepl.limits import MAX_TOKEN
from tcprepl.protocol.arguments import Arguments


def split(word: str, rest: str, *counts: int) -> Arguments:
    """Return the arguments of a line, split."""
    arguments = Arguments(word, rest)
    arguments.split(*counts)
    return arguments


def test_each_kind_of_argument() -> None:
    arguments = split("USER_IP", f"name {MAX_TOKEN} -5 [1]   ", 4)
    assert arguments.name(0, "user") == "name"
    assert arguments.token(1) == arguments.asked_token(1) == MAX_TOKEN
    assert arguments.asked_token(2) == 0
    assert arguments.time_ms(2) == -5
    assert split("DRAIN", "30", 1).seconds(0, 30) == 30
    assert arguments.json(3) == [1]


def test_the_last_argument_may_hold_spaces() -> None:
    arguments = Arguments("RDATA", "s m 1 [1, 2]")
    assert arguments.split_at_most(4) == 4
    assert arguments.values[3] == "[1, 2]"
    with pytest.raises(MalformedCommand, match="2 arguments, not 4"):
        Arguments("RDATA", "s m").split_at_most(4)


@pytest.mark.parametrize("text", ["{}", "[NaN]", "[", "[" * 100_000])
def test_what_is_no_array(text: str) -> None:
    with pytest.raises(MalformedCommand, match="the last argument is not"):
        split("LOCK_RELEASED", text, 1).json(0)


def test_an_error_says_which_what_and_what_was_expected_and_keeps_secrets() -> None:
    with pytest.raises(MalformedCommand, match='REPLICATE: token "x" is not a whole number'):
        split("REPLICATE", "s m x", 3).token(2)
    with pytest.raises(MalformedCommand, match="REMOVE_PUSHER: user is not 1 to 255") as caught:
        split("REMOVE_PUSHER", "a b \x01secret", 3).name(2, "user")
    assert "secret" not in str(caught.value)
    with pytest.raises(MalformedCommand, match="1 argument, not few"):
        Arguments("REPLICATE", "x").split(2, wanted="few")


def test_a_token_ends_at_the_largest() -> None:
    for read in (Arguments.token, Arguments.asked_token, Arguments.take_number):
        mark = "#" if read is Arguments.take_number else ""
        assert read(split("NAME", f"{mark}{MAX_TOKEN}", 1), 0) == MAX_TOKEN
        for wrong in (str(MAX_TOKEN + 1), "x", "9" * 30):
            with pytest.raises(MalformedCommand, match="is not a whole number"):
                read(split("NAME", f"{mark}{wrong}", 1), 0)


def test_what_an_argument_begins_with_is_cut_off() -> None:
    arguments = split("PUBLISH", "#7", 1)
    arguments.values[0] = "#7 @w1 [1, 2]"
    assert arguments.take_instance(0) is None
    assert arguments.take_number(0) == 7
    assert arguments.take_number(0) is None
    assert arguments.take_instance(0) == "w1"
    assert arguments.values == ["[1, 2]"]
    for wrong in ("@", "@\x01", "@" + "w" * 999):
        arguments.values[0] = f"{wrong} x"
        with pytest.raises(MalformedCommand, match="instance"):
            arguments.take_instance(0)


@pytest.mark.parametrize("wrong", ["", "x", "1.5", "--1"])
def test_what_is_no_time(wrong: str) -> None:
    with pytest.raises(MalformedCommand, match="whole number of milliseconds"):
        split("PING", wrong or "-", 1).time_ms(0)


def test_an_error_shows_what_was_there() -> None:
    with pytest.raises(MalformedCommand) as caught:
        split("REPLICATE", "s m none", 3).token(2)
    assert caught.value.snippet == "none"
    assert '"none"' in str(caught.value)
