"""Sockets of asyncio for what speaks to Twisted's transports (protocol.md section 5)."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.replication.failures import reason_of
from tcprepl.replication.following.any_of import AnyOf

#: Where a server is: ``HOST:PORT``, ``tls:HOST:PORT`` or ``unix:PATH``; or an endpoint of your own.
Where: TypeAlias = str | IStreamClientEndpoint
#: Where the servers are of which any will do, since they are over one database; or the only one.
Places: TypeAlias = Where | Sequence[Where]

#: What is read at once, as under Twisted. Where streams take turns, twice as much was measured to
#: cost a tenth more for each row, and where they do not, a tenth less.
READ_BYTES = 65_536

_ADDRESS = re.compile(
    r"(?:(?P<kind>tcp|tls):)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]=@]+):(?P<port>[0-9]{1,5})"
    r"|unix:(?P<path>.+)"
)


def any_endpoint(places: Places, tls: ssl.SSLContext | None = None) -> IStreamClientEndpoint:
    """Return the endpoint of several servers, of which the next is taken when one is gone.

    Args:
        places: Where they are.
        tls: As for `client_endpoint`.

    Raises:
        ValueError: As `client_endpoint`; or there are none.
    """
    if isinstance(places, str) or not isinstance(places, Sequence):
        return client_endpoint(places, tls)
    if not places:
        raise ValueError("there is no address; expected one at least")
    return AnyOf([client_endpoint(where, tls) for where in places])


def client_endpoint(where: Where, tls: ssl.SSLContext | None = None) -> IStreamClientEndpoint:
    """Return the endpoint to connect to; its failures name the address and what to do.

    Args:
        where: Where the server is.
        tls: What to speak TLS with, to a host; for ``tls:`` the system's certificates are trusted,
            or those of the file that ``SSL_CERT_FILE`` names, if nothing is given.

    Raises:
        ValueError: It is no such address; or TLS was asked for where there is none.
    """
    if tls is not None and not isinstance(tls, ssl.SSLContext):
        raise ValueError(f"tls is of type {type(tls).__name__}; expected an ssl.SSLContext")
    if not isinstance(where, str):
        if not callable(getattr(where, "connect", None)):
            raise ValueError(f"{where!r} is no address; expected HOST:PORT as a str")
        if tls is not None:
            raise ValueError("tls goes with an address, not with an endpoint of your own")
        return where
    found = _ADDRESS.fullmatch(where)
    if found is None or int(found["port"] or 0) > 65_535:
        shown = "what is given" if "@" in where else repr(where)  # a secret may stand before it
        raise ValueError(f"{shown} is no address; expected HOST:PORT, tls:HOST:PORT or unix:PATH")
    if found["path"] is not None:
        if tls is not None:
            raise ValueError(f"{where} is a Unix socket: no TLS is spoken there")
        return LoopEndpoint(where, path=found["path"])
    if tls is None and found["kind"] == "tls":
        tls = ssl.create_default_context()
    return LoopEndpoint(where, host=found["host"].strip("[]"), port=int(found["port"]), tls=tls)


@implementer(IStreamClientEndpoint)
class LoopEndpoint:
    """Connects with the asyncio loop that runs.

    Args:
        name: What to call it in errors.
        host: The host; None for a Unix socket.
        port: Its port.
        path: Path of the Unix socket.
        tls: What to speak TLS with; None for none.
    """

    def __init__(
        self,
        name: str,
        *,
        host: str | None = None,
        port: int = 0,
        path: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._name = name
        self._host = host
        self._port = port
        self._path = path
        self._tls = tls

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect; cancelling the Deferred gives it up. It fails with `ConnectionFailed`."""

        def make() -> LoopTransport:
            protocol = protocolFactory.buildProtocol(UNIXAddress(None))  # of no interest yet
            assert protocol is not None
            return LoopTransport(protocol)

        loop = asyncio.get_running_loop()
        connecting: Coroutine[Any, Any, tuple[asyncio.BaseTransport, LoopTransport]]
        if self._host is None:
            connecting = loop.create_unix_connection(make, self._path)
        else:
            connecting = loop.create_connection(
                make,
                self._host,
                self._port,
                ssl=self._tls,
                happy_eyeballs_delay=None if _is_near_or_one(self._host) else 0.25,
            )
        task = loop.create_task(connecting)

        def give_up(_: object) -> None:
            task.cancel()

        connected: Deferred[IProtocol] = Deferred(give_up)

        def done(task: asyncio.Task[tuple[asyncio.BaseTransport, LoopTransport]]) -> None:
            error = None if task.cancelled() else task.exception()
            if connected.called:  # it was given up
                if not task.cancelled() and error is None:
                    task.result()[1].abortConnection()
            elif error is not None:
                connected.errback(self._explained(error))
            elif not task.cancelled():
                connected.callback(task.result()[1].protocol)

        task.add_done_callback(done)
        return connected

    def _explained(self, error: BaseException) -> BaseException:
        if not isinstance(error, Exception):
            return error
        return ConnectionFailed(
            f"{self._name} does not answer: {reason_of(error)}",
            reason=CloseReason.CONNECTION_LOST,
        )


