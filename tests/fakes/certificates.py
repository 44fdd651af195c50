"""Certificates for tests, made by the `openssl` program."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.programs import need_programs


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a test's own, in `folder`."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def key(self) -> Path:
        return self.folder / "ca.key"

    def issue(self, host: str) -> tuple[Path, Path]:
        """Certificate and key of a server at `host`, a name or an IP address."""
        cert, key, request = (self.folder / f"{host}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self.folder / f"{host}.ext"
        kind = "DNS" if host[-1].isalpha() else "IP"
        extensions.write_text(f"subjectAltName={kind}:{host}\n")
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        signed_by = ("-CA", self.cert, "-CAkey", self.key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *signed_by, "-days", "2", "-extfile", extensions, "-out", cert)
        return cert, key

    def encrypt(self, key: Path) -> Path:
        """The key under a passphrase."""
        encrypted = key.with_suffix(".encrypted")
        _openssl("ec", "-in", key, "-aes256", "-passout", "pass:test", "-out", encrypted)
        return encrypted


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_authority(folder: Path) -> Authority:
    """Skips the test on a machine without `openssl`."""
    need_programs("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder)
    _openssl(
        *("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=test authority"),
        *("-addext", "keyUsage=critical,keyCertSign"),
        *("-keyout", authority.key, "-out", authority.cert),
    )
    return authority


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
