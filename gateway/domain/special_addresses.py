"""Decides which IP addresses belong to hosts of the public Internet (RFC 6890). Pure.

Python's own `is_global` follows only a part of the registries, a different one in each version, and does not know the
services that clouds have put at public addresses. So the table is here.
"""

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

SPECIAL_IPV4: Final = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared between a provider and its customers; Alibaba's metadata are in it
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; the metadata of most clouds are in it
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments; the metadata of Oracle's older cloud are in it
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast included
    )
)
"""The blocks in IANA's registry of special-purpose IPv4 addresses, and multicast. Some of these blocks are routed
everywhere, but no file server is in any of them."""
GLOBAL_UNICAST_IPV6: Final = IPv6Network("2000::/3")
"""The block that IANA has opened for public hosts. Outside it are, among others, the loopback, fc00::/7 (private use),
fe80::/10 (link-local), fec0::/10 (site-local), ff00::/8 (multicast), 100::/64 (discarded), 64:ff9b:1::/48 (NAT64 of one
network) and 5f00::/16 (segment routing)."""
SPECIAL_IPV6: Final = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo included
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which leads to the IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
"""The blocks of IANA's registry of special-purpose IPv6 addresses within `GLOBAL_UNICAST_IPV6`."""
IPV4_INSIDE: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""The blocks whose last 32 bits are an IPv4 address, to which a packet goes: mapped addresses, and the NAT64 through
which a network with IPv6 alone reaches public hosts."""
METADATA_ADDRESSES: Final = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Azure, Google, Oracle, DigitalOcean, OpenStack
        IPv4Address("169.254.170.2"),  # credentials of AWS's containers
        IPv4Address("169.254.170.23"),  # those of AWS's pods
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv4Address("192.0.0.192"),  # Oracle, the older one
        IPv4Address("168.63.129.16"),  # Azure's host, at an address that is public elsewhere
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),  # AWS's pods
        IPv6Address("fd20:ce::254"),  # Google
        IPv6Address("fd00:c1::a9fe:a9fe"),  # Oracle
    }
)
"""The addresses from which a virtual machine gets credentials of its cloud."""
METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_public(address: str) -> bool:
    """Returns whether a host of the public Internet may have the address. Returns False for a text that is no
    address."""
    try:
        parsed = _unwrapped(ipaddress.ip_address(address))
    except ValueError:
        return False
    if parsed in METADATA_ADDRESSES:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in block for block in SPECIAL_IPV4)
    return parsed in GLOBAL_UNICAST_IPV6 and not any(parsed in block for block in SPECIAL_IPV6)


def is_metadata(host: str) -> bool:
    """Returns whether a cloud's metadata service is there, by the host's name or its address."""
    name = host.lower().rstrip(".")
    try:
        return name in METADATA_NAMES or _unwrapped(ipaddress.ip_address(name)) in METADATA_ADDRESSES
    except ValueError:
        return False


def is_never_public(host: str) -> bool:
    """Returns whether the host is not public without resolving it: an address that is not public, in any spelling that
    resolvers accept (127.1, 0x7f000001), a name of this machine, or a cloud's metadata service."""
    name = host.lower().rstrip(".")
    if ":" in name or _NUMBER.fullmatch(name.rpartition(".")[2]):
        return not is_public(name)
    return is_metadata(name) or name == "localhost" or name.endswith(".localhost")


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and any(address in block for block in IPV4_INSIDE):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
