"""TLS between workers and gateways, and between gateways."""

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

HTTP2: Final = ("h2",)


class TlsError(Exception):
    """A certificate or a key cannot be used. The message names the file and the reason."""


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Returns the TLS context of a gateway that shows `cert` (PEM, with its chain). Raises `TlsError`."""
    for path in (cert, key):
        _check_readable(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(HTTP2)

    def refuse_to_ask() -> NoReturn:
        """Raises `TlsError`. Otherwise OpenSSL would ask for the password at the terminal and wait."""
        raise TlsError(f"the key {key} is encrypted; give one that is not")

    try:
        context.load_cert_chain(cert, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        raise TlsError(
            f"the certificate {cert} and the key {key} can't be used together: {_describe_error(error)}"
        ) from error
    return context


def client_context(ca: Path | None) -> ssl.SSLContext:
    """Returns the TLS context of a worker. It trusts certificates that `ca` (PEM) has signed, or what the system trusts
    if `ca` is None.

    Raises `TlsError`.
    """
    if ca is not None:
        _check_readable(ca)
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    except ssl.SSLError as error:
        raise TlsError(f"{ca} holds no certificate (PEM): {_describe_error(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(HTTP2)
    return context


def peer_context(trusted: Iterable[Path]) -> ssl.SSLContext:
    """Returns the TLS context of a gateway that asks another one.

    It trusts what the system trusts and each certificate in `trusted` (PEM), whether that has signed others or is the
    one that the gateways of the fleet show. Raises `TlsError`.
    """
    context = client_context(None)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for path in trusted:
        _check_readable(path)
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise TlsError(f"{path} holds no certificate (PEM): {_describe_error(error)}") from error
    return context


def _check_readable(path: Path) -> None:
    """Raises `TlsError` if the file cannot be read, because OpenSSL's own errors do not name the file."""
    try:
        path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} can't be read: {error.strerror or error}") from error


def _describe_error(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
