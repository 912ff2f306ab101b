"""Which addresses we connect to (protocol.md section 14).

A server name that somebody else chose must not make us talk to our own network. An address is
judged by where packets to it end: one that carries an IPv4 address inside, in any of the ways that
there are, by that address. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: Not public, whatever the interpreter's own tables say: they differ between releases.
_NOT_PUBLIC = _networks(
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared by the customers of a carrier
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",
    "240.0.0.0/4",
    "64:ff9b:1::/48",  # NAT64 within a network
    "100::/64",  # discarded
    "100:0:0:1::/64",
    "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",  # site-local
    "ff00::/8",
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: What ISATAP puts before an IPv4 address in the lower half; the universal bit may be set.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses at which packets to *address* may end."""
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address in _COMPATIBLE or address in _NAT64 or address in _TRANSLATED:
        yield last
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (number >> 32) & 0xFFFF_FFFF in _ISATAP:
        yield last


def is_public(address: Address) -> bool:
    """Whether *address*, and every IPv4 address inside it, is one of the public Internet."""
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global
    inside = list(_embedded(address))
    if not all(is_public(inner) for inner in inside):
        return False
    return address in _GLOBAL_UNICAST or bool(inside)


class AddressPolicy:
    """Which addresses we connect to: public ones, and those that an operator allows."""

    def __init__(self, allowed: Iterable[str] = (), *, allow_private: bool = False) -> None:
        """Make the policy.

        Args:
            allowed: Ranges that are allowed too, for instance ``10.0.0.0/8``.
            allow_private: Whether every address is allowed.

        Raises:
            ValueError: One of *allowed* is not a range.
        """
        self._allowed: list[Network] = [ipaddress.ip_network(text) for text in allowed]
        self._allow_private = allow_private

    def permits(self, address: str) -> bool:
        """Whether we may connect to *address*."""
        if self._allow_private:
            return True
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if self._is_allowed(parsed) or is_public(parsed):
            return True
        # An operator who allows an IPv4 range allows it in its IPv6 clothes, where it is all
        # that is inside.
        if isinstance(parsed, ipaddress.IPv6Address):
            inside = list(_embedded(parsed))
            return bool(inside) and all(
                self._is_allowed(inner) or is_public(inner) for inner in inside
            )
        return False

    def _is_allowed(self, address: Address) -> bool:
        return any(address in network for network in self._allowed)
