"""Which rights a command needs, and what is said where they are lacking (protocol.md section 16.1).

`lacking` is asked once, before anything else is done with a command. What it does not know by name
needs the right to operate: a command that is added is guarded before anybody thinks of it.
"""

from __future__ import annotations

from tcprepl.access import Grant
from tcprepl.protocol.commands import Command, PublishCommand, ReplicateCommand
from tcprepl.protocol.specs import COMMANDS, Right
from tcprepl.replication.serving.readers import ANY

#: How the ERROR of a command begins for which a right is lacking.
NOT_ALLOWED = "not allowed"


def lacking(grant: Grant, command: Command) -> str | None:
    """Return why *grant* does not allow *command*, and what to do; None when it does."""
    right = COMMANDS[command.NAME].right
    what = right.value
    match right:
        case Right.NONE:
            return None
        case Right.READ:
            stream = command.stream if isinstance(command, ReplicateCommand) else None
            if stream is None or stream == ANY:
                allowed, what = bool(grant.sees), "read some stream"
            else:
                allowed, what = stream in grant.sees, f"read {stream}"
        case Right.WRITE:
            if isinstance(command, PublishCommand):
                allowed, what = command.stream in grant.write, f"write {command.stream}"
            else:
                allowed, what = bool(grant.write), "write some stream"
        case Right.LOOK:
            allowed, what = grant.looks or bool(grant.sees), "read some stream, or operate"
        case _:
            allowed = grant.operate
    return None if allowed else denial(grant, command.NAME, what)


def denial(grant: Grant, word: str, what: str) -> str:
    """Return what is said to who asks *word* of *grant*, which needs to be allowed to *what*."""
    if grant.name:
        how = f"{grant.name} {grant} here; its entry in replication.tokens says so"
    else:
        how = "say AUTH <token> first, on a new connection"
    return f"{NOT_ALLOWED}: {word} needs a token that may {what}; {how}"
