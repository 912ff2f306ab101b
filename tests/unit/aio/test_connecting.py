"""asyncio's sockets in the place of Twisted's: addresses, both ends of a connection, failures."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol

from tcprepl.aio.connecting import (
    READ_BYTES,
    LoopEndpoint,
    LoopTransport,
    any_endpoint,
    client_endpoint,
)
from tcprepl.errors import ConnectionFailed
from tcprepl.replication.failures import describe_address
from tcprepl.replication.following.any_of import AnyOf
from tcprepl.replication.following.asyncio_bridge import future_of
from tests.asyncio_servers import Answer, serving


def test_addresses() -> None:
    def place(where: str, tls: Any = None) -> tuple[Any, ...]:
        endpoint: Any = client_endpoint(where, tls)
        return endpoint._host, endpoint._port, endpoint._path, endpoint._tls

    context = ssl.create_default_context()
    assert place("h:1") == place("tcp:h:1") == ("h", 1, "", None)
    assert place("[::1]:9092") == ("::1", 9092, "", None)
    assert place("unix:/run/x:y.sock") == (None, 0, "/run/x:y.sock", None)
    assert place("tls:h:1", context) == place("h:1", context) == ("h", 1, "", context)
    assert isinstance(place("tls:h:1")[3], ssl.SSLContext)


@pytest.mark.parametrize(
    "where", ["h", "h:x", "h:65536", "", "unix:", "tcp:host=a:port=1", "::1:5"]
)
def test_what_is_no_address(where: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT, tls:HOST:PORT or unix:PATH"):
        client_endpoint(where)


def test_a_secret_before_an_address_is_not_shown() -> None:
    for where in ("s3cret@h:1", "tls:user:s3cret@h:1"):
        with pytest.raises(ValueError, match="what is given is no address") as raised:
            client_endpoint(where)
        assert "s3cret" not in str(raised.value)


def test_what_is_no_place_at_all_is_told_at_once() -> None:
    """It was tried for ever."""
    nothing: Any = 5
    with pytest.raises(ValueError, match="5 is no address; expected HOST:PORT as a str"):
        client_endpoint(nothing)
    name: Any = "ca.pem"
    with pytest.raises(ValueError, match=r"tls is of type str; expected an ssl\.SSLContext"):
        client_endpoint("tls:h:1", name)


def test_an_endpoint_of_your_own_and_where_there_is_no_tls() -> None:
    own: Any = LoopEndpoint("own")
    assert client_endpoint(own) is own
    context = ssl.create_default_context()
    for where in (own, "unix:/x"):
        with pytest.raises(ValueError, match=r"tls goes with an address|no TLS is spoken there"):
            client_endpoint(where, context)


def test_several_servers_over_one_database() -> None:
    endpoint: Any = any_endpoint(["h:1", "unix:/x"])
    assert isinstance(endpoint, AnyOf)
    assert [place._name for place in endpoint._endpoints] == ["h:1", "unix:/x"]
    one: Any = any_endpoint("h:1")
    assert isinstance(one, LoopEndpoint)
    own: Any = LoopEndpoint("own")
    assert any_endpoint(own) is own
    with pytest.raises(ValueError, match="expected one at least"):
        any_endpoint([])


class Caller(Protocol):
    """Our side."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[Any] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(reason.value)


class Producer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def converse(directory: Path, answer: Answer, talk: Callable[[Any], Awaitable[None]]) -> None:
    """Connect to somebody who does *answer*, and do *talk* with our side."""

    async def main() -> None:
        answered = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            finally:
                writer.close()
                answered.set_result(None)

        path = str(directory / "s")
        async with serving(path, serve):
            connecting = client_endpoint(f"unix:{path}").connect(Factory.forProtocol(Caller))
            async with asyncio.timeout(20):
                await talk(await future_of(connecting))
                await answered

    asyncio.run(main())


