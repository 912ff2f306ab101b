"""The names of the plain values that every room passes about (protocol.md section 2)."""

from hashlib import sha256
from json import dumps
from typing import TypeAlias

#: A named, ordered log of rows, for instance ``typing``.
StreamName: TypeAlias = str
#: A named process that writes streams, for instance ``master``.
InstanceName: TypeAlias = str
#: A place in a stream of one instance; never decreasing; 0 is before the first row.
Token: TypeAlias = int
#: The name of a homeserver, for instance ``example.com``.
ServerName: TypeAlias = str
#: The name of one start of a log, unlike any other (protocol.md section 7.11).
IncarnationId: TypeAlias = str
#: The name of whoever numbers its appends (protocol.md section 7.12).
ProducerName: TypeAlias = str
#: A stream and the instance that writes it: what has tokens of its own.
Pair: TypeAlias = tuple[StreamName, InstanceName]


def idempotency_key(*scope: str) -> str:
    """Return a transaction id for the log that is equal for equal *scope* and no other.

    Whoever gives an id of its own choice may choose what somebody else has chosen. So an id
    goes to the log together with what it counts within: which door it came through, who
    asked, of which device or server.

    Args:
        scope: From the widest to the id itself; any texts.
    """
    return sha256(dumps(scope).encode()).hexdigest()[:40]
