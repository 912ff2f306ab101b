"""Where a process connects to."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the first look-up of a name loads it, and needs a descriptor
from dataclasses import replace
from pathlib import Path

from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, clientFromString, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import PrivateCertificate, optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.addresses import Address, EndpointString
from tcprepl.app.tls import trust_root
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed
from tcprepl.replication.failures import reason_of
from tcprepl.replication.following.any_of import AnyOf


def client_endpoint(reactor: Reactor, address: Address) -> IStreamClientEndpoint:
    """Return the endpoint to connect to; its failures name the address and what to do.

    Raises:
        ConfigError: Twisted does not understand the endpoint string, or a token is to be said where
            others could read it on the way.
    """
    if address.others:
        places = [
            replace(each, token=address.token, ca=address.ca, others=()) for each in address.all
        ]
        return AnyOf([client_endpoint(reactor, place) for place in places])
    if address.token is not None and address.is_overheard:
        raise ConfigError(
            f"{address}: a token that is said there can be read on the way; expected an address of "
            f"this machine, or TLS, as in tls:{address.host or 'HOST'}:{address.port or 'PORT'}"
        )
    if address.host is not None and address.port is not None:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            reactor, address.host.encode(), address.port
        )
    else:
        try:
            endpoint = clientFromString(reactor, address.text)
        except Exception as error:  # noqa: BLE001  # parsers are plugins, and raise what comes up
            raise ConfigError(f"{address}: not an endpoint to connect to: {error}") from None
        if address.ca is not None and address.is_encrypted:
            endpoint = _trusting(reactor, address.text, address.ca) or endpoint
    return NamedEndpoint(endpoint, str(address))


def _trusting(reactor: Reactor, text: str, ca: Path) -> IStreamClientEndpoint | None:
    """Return the endpoint of a string that is in order, which trusts the authorities in *ca* alone.

    Returns:
        None: The string says itself what is trusted.

    Raises:
        ConfigError: The file is no good, or endpoints of this kind look at no certificate.
    """
    said = EndpointString.parse(text)
    options = {**dict(zip(("host", "port"), said.words, strict=False)), **said.named}
    if "trustRoots" in options or "caCertsDir" in options:
        return None
    if said.kind == "ssl":
        raise ConfigError(
            f"{text}: {ca} does not count there; expected a tls: endpoint in the place of ssl:"
        )
    own = None
    if "certificate" in options:
        files = (options.get("privateKey", options["certificate"]), options["certificate"])
        own = PrivateCertificate.loadPEM(b"\n".join(Path(file).read_bytes() for file in files))
    if "endpoint" in options:
        endpoint = clientFromString(reactor, options["endpoint"])
    else:
        bound = options.get("bindAddress")
        endpoint = HostnameEndpoint(
            reactor,
            options["host"],
            int(options["port"]),
            int(options.get("timeout", 30)),
            None if bound is None else (bound, 0),
        )
    trust = optionsForClientTLS(options["host"], trustRoot=trust_root(ca), clientCertificate=own)
    trusting: IStreamClientEndpoint = wrapClientTLS(trust, endpoint)
    return trusting


@implementer(IStreamClientEndpoint)
class NamedEndpoint:
    """An endpoint whose failures say where it leads."""

    def __init__(self, endpoint: IStreamClientEndpoint, name: str) -> None:
        self.endpoint = endpoint
        self.name = name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect (Twisted calls this)."""
        connecting: Deferred[IProtocol] = self.endpoint.connect(protocolFactory)
        return connecting.addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        if failure.check(CancelledError, net.ConnectingCancelledError):
            return failure
        return Failure(
            ConnectionFailed(
                f"{self.name} does not answer: {reason_of(failure.value)}",
                reason=CloseReason.CONNECTION_LOST,
            )
        )