def test_both_ends_say_something_and_one_closes(socket_directory: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        writer.write(line * 2)

    async def talk(caller: Any) -> None:
        transport = caller.transport
        assert isinstance(transport, LoopTransport)
        assert describe_address(transport.getPeer()).startswith("unix:/")
        assert describe_address(transport.getHost()) == "unix:"
        transport.writeSequence([b"a", b"b"])
        transport.write(b"\n")
        assert isinstance(await future_of(caller.lost), ConnectionDone)
        assert caller.received == b"ab\nab\n"

    converse(socket_directory, answer, talk)


def test_who_writes_is_told_to_pause_and_what_is_written_arrives(socket_directory: Path) -> None:
    goes_on = asyncio.Event()
    read: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await goes_on.wait()
        read.append(len(await reader.read(-1)))

    async def talk(caller: Any) -> None:
        transport = caller.transport
        producer = Producer()
        transport.registerProducer(producer, True)
        transport.write(bytes(2_000_000))
        assert producer.told == ["pause"]
        goes_on.set()
        while producer.told == ["pause"]:
            await asyncio.sleep(0)
        transport.unregisterProducer()
        transport.loseConnection()
        await future_of(caller.lost)
        assert producer.told == ["pause", "resume"]

    converse(socket_directory, answer, talk)
    assert read == [2_000_000]


def test_what_is_not_read_waits(socket_directory: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"1\n")
        await reader.readline()
        writer.write(b"2\n")
        await reader.readline()

    async def talk(caller: Any) -> None:
        transport = caller.transport
        producer = Producer()
        transport.registerProducer(producer, True)
        while not caller.received:
            await asyncio.sleep(0)
        transport.pauseProducing()
        transport.write(b"\n")
        for _ in range(100):
            await asyncio.sleep(0)
        assert caller.received == b"1\n"
        transport.resumeProducing()
        while caller.received == b"1\n":
            await asyncio.sleep(0)
        assert caller.received == b"1\n2\n"
        transport.abortConnection()
        await future_of(caller.lost)
        assert producer.told == ["stop"]

    converse(socket_directory, answer, talk)


def test_much_is_read_in_parts(socket_directory: Path) -> None:
    sent = b"".join(b"%d\n" % number for number in range(100_000))
    parts: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(sent)
        await reader.read()

    async def talk(caller: Any) -> None:
        receive = caller.dataReceived

        def received(data: bytes) -> None:
            parts.append(len(data))
            receive(data)

        caller.dataReceived = received
        caller.transport.write(b"\n")
        while len(caller.received) < len(sent):
            await asyncio.sleep(0)
        assert caller.received == sent
        caller.transport.loseConnection()
        await future_of(caller.lost)

    converse(socket_directory, answer, talk)
    assert max(parts) <= READ_BYTES == 65_536


class Socket:
    """A transport of asyncio that notes what it is told, and reads when it is told to."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


def read(transport: LoopTransport, data: bytes) -> None:
    """Let *transport* read *data*."""
    transport.get_buffer(-1)[: len(data)] = data
    transport.buffer_updated(len(data))


def on_a_socket(talk: Callable[[LoopTransport, Any, Socket], Awaitable[None]]) -> None:
    """Do *talk* with a connection on a `Socket`."""

    async def main() -> None:
        caller: Any = Caller()
        transport, socket = LoopTransport(caller), Socket()
        transport.connection_made(socket)  # type: ignore[arg-type]
        await talk(transport, caller, socket)

    asyncio.run(main())


def test_who_pauses_only_for_a_moment_asks_the_system_for_nothing() -> None:
    async def talk(transport: LoopTransport, caller: Any, socket: Socket) -> None:
        for _ in range(2):
            transport.pauseProducing()
            transport.pauseProducing()
            transport.resumeProducing()
            await asyncio.sleep(0)
            assert "pause" not in socket.told

    on_a_socket(talk)


def test_a_pause_holds_before_the_loop_reads_again() -> None:
    async def talk(transport: LoopTransport, caller: Any, socket: Socket) -> None:
        transport.pauseProducing()
        asyncio.get_running_loop().call_soon(lambda: socket.told.append("would read"))
        await asyncio.sleep(0)
        assert socket.told == ["pause", "would read"]
        transport.resumeProducing()
        assert socket.told[2:] == ["resume"]

    on_a_socket(talk)


def test_a_loop_that_reads_twice_in_a_turn_is_paused_at_once() -> None:
    async def talk(transport: LoopTransport, caller: Any, socket: Socket) -> None:
        read(transport, b"1")
        transport.pauseProducing()
        read(transport, b"2")
        assert socket.told == ["pause"]
        assert caller.received == b"12"
        await asyncio.sleep(0)
        assert socket.told == ["pause"]

    on_a_socket(talk)


def test_what_is_lost_is_not_paused() -> None:
    async def talk(transport: LoopTransport, caller: Any, socket: Socket) -> None:
        transport.pauseProducing()
        transport.connection_lost(None)
        await asyncio.sleep(0)
        assert socket.told == []
        assert isinstance(await future_of(caller.lost), ConnectionDone)

    on_a_socket(talk)


def test_a_connection_that_breaks(socket_directory: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()

    async def talk(caller: Any) -> None:
        caller.transport.connection_lost(OSError("reset"))
        lost = await future_of(caller.lost)
        assert isinstance(lost, ConnectionLost)
        assert "reset" in str(lost)
        caller.lost = Deferred()
        caller.transport.pause_writing()  # there is nobody who wants to know
        caller.transport.resume_writing()
        caller.transport.abortConnection()
        await future_of(caller.lost)

    converse(socket_directory, answer, talk)


def test_nobody_there_is_said_with_the_address(tmp_path: Path) -> None:
    async def main() -> None:
        where = f"unix:{tmp_path}/s"
        connecting = client_endpoint(where).connect(Factory.forProtocol(Caller))
        with pytest.raises(ConnectionFailed, match="does not answer: there is no such socket"):
            await future_of(connecting)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "races"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("main.example", True)],
)
def test_only_names_of_other_machines_are_raced_for(host: str, races: bool) -> None:
    """Of a race that is given up as it is won asyncio leaves a connection open."""
    asked: list[dict[str, Any]] = []

    class Loop:
        def __init__(self, loop: Any) -> None:
            self.create_task = loop.create_task

        async def create_connection(self, *_: Any, **named: Any) -> Any:
            asked.append(named)
            raise OSError

    async def main() -> None:
        loop: Any = Loop(asyncio.get_running_loop())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: loop)
            connected = LoopEndpoint("h:1", host=host, port=1).connect(Factory.forProtocol(Caller))
        connected.addErrback(lambda _: None)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert [one["happy_eyeballs_delay"] is not None for one in asked] == [races]


def test_giving_up() -> None:
    """Before there is a connection, and just when there is one."""

    class Loop:
        def __init__(self, loop: Any) -> None:
            self.create_task = loop.create_task
            self.made: Any = None
            self.there = asyncio.Event()

        async def create_connection(self, make: Any, *_: Any, **__: Any) -> Any:
            await self.there.wait()
            self.made = make()
            self.made._transport = Aborted()
            return None, self.made

    class Aborted:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    async def main() -> None:
        loop: Any = Loop(asyncio.get_running_loop())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: loop)
            endpoint = LoopEndpoint("h:1", host="h", port=1)
            early = endpoint.connect(Factory.forProtocol(Caller))
            late = endpoint.connect(Factory.forProtocol(Caller))
        failures: list[Any] = []
        early.cancel()
        early.addErrback(failures.append)
        await asyncio.sleep(0)
        loop.there.set()
        while loop.made is None:
            await asyncio.sleep(0)
        late.cancel()
        late.addErrback(failures.append)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert loop.made._transport.aborted
        assert [failure.type for failure in failures] == [CancelledError] * 2

    asyncio.run(main())


def test_what_is_no_failure_of_the_connection_stays_what_it_is() -> None:
    error = KeyboardInterrupt()
    assert LoopEndpoint("h:1")._explained(error) is error
    assert sys.exc_info() == (None, None, None)
