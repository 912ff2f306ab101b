"""What is true of each command apart from its values."""

from __future__ import annotations

import pytest

from tcprepl.protocol import commands
from tcprepl.protocol.commands import (
    Command,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.specs import COMMANDS
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
