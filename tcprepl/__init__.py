"""The replication plane of a Matrix-style homeserver.

One process writes small changes to named streams; the others see them at once and in
order over a persistent TCP socket, and can ask for what they missed. `protocol.md` is
the specification; the rooms of the package are described in their own ``__init__``.

What a program of your own begins with:

* ``tcprepl.follow("127.0.0.1:9092", ["typing"])`` in a ``for`` loop, from a plain script;
* `tcprepl.aio`: following and publishing from asyncio;
* `tcprepl.replication.following`: the same under Twisted;
* `tcprepl.app.server.Server`: the server, inside a Twisted program.
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
