"""Where the server called X is: the Matrix server discovery (protocol.md section 14).

The steps are those of the Matrix specification, "Resolving server names": address literals,
explicit ports, ``.well-known``, SRV records (the current and the deprecated one), port 8448.
What was found is cached, bounded, for as long as it says, within limits; a passing failure is not
taken for "there is none". Network and clock are
arguments: `tcprepl.federation.wire.transport` supplies the real ones.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial

import msgspec

from tcprepl.errors import FederationError
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.federation.wire.lasting import Lasting
from tcprepl.federation.wire.shared import Shared
from tcprepl.ids import ServerName

DEFAULT_PORT = 8448
#: How long a ``.well-known`` answer is kept that does not say.
WELL_KNOWN_DEFAULT_S = 24 * 3600
#: Bounds of what it may say.
WELL_KNOWN_MIN_S = 300
WELL_KNOWN_MAX_S = 48 * 3600
#: How long the absence of a ``.well-known`` is kept.
WELL_KNOWN_NONE_S = 3600
#: How long an answer counts beyond its time while nothing better is to be had.
GRACE_S = 48 * 3600
#: Largest ``.well-known`` answer that is read.
WELL_KNOWN_MAX_BYTES = 51_200
#: Bounds of how long SRV records are kept.
SRV_MIN_S = 60
SRV_MAX_S = 24 * 3600
#: How long it is kept that a server has no SRV records.
SRV_NONE_S = 3600
#: Destinations that are remembered.
CACHE_ENTRIES = 10_000

_SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")
#: Statuses that say that there is no ``.well-known``.
_ABSENT = frozenset({404, 410})
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?(\d{1,9})\"?\s*(?:,|$)", re.IGNORECASE)
_NO_STORE = re.compile(r"(?:^|,)\s*no-(?:store|cache)\b", re.IGNORECASE)


class NotFound(FederationError):
    """There is no way to reach a destination: its name is not one, or says it has no service."""


@dataclass(frozen=True, slots=True)
class Target:
    """One way to reach a destination.

    Attributes:
        host: Name or address to connect to.
        port: Port to connect to.
        tls_name: Name or address that the certificate has to be for.
        host_header: What the Host header says.
        pinned: Whether an operator named this address: address rules do not apply.
    """

    host: str
    port: int
    tls_name: str
    host_header: str
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record."""

    priority: int
    weight: int
    port: int
    target: str
    ttl_s: int = SRV_NONE_S


@dataclass(frozen=True, slots=True)
class WellKnownAnswer:
    """What ``https://HOST/.well-known/matrix/server`` answered."""

    status: int
    body: bytes
    cache_control: str = ""
    expires: str = ""


@dataclass(slots=True)
class Discovered:
    """What is remembered of a destination."""

    targets: list[Target]
    expires_s: float
    how: str
    hosts: tuple[str, ...] = ()


class _WellKnownBody(msgspec.Struct):
    server: str = msgspec.field(name="m.server")


def split_server_name(name: ServerName) -> tuple[str, int | None, bool]:
    """Return host (without brackets), port if there is one, and whether the host is an address.

    Raises:
        NotFound: *name* is not a server name.
    """
    if not is_server_name(name):
        raise NotFound(f"{name[:64]!r} is not a server name")
    host, colon, digits = name.rpartition(":")
    if not colon or name.endswith("]"):
        host, digits = name, ""
    port = int(digits) if digits else None
    bare = host[1:-1] if host.startswith("[") else host
    try:
        version: int = ipaddress.ip_address(bare).version
    except ValueError:
        version = 0
    if not version:
        return host, port, False
    return bare, port, True


def well_known_lifetime_s(answer: WellKnownAnswer, now_s: float) -> float:
    """Return how long a good answer is kept, from its headers, within our bounds."""
    lifetime: float = WELL_KNOWN_DEFAULT_S
    found = _MAX_AGE.search(answer.cache_control)
    if _NO_STORE.search(answer.cache_control):
        lifetime = 0
    elif found:
        lifetime = int(found[1])
    elif answer.expires:
        try:
            lifetime = parsedate_to_datetime(answer.expires).timestamp() - now_s
        except ValueError:
            lifetime = 0
    return min(max(lifetime, WELL_KNOWN_MIN_S), WELL_KNOWN_MAX_S)


def order_srv(records: Sequence[SrvRecord], chance: random.Random) -> list[SrvRecord]:
    """Return *records* in the order to try them: by priority, by weighted chance within one."""
    ordered: list[SrvRecord] = []
    for priority in sorted({record.priority for record in records}):
        left = sorted(
            (record for record in records if record.priority == priority),
            key=lambda record: record.weight > 0,
        )
        while left:
            point = chance.uniform(0, sum(record.weight for record in left))
            for record in left:
                point -= record.weight
                if point <= 0:
                    break
            ordered.append(record)
            left.remove(record)
    return ordered


