"""Secrets that the configuration keeps in files of their own: `auth.join_token_file`, `auth.cluster_secret_file`."""

from pathlib import Path
from typing import Final

from pydantic import SecretStr, TypeAdapter, ValidationError

from gateway.config.fields import Secret
from gateway.config.model import AuthSection
from gateway.config.partial import Refusal

SECRET_BYTES_MAX: Final = 64 * 1024
_SECRET: Final[TypeAdapter[SecretStr]] = TypeAdapter(Secret)


class UnusableSecret(Exception):
    """The message says why, without the path: a user may have put the secret itself in its place."""


def read_secret_files(auth: AuthSection, folder: Path) -> tuple[AuthSection, list[Refusal]]:
    """Returns `auth` with the secrets of its files filled in, and a problem for each file that cannot be used. A
    relative path is looked for in `folder`. White space around a secret, such as the final newline, is removed."""
    secrets, refused = dict[str, SecretStr](), list[Refusal]()
    for name in ("join_token", "cluster_secret"):
        path: Path | None = getattr(auth, f"{name}_file")
        try:
            if path is not None:
                secrets[name] = _read_secret(folder / path)
        except UnusableSecret as error:
            refused.append((("auth", f"{name}_file"), str(error)))
    return auth.model_copy(update=secrets), refused


def _read_secret(path: Path) -> SecretStr:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise UnusableSecret(f"the file can't be read: {error.strerror}") from None
    if len(content) > SECRET_BYTES_MAX:
        raise UnusableSecret(f"the file is larger than {SECRET_BYTES_MAX // 1024} KiB")
    try:
        return _SECRET.validate_python(content.decode().strip())
    except (UnicodeDecodeError, ValidationError):
        raise UnusableSecret("the file must hold one secret of visible ASCII characters without spaces") from None
