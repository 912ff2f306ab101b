"""The commands as values, and the table of what is true of each."""

from __future__ import annotations

import dataclasses

import pytest

from tcprepl.protocol import commands
from tcprepl.protocol.commands import (
    COMMANDS,
    AuthCommand,
    Command,
    PingCommand,
    RemovePusherCommand,
    ReplicateCommand,
    UserIpCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.state import Role


def is_command(value: object) -> bool:
    """Whether *value* is the class of a command."""
    return isinstance(value, type) and issubclass(value, Command) and value is not Command


def test_every_class_is_in_the_table_once() -> None:
    classes = {value for value in vars(commands).values() if is_command(value)}
    assert {spec.command for spec in COMMANDS.values()} == classes
    assert len(COMMANDS) == len(classes)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_table_is_complete(name: str) -> None:
    spec = COMMANDS[name]
    assert name == spec.command.NAME
    assert spec.sent_by <= set(Role)
    assert spec.sent_by
    assert spec.dialects <= set(DIALECTS)
    assert spec.dialects
    assert spec.summary
    assert spec.syntax.startswith(name)
    assert spec.syntax == spec.syntax.strip()


def test_commands_are_values_that_do_not_change() -> None:
    assert PingCommand("1") == PingCommand("1") != PingCommand("2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        PingCommand("1").text = "2"  # type: ignore[misc]  # the point of the test
    assert ReplicateCommand() == ReplicateCommand(None, None, None, now=False)


def test_secrets_do_not_show() -> None:
    seen = UserIpCommand("@a:x", "syt_secret", "10.0.0.1", "UA", "DEV", 5)
    pusher = RemovePusherCommand("app", "s3cret", "@a:x")
    assert "syt_secret" not in repr(seen)
    assert "s3cret" not in repr(pusher)
    assert "s3cret" not in repr(AuthCommand("s3cret"))
    assert {name for name, spec in COMMANDS.items() if spec.secret} == {
        "AUTH",
        "USER_IP",
        "REMOVE_PUSHER",
    }
