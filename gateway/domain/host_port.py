"""The form of a backend process's address, and which hosts are the machine itself or can be nobody's. Pure."""

import ipaddress
import re
from typing import Final

PORT_MAX: Final = 65535
HOST_CHARACTERS_MAX: Final = 253
"""The largest length of a name in the DNS (RFC 1035, 2.3.4)."""

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def split_address(address: str) -> tuple[str, int]:
    """Returns the host (an IPv6 one without its brackets) and the port. Raises `ValueError` with the fault."""
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > PORT_MAX:
        raise ValueError(f"expected HOST:PORT with a port from 1 to {PORT_MAX}, got {shown(address)}")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if is_bracketed != (":" in bare):
        raise ValueError(f"expected HOST:PORT with an IPv6 address in brackets, got {shown(address)}")
    return check_host(bare), int(port)


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the IP address, or None for a name. An IPv4 address inside an IPv6 one is returned as IPv4, because it
    leads there."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def check_host(host: str) -> str:
    """Returns the host if it is a name, or an IP address that a machine can have. Raises `ValueError` otherwise."""
    ip = parse_ip(host)
    if ip is None and (len(host) > HOST_CHARACTERS_MAX or not _NAME.fullmatch(host)):
        raise ValueError(f"expected a host name or an IP address, got {shown(host)}")
    if ip is not None and (ip.is_unspecified or ip.is_multicast or ip.is_link_local):
        raise ValueError(f"expected an address that gateways can reach, got {shown(host)}")
    return host


def is_loopback(host: str) -> bool:
    """Returns whether `host` names the machine itself: a loopback address, or `localhost`.

    Any other name may be resolved to anything. Use `is_loopback_address` where the name is going to be resolved by
    somebody whose answer is not trusted.
    """
    return is_loopback_address(host) or host.lower().rstrip(".") == "localhost"


def is_loopback_address(host: str) -> bool:
    """Returns whether `host` is a loopback address. Returns False for every name, `localhost` included."""
    ip = parse_ip(host)
    return ip is not None and ip.is_loopback


def is_same_host(one: str, other: str) -> bool:
    """Returns whether both are the same name, or the same IP address in any spelling. No name is looked up."""
    return _normal(one) == _normal(other)


def shown(text: str) -> str:
    """Returns the beginning of a received text, on one line."""
    return ascii(text[:80])


def _normal(host: str) -> str:
    ip = parse_ip(host)
    return host.lower().rstrip(".") if ip is None else str(ip)
