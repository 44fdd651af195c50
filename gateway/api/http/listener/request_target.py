"""Reads the four forms of a request's target and its `Host` (RFC 9112, 3.2; RFC 9110, 7.2). Pure.

Almost every target is a path, which costs two comparisons here. A client that takes the gateway for a proxy sends a
whole URL, and this is the machine that the URL names.
"""

import re
from functools import lru_cache
from typing import Final

HOSTS_CACHED: Final = 64
ASTERISK: Final = b"*"
"""The target that means the server itself. Only the method OPTIONS has it."""
OPTIONS: Final = b"OPTIONS"
_NAME: Final = rb"(?:[-A-Za-z0-9._~!$&'()*+,;=]|%[0-9a-fA-F]{2})*+"
_AUTHORITY: Final = re.compile(rb"(?:\[[0-9a-fA-F:.]+\]|%b)(?::[0-9]{0,5})?" % _NAME)
_ABSOLUTE: Final = re.compile(rb"[hH][tT][tT][pP][sS]?://([^/?#]+)([^#]*)")
_BROKEN_PERCENT: Final = re.compile(rb"%(?![0-9a-fA-F]{2})")


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """Returns the path with its query (or `*`), and the host if the target names one: it counts instead of the header.

    Raises `ValueError` with the fault.
    """
    host = None
    if target == ASTERISK:
        if method != OPTIONS:
            raise ValueError("an asterisk as the target of a method other than OPTIONS")
        return target, None
    if target[:1] != b"/":
        target, host = _split_absolute(method, target)
    if b"#" in target:
        raise ValueError("a target with a fragment")
    if b"%" in target and _BROKEN_PERCENT.search(target.partition(b"?")[0]):
        raise ValueError("a path with a percent sign that encodes nothing")
    return target, host


def _split_absolute(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    parts = _ABSOLUTE.fullmatch(target)
    if parts is None:
        raise ValueError("a target that is neither a path nor an http URL")
    host, rest = parts.groups()
    if not is_host(host):
        raise ValueError("a target with a host that is none")
    if not rest:
        return (ASTERISK if method == OPTIONS else b"/"), host
    return (rest if rest.startswith(b"/") else b"/" + rest), host


@lru_cache(HOSTS_CACHED)
def is_host(value: bytes) -> bool:
    """Returns whether the value is a host with or without a port, or empty, as `Host` may be."""
    return _AUTHORITY.fullmatch(value) is not None