class Discovery:
    """Finds destinations, and remembers where they are.

    Args:
        now_s: Returns wall-clock time in seconds.
        fetch_well_known: Fetches a host's ``.well-known`` answer; fails if none came.
        lookup_srv: Returns the SRV records of a name, none if there are none; fails if DNS does.
        overrides: Destinations that an operator has placed, each with host and port.
        chance: Source of chance for SRV weights and for spreading expiry.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        fetch_well_known: Callable[[str], Awaitable[WellKnownAnswer]],
        lookup_srv: Callable[[str], Awaitable[Sequence[SrvRecord]]],
        overrides: Mapping[ServerName, tuple[str, int]] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._now_s = now_s
        self._fetch_well_known = fetch_well_known
        self._lookup_srv = lookup_srv
        self._overrides = dict(overrides or {})
        self._chance = chance or random.Random()  # noqa: S311  # load spreading, not a secret
        self._cache: OrderedDict[ServerName, Discovered] = OrderedDict()
        #: How often something was to be forgotten: what was searched before that is not kept.
        self._forgotten = 0
        self._searches: Shared[tuple[int, ServerName], Discovered] = Shared()
        self._well_knowns: Lasting[str, ServerName] = Lasting(now_s, CACHE_ENTRIES, GRACE_S)
        self._srvs: Lasting[str, Sequence[SrvRecord]] = Lasting(now_s, 2 * CACHE_ENTRIES, GRACE_S)

    async def resolve(self, destination: ServerName) -> list[Target]:
        """Return the ways to reach *destination*, best first; at least one.

        Several callers at once share one search.

        Raises:
            NotFound: There is none.
        """
        while (found := self.cached(destination)) is None:
            age = self._forgotten
            found = await self._searches.ask((age, destination), lambda: self._search(destination))
            if age == self._forgotten:
                self._cache[destination] = found
                while len(self._cache) > CACHE_ENTRIES:
                    self._cache.popitem(last=False)
                break
        return found.targets

    def place(self, overrides: Mapping[ServerName, tuple[str, int]]) -> None:
        """Take up where an operator places destinations now; forget those that this changes."""
        before, self._overrides = self._overrides, dict(overrides)
        for destination in before.keys() | overrides.keys():
            if before.get(destination) != overrides.get(destination):
                self.forget(destination)

    def cached(self, destination: ServerName) -> Discovered | None:
        """Return what is remembered of *destination*, if it is still good."""
        found = self._cache.get(destination)
        if found is None:
            return None
        if found.expires_s <= self._now_s():
            del self._cache[destination]
            return None
        self._cache.move_to_end(destination)
        return found

    def forget(self, destination: ServerName) -> bool:
        """Forget where *destination* is; returns whether it was known."""
        self._forgotten += 1
        found = self._cache.pop(destination, None)
        for host in {destination, *(() if found is None else found.hosts)}:
            self._well_knowns.forget(host)
            for service in _SERVICES:
                self._srvs.forget(f"{service}.{host}")
        return found is not None

    async def _search(self, destination: ServerName) -> Discovered:
        now_s = self._now_s()
        placed = self._overrides.get(destination)
        host, port, is_literal = split_server_name(destination)
        if placed is not None:
            target = Target(placed[0], placed[1], host, destination, pinned=True)
            return Discovered([target], now_s + WELL_KNOWN_MAX_S, "placed by the operator")
        if is_literal or port is not None:
            target = Target(host, port or DEFAULT_PORT, host, destination)
            how = "an address" if is_literal else "a name with a port"
            return Discovered([target], now_s + WELL_KNOWN_MAX_S, how)
        delegate, good_s = await self._well_knowns.get(host, lambda: self._well_known(host))
        if delegate is None:
            targets, srv_s, how = await self._by_srv(host)
            return Discovered(targets, now_s + min(good_s, srv_s), how, (host,))
        name = host
        host, port, is_literal = split_server_name(delegate)
        if is_literal or port is not None:
            target = Target(host, port or DEFAULT_PORT, host, delegate)
            return Discovered([target], now_s + good_s, f"well-known: {delegate}", (name,))
        targets, srv_s, how = await self._by_srv(host)
        return Discovered(
            targets, now_s + min(good_s, srv_s), f"well-known: {delegate}, {how}", (name, host)
        )

    async def _well_known(self, host: str) -> tuple[ServerName | None, float]:
        """Return what *host* delegates to, or None, and for how many seconds that is good.

        Raises:
            Exception: It could not be found out.
        """
        spread = self._chance.uniform(0.9, 1.0)
        answer = await self._fetch_well_known(host)
        if answer.status in _ABSENT:
            return None, WELL_KNOWN_NONE_S * spread
        if answer.status != 200:
            raise NotFound(f"HTTP {answer.status}")
        if len(answer.body) > WELL_KNOWN_MAX_BYTES:
            raise NotFound("the answer is too long")
        delegate = msgspec.json.decode(answer.body, type=_WellKnownBody).server
        split_server_name(delegate)
        return delegate, well_known_lifetime_s(answer, self._now_s()) * spread

    async def _srv(self, name: str) -> tuple[Sequence[SrvRecord] | None, float]:
        records = await self._lookup_srv(name)
        if not records:
            return None, SRV_NONE_S
        ttl_s = min(record.ttl_s for record in records)
        return records, min(max(ttl_s, SRV_MIN_S), SRV_MAX_S)

    async def _by_srv(self, host: str) -> tuple[list[Target], float, str]:
        """Return the targets that SRV records name, or *host* at the default port."""
        good_s: float = SRV_NONE_S
        for service in _SERVICES:
            name = f"{service}.{host}"
            records, seconds = await self._srvs.get(name, partial(self._srv, name))
            good_s = min(good_s, seconds) if not records else seconds
            if not records:
                continue
            if len(records) == 1 and records[0].target in ("", "."):
                raise NotFound(f"{host} says in DNS that it has no such service")
            targets = [
                Target(record.target.rstrip("."), record.port, host, host)
                for record in order_srv(records, self._chance)
            ]
            return targets, good_s, f"SRV {service}"
        return [Target(host, DEFAULT_PORT, host, host)], good_s, f"port {DEFAULT_PORT}"
