"""The types of single configuration values: the form of each, and the sentence that a user reads if a value is
wrong."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, StrictBool, StrictInt, StrictStr

from gateway.config.units import (
    Percent,
    PortRange,
    describe,
    kind,
    parse_budget,
    parse_duration,
    parse_port_range,
    parse_size,
    plain_text,
)
from gateway.domain.artifact import find_fault
from gateway.domain.host_port import PORT_MAX, parse_ip
from gateway.domain.inference import INT32_MAX
from gateway.domain.texts import is_visible_ascii

BODY_BYTES_MAX: Final = 48 * 1024 * 1024
"""The upper limit of `server.max_body`: with its envelope, a body has to fit into one gRPC message of 50 MiB."""
NAME_CHARACTERS_MAX: Final = 128
MODEL_NAME_CHARACTERS_MAX: Final = 256

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#@,]+)")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_VARIABLE_PATTERN: Final = re.compile(r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*")


def _check_host(host: str) -> str:
    if parse_ip(host) is None and not _HOST_NAME.fullmatch(host):
        raise ValueError(f'expected a host name or an IP address such as "127.0.0.1" or "::1", got {describe(host)}')
    return host


def _parse_hosts(value: object) -> str | tuple[str, ...]:
    """Returns one host, or several."""
    if isinstance(value, str):
        return _check_host(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a string, got {describe(value)}")  # noqa: TRY004 - pydantic's protocol
    if not value:
        raise ValueError("names no host")
    if not all(isinstance(each, str) for each in value):
        raise ValueError("expected a list of hosts, each as a string")
    if len(set(value)) < len(value):
        raise ValueError("names one host twice")
    return tuple(_check_host(each) for each in value)


def _check_reachable(host: str) -> str:
    ip = parse_ip(_check_host(host))
    if ip is not None and ip.is_unspecified:
        raise ValueError(f"expected an address that other machines can reach, got {describe(host)}")
    return host


def _check_origin(origin: str) -> str:
    """Returns the origin as browsers send it: in small letters, and without the port that its scheme implies."""
    if origin in {"*", "null"}:
        return origin
    parts = _ORIGIN.fullmatch(origin.lower())
    if parts is None or not origin.isascii():
        raise ValueError(
            'expected the origin of a web page, such as "https://chat.example.net" or "http://localhost:3000" '
            f'(no path, no slash at its end), or "*" for every origin, got {describe(origin)}'
        )
    return origin.lower().removesuffix(_DEFAULT_PORTS.get(parts[1], "/"))


def check_name(name: str) -> str:
    """Returns the name of a node, a key or a backend. Raises `ValueError` if it is not allowed."""
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise ValueError(
            "expected a name of letters, digits, dots, dashes and underscores "
            f"(at most {NAME_CHARACTERS_MAX} characters), got {describe(name)}"
        )
    return name


def _check_model_name(name: str) -> str:
    if not 1 <= len(name) <= MODEL_NAME_CHARACTERS_MAX or not name.isprintable() or " " in name:
        raise ValueError(
            f"expected a name of 1 to {MODEL_NAME_CHARACTERS_MAX} printable characters without spaces, "
            f"got {describe(name)}"
        )
    return name


def _check_sha256(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise ValueError("expected a SHA-256 as 64 hexadecimal digits")
    return digest.lower()


def _check_secret(secret: SecretStr) -> SecretStr:
    if not is_visible_ascii(secret.get_secret_value()):
        raise ValueError("expected a secret of visible ASCII characters without spaces, not empty")
    return secret


def _check_secret_sha256(secret: SecretStr) -> SecretStr:
    return SecretStr(_check_sha256(secret.get_secret_value()))


def _check_artifact(artifact: str) -> str:
    if (fault := find_fault(artifact)) is not None:
        raise ValueError(fault)
    return artifact


def _check_registry_url(url: str) -> str:
    # No message shows a registry URL, because PostgreSQL's contain a password.
    if url != "memory:" and not _is_sqlite_url(url) and not _is_postgresql_url(url):
        raise ValueError('expected "sqlite:///PATH", "postgresql://USER:PASSWORD@HOST/DATABASE" or "memory:"')
    return url


def _check_postgresql_url(url: str) -> str:
    if not _is_postgresql_url(url):
        raise ValueError('expected "postgresql://USER:PASSWORD@HOST/DATABASE"')
    return url


def is_postgresql(url: str) -> bool:
    """Returns whether a (valid) registry URL names a PostgreSQL server."""
    return url.startswith("postgresql://")


def _is_sqlite_url(url: str) -> bool:
    path = url.removeprefix("sqlite:///")
    return path != url and path.strip("/") not in {"", ":memory:"} and "\0" not in path


def _is_postgresql_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.netloc or parts.path.strip("/") or parts.query) and parts.port != 0
    except ValueError:  # Here the port is no number, or an IPv6 address is broken.
        return False
    return is_postgresql(url) and is_complete


def _parse_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a path as a string, got {kind(value)}")  # noqa: TRY004 - pydantic's protocol
    if not value or "\0" in value:
        raise ValueError("expected a path, not empty")
    return Path(value)


def _parse_positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError(f"expected a duration above zero, got {describe(value)}")
    return seconds


def _parse_body_size(value: object) -> int:
    size = parse_size(value)
    if not 1 <= size <= BODY_BYTES_MAX:
        raise ValueError(f"expected a size of 1 byte to {BODY_BYTES_MAX // 1024**2}MiB, got {describe(value)}")
    return size


def _scalar_text(value: object) -> str:
    """Returns a scalar as the text that a backend or a label gets. Booleans are written as in TOML."""
    text = value if isinstance(value, str) and "\0" not in value else plain_text(value)
    if text is None:
        raise ValueError(f"expected a string, a number, true or false, got {describe(value)}")
    return text


def _check_argument(argument: str) -> str:
    if not argument or "\0" in argument:
        raise ValueError(f"expected a string that is not empty and has no NUL in it, got {describe(argument)}")
    return argument


def _check_key(key: str) -> str:
    if not key or not key.isprintable():
        raise ValueError("expected a printable key")
    return key


def _check_option(key: str) -> str:
    if ":" in key:
        raise ValueError("an option's name can't contain a colon: the backend gets name:value")
    return _check_key(key)


def _check_variable(key: str) -> str:
    if "=" in key:
        raise ValueError("the name of an environment variable can't contain an equals sign")
    return _check_key(key)


def _check_variable_pattern(pattern: str) -> str:
    if not _VARIABLE_PATTERN.fullmatch(pattern):
        raise ValueError(
            'expected the name of an environment variable, or a pattern such as "AWS_*", got ' + describe(pattern)
        )
    if pattern.upper().startswith("GATEWAY_"):
        raise ValueError(
            f"{describe(pattern)} names the gateway's own settings, which no backend gets; set what it needs in env"
        )
    return pattern


Flag = StrictBool
Argument = Annotated[StrictStr, AfterValidator(_check_argument)]
Port = Annotated[StrictInt, Field(ge=0, le=PORT_MAX)]
"""A port. 0 means any free port, for tests."""
Count = Annotated[StrictInt, Field(ge=0, le=INT32_MAX)]
PositiveCount = Annotated[StrictInt, Field(ge=1, le=INT32_MAX)]
Duration = Annotated[float, PlainValidator(parse_duration)]
"""A duration in seconds, written with a unit."""
PositiveDuration = Annotated[float, PlainValidator(_parse_positive_duration)]
Size = Annotated[int, PlainValidator(parse_size)]
"""A number of bytes."""
BodySize = Annotated[int, PlainValidator(_parse_body_size)]
"""A number of bytes."""
Budget = Annotated[int | Percent, PlainValidator(parse_budget)]
"""A number of bytes, or a share."""
Ports = Annotated[PortRange, PlainValidator(parse_port_range)]
PathText = Annotated[Path, PlainValidator(_parse_path)]
Hosts = Annotated[str | tuple[str, ...], PlainValidator(_parse_hosts)]
"""A host, or several of them."""
Host = Annotated[StrictStr, AfterValidator(_check_host)]
Origin = Annotated[StrictStr, AfterValidator(_check_origin)]
"""The origin of web pages: scheme, host and port, or "*" for all."""
ReachableHost = Annotated[StrictStr, AfterValidator(_check_reachable)]
Name = Annotated[StrictStr, AfterValidator(check_name)]
ModelNameText = Annotated[StrictStr, AfterValidator(_check_model_name)]
Sha256 = Annotated[StrictStr, AfterValidator(_check_sha256)]
Secret = Annotated[SecretStr, AfterValidator(_check_secret)]
SecretSha256 = Annotated[SecretStr, AfterValidator(_check_secret_sha256)]
Artifact = Annotated[StrictStr, AfterValidator(_check_artifact)]
RegistryUrl = Annotated[StrictStr, AfterValidator(_check_registry_url)]
PostgresqlUrl = Annotated[StrictStr, AfterValidator(_check_postgresql_url)]
Role = Literal["inference", "admin"]
VariablePattern = Annotated[StrictStr, AfterValidator(_check_variable_pattern)]

_Scalar = Annotated[str, BeforeValidator(_scalar_text)]
_Frozen = AfterValidator(MappingProxyType)
Labels = Annotated[Mapping[Annotated[str, AfterValidator(_check_key)], _Scalar], _Frozen]
Options = Annotated[Mapping[Annotated[str, AfterValidator(_check_option)], _Scalar], _Frozen]
Variables = Annotated[Mapping[Annotated[str, AfterValidator(_check_variable)], _Scalar], _Frozen]


def nothing() -> Mapping[str, str]:
    """Returns the default of a table. (A default value would be copied, which a read-only mapping cannot be.)"""
    return MappingProxyType({})
