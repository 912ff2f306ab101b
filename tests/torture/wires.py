"""Wires between processes that the driver cuts, freezes and lets drip; each listens on a port."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading

from tests.ports import free_port

#: What is passed on at once: little, so that a cut falls within lines.
PIECE = 16_384


class Wire:
    """One port that leads to another.

    Attributes:
        port: Where to connect.
        dropped: Lines that were left out, as `lose_rows` asked for.
    """

    def __init__(self, wires: Wires, target: int) -> None:
        self.port = free_port()
        self.dropped: list[bytes] = []
        self._wires = wires
        self._target = target
        self._chance = random.Random(target)
        self._flows = asyncio.Event()
        self._flows.set()
        self._drips = False
        self._lose = 0
        self._ends: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Begin to listen (the loop's own)."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Listen no more, and end every connection (the loop's own)."""
        self._server.close()
        self._flows.set()
        self._cut(True)

    # -- what the driver does, from its thread -----------------------------------------------

    def cut(self, *, reset: bool) -> None:
        """End every connection, by a reset or in order."""
        self._wires.call(self._cut, reset)

    def freeze(self, on: bool) -> None:
        """Pass nothing on, in neither direction, until it thaws."""
        self._wires.call(self._flows.clear if on else self._flows.set)

    def drip(self, on: bool) -> None:
        """Pass little pieces on."""
        self._wires.call(setattr, self, "_drips", on)

    def heal(self) -> None:
        """End every fault."""
        self.freeze(False)
        self.drip(False)

    def lose_rows(self, count: int) -> None:
        """Leave out the next rows on the way to who connects: what must never stay unnoticed."""
        self._wires.call(setattr, self, "_lose", count)

    # -- in the loop -------------------------------------------------------------------------

    def _cut(self, reset: bool) -> None:
        for end in list(self._ends):
            if reset:
                _reset_on_close(end)
                end.transport.abort()
            else:
                end.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset_on_close(writer)
            writer.transport.abort()
            return
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer, losing=True))
        except asyncio.CancelledError:
            pass  # the world ends
        finally:
            for end in (writer, back):
                self._ends.discard(end)
                end.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, losing: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                size = self._chance.randrange(1, 200) if self._drips else PIECE
                data = await source.read(size)
                await self._flows.wait()
                if not data:
                    break
                if losing and self._lose:
                    data = await self._without_rows(data, source)
                sink.write(data)
                await sink.drain()
                if self._drips:
                    await asyncio.sleep(0.001)
        with contextlib.suppress(OSError, RuntimeError):
            sink.write_eof()

    async def _without_rows(self, data: bytes, source: asyncio.StreamReader) -> bytes:
        kept = []
        with contextlib.suppress(asyncio.IncompleteReadError):
            if not data.endswith(b"\n"):
                data += await source.readuntil(b"\n")
        for line in data.splitlines(keepends=True):
            if self._lose and line.startswith(b"RDATA "):
                self._lose -= 1
                self.dropped.append(line)
            else:
                kept.append(line)
        return b"".join(kept)


class Wires:
    """The thread in which all wires are; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.all: list[Wire] = []

    def __enter__(self) -> Wires:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self.call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for wire in self.all:
            await wire.close()
        ours = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not ours]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0)

    def to(self, port: int) -> Wire:
        """Return a wire that leads to *port*."""
        wire = Wire(self, port)
        asyncio.run_coroutine_threadsafe(wire.listen(), self._loop).result(10)
        self.all.append(wire)
        return wire

    def call(self, function: object, *args: object) -> None:
        """Call a function in the loop."""
        self._loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]

    def heal(self) -> None:
        """End every fault of every wire."""
        for wire in self.all:
            wire.heal()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
