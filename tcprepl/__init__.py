"""The replication plane of a Matrix-style homeserver.

One process writes small changes to named streams; the others see them at once and in
order over a persistent TCP socket, and can ask for what they missed. `protocol.md` is
the specification; the rooms of the package are described in their own ``__init__``.
"""

__version__ = "0.1.0"
