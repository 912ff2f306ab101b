"""Which rights a command needs: every word of the wire, and what a refusal tells."""

from __future__ import annotations

import pytest

from tcprepl.access import ALL, EVERYTHING, NOTHING, Grant, Streams
from tcprepl.protocol.commands import (
    Command,
    ProducerCommand,
    PublishCommand,
    ReplicateCommand,
    StatusCommand,
)
from tcprepl.protocol.specs import COMMANDS, CommandSpec, Right
from tcprepl.protocol.state import Role
from tcprepl.replication.serving.rights import lacking
from tests.unit.protocol.test_state import EXAMPLES

TYPING = Streams(frozenset({"typing"}))
FROM_CLIENTS = [word for word, spec in COMMANDS.items() if Role.CLIENT in spec.sent_by]


@pytest.mark.parametrize("word", FROM_CLIENTS)
def test_who_may_do_nothing_may_say_only_what_needs_no_right(word: str) -> None:
    free = {"ERROR", "PING", "NAME", "AUTH", "HELP"}
    assert (lacking(NOTHING, EXAMPLES[word]) is None) is (word in free)
    assert lacking(EVERYTHING, EXAMPLES[word]) is None


def test_a_command_that_says_nothing_of_rights_needs_the_most() -> None:
    """So that one that is added is guarded before anybody thinks of it."""
    spec = CommandSpec(Command, frozenset(), frozenset(), "", "")
    assert spec.right is Right.OPERATE


@pytest.mark.parametrize(
    ("grant", "command", "allowed"),
    [
        (Grant(read=TYPING), ReplicateCommand("typing", "*", 0), True),
        (Grant(inspect=TYPING), ReplicateCommand("typing", "*", 0), True),
        (Grant(read=TYPING), ReplicateCommand("events", "*", 0), False),
        (Grant(read=TYPING), ReplicateCommand("*", "*", 0), True),
        (Grant(read=TYPING), ReplicateCommand(), True),
        (Grant(write=ALL, operate=True), ReplicateCommand(), False),
        (Grant(write=TYPING), PublishCommand("typing", b"[]"), True),
        (Grant(write=TYPING), PublishCommand("events", b"[]"), False),
        (Grant(read=ALL, operate=True), PublishCommand("typing", b"[]"), False),
        (Grant(write=TYPING), ProducerCommand("p"), True),
        (Grant(read=ALL, operate=True), ProducerCommand("p"), False),
        (Grant(read=TYPING), StatusCommand(), True),
        (Grant(operate=True), StatusCommand(), True),
        (Grant(write=ALL), StatusCommand(), False),
        (
            Grant(read=ALL, inspect=ALL, write=ALL),
            EXAMPLES["USER_SYNC"],
            False,
        ),
    ],
)
def test_rights(grant: Grant, command: Command, allowed: bool) -> None:
    assert (lacking(grant, command) is None) is allowed


def test_a_refusal_says_what_is_lacking_and_what_to_do() -> None:
    assert lacking(NOTHING, PublishCommand("typing", b"[]")) == (
        "not allowed: PUBLISH needs a token that may write typing; "
        "say AUTH <token> first, on a new connection"
    )
    assert lacking(Grant("w1", read=TYPING), ReplicateCommand("events", "*", 0)) == (
        "not allowed: REPLICATE needs a token that may read events; "
        "w1 may read typing here; its entry in replication.tokens says so"
    )
