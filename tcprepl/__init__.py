"""The replication plane of a Matrix-style homeserver.

One process writes small changes to named streams; the others see them at once and in
order over a persistent TCP socket, and can ask for what they missed. `protocol.md` is
the specification; the rooms of the package are described in their own ``__init__``.

There are three things that a program of your own may want:

* **publish**: ``tcprepl.aio.ReplicationWriter("127.0.0.1:9092")`` from asyncio,
  `tcprepl.replication.following.writer.ReplicationWriter` under Twisted; each row once, whatever is
  cut or restarted.
* **follow**: ``for batch in tcprepl.follow("127.0.0.1:9092", ["typing"])`` in a plain script,
  ``tcprepl.aio.follow`` and ``tcprepl.aio.ReplicationClient`` from asyncio,
  `tcprepl.replication.following.client.ReplicationClient` under Twisted; exactly once with a
  `tcprepl.streams.position_store.SqlitePositionStore`.
* **embed**: `tcprepl.app.server.Server` inside a Twisted program, or as a service with
  ``twist tcprepl``, which `tcprepl.cli.twist` makes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcprepl import aio, blocking
    from tcprepl.blocking import follow

__all__ = ["aio", "blocking", "follow"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for: a command does not pay for what it does not use."""
    from importlib import import_module

    if name == "follow":
        return import_module("tcprepl.blocking").follow
    if name in __all__:
        return import_module(f"tcprepl.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
