"""Only public addresses, whatever they are dressed in."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.wire.addresses import AddressPolicy

PRIVATE = ["10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0"]


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b:1::8.8.8.8", False),
        ("2002:7f00:1::", False),
        ("2002:0a00:1::1", False),
        ("2002:0808:0808::1", True),
        ("::127.0.0.1", False),
        ("::", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("100::1", False),
        ("ff02::1", False),
        ("2606:4700::200:5efe:10.0.0.1", False),
        ("2606:4700::5efe:8.8.8.8", True),
        ("0.1.2.3", False),
        ("192.0.0.1", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("239.1.2.3", False),
        ("255.255.255.255", False),
        ("4000::1", False),
    ],
)
def test_only_public_addresses_are_connected_to(address: str, fine: bool) -> None:
    assert AddressPolicy().permits(address) is fine
    assert AddressPolicy(allow_private=True).permits(address)


def test_ranges_can_be_allowed() -> None:
    policy = AddressPolicy(["10.0.0.0/8", "fd00::/8"])
    assert policy.permits("10.1.2.3")
    assert policy.permits("fd00::1")
    assert not policy.permits("192.168.0.1")
    with pytest.raises(ValueError, match="nonsense"):
        AddressPolicy(["nonsense"])


def dressed(address: str) -> list[str]:
    """Return the IPv6 addresses that carry *address*."""
    number = int(ipaddress.IPv4Address(address))
    return [
        str(ipaddress.IPv6Address(found))
        for found in (
            number,
            0xFFFF << 32 | number,
            0xFFFF << 48 | number,
            0x64FF9B << 96 | number,
            0x2002 << 112 | number << 80 | 1,
            0x26064700 << 96 | 0x5EFE << 32 | number,
        )
    ]


@given(st.ip_addresses(v=4).map(str) | st.sampled_from(PRIVATE))
def test_an_ipv4_address_is_as_public_in_ipv6_clothes(address: str) -> None:
    plain = AddressPolicy().permits(address)
    assert {AddressPolicy().permits(found) for found in dressed(address)} == {plain}


@given(st.ip_addresses(v=6))
def test_nothing_but_global_unicast_passes_without_an_ipv4_address_inside(
    address: ipaddress.IPv6Address,
) -> None:
    if AddressPolicy().permits(str(address)):
        assert address in ipaddress.IPv6Network("2000::/3") or int(address) >> 96 in (0, 0x64FF9B)


def test_a_range_that_is_allowed_is_allowed_in_ipv6_clothes() -> None:
    policy = AddressPolicy(["10.0.0.0/8"])
    assert all(policy.permits(found) for found in dressed("10.1.2.3"))
    assert not any(policy.permits(found) for found in dressed("192.168.0.1"))
