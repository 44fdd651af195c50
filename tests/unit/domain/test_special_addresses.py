"""Which addresses are the public Internet's, by the registries of RFC 6890, and where clouds keep their metadata."""

import pytest

from gateway.domain.special_addresses import is_metadata, is_never_public, is_public


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
        "2a00:1450::1",
        "2001:200::1",
        "::ffff:93.184.215.14",
        "64:ff9b::5db8:d70e",
    ],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254"),
        *("169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.170"),
        *("192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1"),
        *("198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
        "255.255.255.255",
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::ffff:100.100.100.200"),
        *("64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::5db8:d70e", "100::1", "100:0:0:1::1"),
        *("2001::1", "2001:0:5db8:d70e::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
        *("2002:a00:1::", "2002:5db8:d70e::1", "2620:4f:8000::1", "3fff::1", "4000::1", "5f00::1", "fc00::1"),
        *("fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1"),
        *("168.63.129.16", "100.100.100.200", "::ffff:168.63.129.16", "64:ff9b::a83f:8110"),
        *("", "localhost", "1.2.3", "1.2.3.4.5", "0x7f.1", "2130706433"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("host", ["168.63.129.16", "169.254.169.254", "fd00:ec2::254", "Metadata.Google.Internal."])
def test_where_clouds_keep_their_metadata(host: str) -> None:
    assert is_metadata(host)
    assert is_never_public(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "models.example", "metadata.example", "2a00:1450::1", "7.example"])
def test_a_name_may_be_public_until_its_addresses_are_known(host: str) -> None:
    assert not is_metadata(host)
    assert not is_never_public(host)


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "017700000001", "1.2.3.4.", "localhost", "a.localhost", "::1"])
def test_what_is_plainly_not_public(host: str) -> None:
    assert is_never_public(host) is (host != "1.2.3.4.")