def _is_near_or_one(host: str) -> bool:
    """Return whether *host* is one address, or this machine, which answers at once.

    There is nothing to race for then; and asyncio leaves a connection open if it is told to give
    up in the moment in which a race is won.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


@implementer(ITransport)
class LoopTransport(asyncio.BufferedProtocol):
    """A connection of asyncio: its protocol on one side, a Twisted transport on the other.

    Who pauses it and resumes it within one turn of the loop has asked the system for nothing.

    Attributes:
        protocol: Who is told what comes.
    """

    def __init__(self, protocol: IProtocol) -> None:
        self.protocol = protocol
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: Any = None
        #: Will pause the reading.
        self._pausing: asyncio.Handle | None = None
        self._producer: IPushProducer | None = None

    # -- what asyncio calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio calls this)."""
        self._transport = transport
        self.protocol.makeConnection(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what to read into (asyncio calls this)."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read (asyncio calls this)."""
        if self._pausing is not None:  # a loop that reads more than once in a turn
            self._pausing.cancel()
            self._pause()
        self.protocol.dataReceived(bytes(self._buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that it is over (asyncio calls this)."""
        self._stay()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        lost = ConnectionDone() if exc is None else ConnectionLost(str(exc))
        self.protocol.connectionLost(Failure(lost))

    def pause_writing(self) -> None:
        """Tell who writes that there is much to be written (asyncio calls this)."""
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume_writing(self) -> None:
        """Tell who writes that there is room again (asyncio calls this)."""
        if self._producer is not None:
            self._producer.resumeProducing()

    # -- what the connection calls ---------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write *data*, now or when there is room."""
        self._transport.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:  # noqa: N802  # Twisted's name
        """Write all of *data*."""
        self._transport.writelines(data)

    def loseConnection(self) -> None:  # noqa: N802
        """Close once everything is written."""
        self._transport.close()

    def abortConnection(self) -> None:  # noqa: N802
        """Close at once."""
        self._transport.abort()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:  # noqa: N802
        """Tell *producer* when to pause."""
        self._producer = producer

    def unregisterProducer(self) -> None:  # noqa: N802
        """Tell nobody any more."""
        self._producer = None

    def pauseProducing(self) -> None:  # noqa: N802
        """Read no more for now.

        What was handed over may be worked off before the loop would read again.
        """
        if self._pausing is None:
            self._pausing = asyncio.get_running_loop().call_soon(self._pause)

    def _pause(self) -> None:
        self._pausing = None
        self._transport.pause_reading()

    def resumeProducing(self) -> None:  # noqa: N802
        """Read on."""
        if self._pausing is None:
            self._transport.resume_reading()
        self._stay()

    def _stay(self) -> None:
        """Do not pause."""
        pausing, self._pausing = self._pausing, None
        if pausing is not None:
            pausing.cancel()

    def getPeer(self) -> IAddress:  # noqa: N802
        """Return who is at the other end."""
        return _address(self._transport.get_extra_info("peername"))

    def getHost(self) -> IAddress:  # noqa: N802
        """Return who we are."""
        return _address(self._transport.get_extra_info("sockname"))


def _address(name: Any) -> IAddress:
    if isinstance(name, tuple):
        kind: Any = IPv6Address if len(name) == 4 else IPv4Address
        address: IAddress = kind("TCP", *name[:2])
        return address
    return UNIXAddress(name.encode() if isinstance(name, str) and name else None)
