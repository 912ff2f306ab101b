"""SRV records from DNS."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSServerError

from tcprepl.federation.wire import names as module
from tcprepl.federation.wire.names import SrvResolver


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


class Names:
    """Answers by the first word of a name."""

    def lookupService(self, name: str, timeout: object) -> Deferred[Any]:
        if name == "none":
            return fail(DNSNameError())
        if name == "broken":
            return fail(DNSServerError())
        header = dns.RRHeader(b"x", dns.SRV, ttl=60, payload=dns.Record_SRV(1, 2, 3, b"t.example"))
        other = dns.RRHeader(b"x", dns.A, payload=dns.Record_A("1.2.3.4"))
        return succeed(([header, other], [], []))


def test_srv_records_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.dns_client, "Resolver", lambda *_, **__: Names())
    resolver = SrvResolver(MemoryReactorClock())
    (found,) = result(resolver.lookup("_matrix-fed._tcp.h"))
    assert (found.priority, found.weight, found.port) == (1, 2, 3)
    assert (found.target, found.ttl_s) == ("t.example", 60)
    assert result(resolver.lookup("none")) == []


def test_a_failure_of_dns_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.dns_client, "Resolver", lambda *_, **__: Names())
    with pytest.raises(DNSServerError):
        result(SrvResolver(MemoryReactorClock()).lookup("broken"))
