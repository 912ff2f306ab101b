"""The conversations of protocol.md section 15.7, made to run against a bus in memory.

``1> words`` is what client 1 sends, inline; ``1< value`` is what it gets next: ``+OK``, ``-ERR
...``, a number, a string in quotes, ``nil``, or an array as JSON.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any

from tcprepl.conformance.document import Block
from tcprepl.replication.redis.resp import ErrorReply, Message, RespReader
from tests.bus_world import BusClient, BusWorld

_LINE = re.compile(r"([0-9])([<>]) (.*)")


class RespStage:
    """Clients of one bus, by number."""

    def __init__(self) -> None:
        self.world = BusWorld()
        self._clients: dict[str, tuple[BusClient, RespReader, deque[Any]]] = {}

    def run(self, block: Block) -> None:
        """Run a block; nothing may come that it does not tell."""
        for number, line in enumerate(block.lines, block.number + 1):
            found = _LINE.fullmatch(line)
            assert found, f"protocol.md:{number}: not in the notation: {line}"
            who, way, text = found.groups()
            if way == ">":
                self._client(who)[0].connection.dataReceived(text.encode() + b"\r\n")
                self.world.clock.pump([0, 0.3, 0, 0])
                continue
            self._collect()
            came = self._client(who)[2]
            assert came, f"protocol.md:{number}: nothing came"
            shown = came.popleft()
            assert shown == _value(text), f"protocol.md:{number}: {shown!r} came"
        self._collect()
        for _, _, came in self._clients.values():
            assert not came, came

    def _client(self, who: str) -> tuple[BusClient, RespReader, deque[Any]]:
        if who not in self._clients:
            self._clients[who] = self.world.client(), RespReader(), deque()
        return self._clients[who]

    def _collect(self) -> None:
        for client, reader, came in self._clients.values():
            payloads, others = reader.feed(client.transport.value())
            client.transport.clear()
            assert not payloads
            came.extend(map(_shown, others))


def _shown(value: Any) -> Any:
    if isinstance(value, Message):
        return ["message", value.channel.decode(), value.payload.decode()]
    if isinstance(value, ErrorReply):
        return f"-{value}".rstrip()
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def _value(text: str) -> Any:
    if text.startswith("-"):
        return text
    if text.startswith("+"):
        return text[1:]
    return None if text == "nil" else json.loads(text)
