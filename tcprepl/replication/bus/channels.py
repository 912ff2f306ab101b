"""Plain pub/sub: who subscribed which channel, by its name or by a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from tcprepl.replication.bus.patterns import Pattern
from tcprepl.replication.bus.replies import message_head, messages


class Listener(Protocol):
    """What a message is handed to.

    Attributes:
        proto: The version of RESP that it speaks.
    """

    proto: int

    @property
    def patterns(self) -> Mapping[bytes, tuple[Pattern, object]]:
        """What it subscribed by pattern."""
        ...

    def push(self, data: bytes) -> None:
        """Write *data*, if it takes what it is sent."""
        ...


_Index: TypeAlias = dict[bytes, dict[Listener, None]]


class Channels:
    """The subscriptions of all connections.

    Attributes:
        by_name: Who subscribed each channel by name; to be read only.
        by_pattern: Who subscribed each pattern; to be read only.
    """

    def __init__(self) -> None:
        self.by_name: _Index = {}
        self.by_pattern: _Index = {}

    def add(self, listener: Listener, name: bytes, *, by_pattern: bool) -> None:
        """Note a subscription."""
        index = self.by_pattern if by_pattern else self.by_name
        index.setdefault(name, {})[listener] = None

    def remove(self, listener: Listener, name: bytes, *, by_pattern: bool) -> None:
        """Forget a subscription."""
        index = self.by_pattern if by_pattern else self.by_name
        index[name].pop(listener, None)
        if not index[name]:
            del index[name]

    def listeners_of(self, channel: bytes) -> int:
        """Return how many subscribed *channel* by name."""
        return len(self.by_name.get(channel, ()))

    def reached(self, channel: bytes) -> int:
        """Return how many messages *channel* makes of one."""
        return self.listeners_of(channel) + len(self._matching(channel))

    def push(self, channel: bytes, payload: bytes) -> None:
        """Hand *payload* to everybody who subscribed *channel*, once for each subscription."""
        for listener in tuple(self.by_name.get(channel, ())):
            head = message_head(channel, None, listener.proto)
            listener.push(messages(head, (payload,)))
        for listener, pattern in self._matching(channel):
            head = message_head(channel, pattern, listener.proto)
            listener.push(messages(head, (payload,)))

    def _matching(self, channel: bytes) -> list[tuple[Listener, bytes]]:
        return [
            (listener, name)
            for name, listeners in self.by_pattern.items()
            for listener in listeners
            if listener.patterns[name][0].matches(channel)
        ]
