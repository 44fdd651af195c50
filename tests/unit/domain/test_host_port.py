"""Which hosts are the machine itself: one rule for listeners, the browser guard, workers and downloads."""

import pytest

from gateway.domain.host_port import is_loopback, is_loopback_address

ADDRESSES = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"]
"""The last one is IPv4 inside IPv6: it leads to 127.0.0.1, and a listener of both families reports peers like that."""
NAMES = ["localhost", "LOCALHOST."]
OTHERS = ["0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:192.168.0.1", "192.168.0.1", "localhost.evil.net", "[::1]", ""]


@pytest.mark.parametrize("host", [*ADDRESSES, *NAMES])
def test_hosts_that_are_the_machine_itself(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", OTHERS)
def test_hosts_that_may_be_another_machine(host: str) -> None:
    assert not is_loopback(host)
    assert not is_loopback_address(host)


@pytest.mark.parametrize("host", ADDRESSES)
def test_loopback_addresses(host: str) -> None:
    assert is_loopback_address(host)


@pytest.mark.parametrize("host", NAMES)
def test_a_name_is_no_loopback_address_because_it_has_to_be_resolved(host: str) -> None:
    assert not is_loopback_address(host)
