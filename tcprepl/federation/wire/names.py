"""SRV records of a name, from DNS."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.names import client as dns_client
from twisted.names import dns
from twisted.names.error import DNSNameError

from tcprepl.clocks import Reactor
from tcprepl.federation.wire.discovery import SrvRecord

#: Waits for an answer; each is one try.
_TRIES_S = (2, 5)


class SrvResolver:
    """Looks up SRV records, with the name servers of this machine."""

    def __init__(self, reactor: Reactor) -> None:
        """Make the resolver; nothing is read before it is used."""
        self._reactor = reactor
        self._resolver: Any = None

    async def lookup(self, name: str) -> list[SrvRecord]:
        """Return the SRV records of *name*; none if DNS says that there are none.

        Raises:
            Exception: DNS did not say.
        """
        if self._resolver is None:
            self._resolver = dns_client.Resolver("/etc/resolv.conf", reactor=self._reactor)
        asked: Deferred[Any] = self._resolver.lookupService(name, timeout=_TRIES_S)
        try:
            answers, _, _ = await asked
        except DNSNameError:
            return []
        return [
            SrvRecord(
                header.payload.priority,
                header.payload.weight,
                header.payload.port,
                header.payload.target.name.decode("ascii", "replace"),
                header.ttl,
            )
            for header in answers
            if header.type == dns.SRV
        ]
