"""Certificates and keys that can't be used are named, before anything listens or connects."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.transport.tls import TlsError, client_context, peer_context, server_context
from tests.fakes.certificates import Authority, make_authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def test_contexts_speak_http2_over_a_modern_tls(authority: Authority) -> None:
    server, client = server_context(*authority.issue("127.0.0.1")), client_context(authority.cert)
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client.verify_mode is ssl.CERT_REQUIRED
    assert client.check_hostname


def test_without_a_ca_the_system_is_trusted() -> None:
    assert client_context(None).verify_mode is ssl.CERT_REQUIRED


def test_a_file_that_is_not_there_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("127.0.0.1")
    missing = tmp_path / "missing.pem"
    attempts: list[Callable[[], ssl.SSLContext]] = [
        lambda: server_context(missing, key),
        lambda: server_context(cert, missing),
        lambda: client_context(missing),
        lambda: peer_context([cert, missing]),
    ]
    for attempt in attempts:
        with pytest.raises(TlsError, match=r"missing\.pem can't be read: No such file"):
            attempt()


def test_a_file_that_is_no_certificate_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("127.0.0.1")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("hello")
    with pytest.raises(TlsError, match=r"garbage\.pem and the key"):
        server_context(garbage, key)
    with pytest.raises(TlsError, match=r"garbage\.pem can't be used"):
        server_context(cert, garbage)
    with pytest.raises(TlsError, match=r"garbage\.pem holds no certificate"):
        client_context(garbage)
    with pytest.raises(TlsError, match=r"garbage\.pem holds no certificate"):
        peer_context([cert, garbage])


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    cert, _ = authority.issue("127.0.0.1")
    with pytest.raises(TlsError, match="can't be used together: key values mismatch"):
        server_context(cert, authority.key)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(authority: Authority) -> None:
    cert, key = authority.issue("127.0.0.1")
    with pytest.raises(TlsError, match="is encrypted"):
        server_context(cert, authority.encrypt(key))
