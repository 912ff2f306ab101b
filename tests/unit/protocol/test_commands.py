"""The commands as values."""

from __future__ import annotations

import dataclasses

import pytest

from tcprepl.protocol.commands import (
    AuthCommand,
    PingCommand,
    RemovePusherCommand,
    ReplicateCommand,
    UserIpCommand,
)
from tcprepl.protocol.specs import COMMANDS


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
