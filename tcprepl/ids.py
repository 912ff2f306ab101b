"""The names of the plain values that every room passes about (protocol.md section 2)."""

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
#: A stream and the instance that writes it: what has tokens of its own.
Pair: TypeAlias = tuple[StreamName, InstanceName]
