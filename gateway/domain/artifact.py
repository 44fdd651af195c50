"""The reference of a model's weights: which references can never be loaded, and which parts of one may be shown.
Pure."""

import re
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from gateway.domain.host_port import HOST_CHARACTERS_MAX
from gateway.domain.texts import quoted

ARTIFACT_CHARACTERS_MAX: Final = 8192
MASK: Final = "***"
"""The text in place of a secret."""
FORMS: Final = '"builtin:NAME", "file:PATH", "hf://OWNER/REPOSITORY/FILE" or "https://HOST/PATH"'
NO_CREDENTIALS: Final = (
    "carries a user or a password, which would be kept and shown in clear; instead use hf:// with HF_TOKEN in the "
    "worker's environment, a URL that is signed for a time, or file: for a file that you have fetched yourself"
)

_BUILTIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_SECRET_FIELD: Final = re.compile(
    r"sig|signature|token|secret|passw|pwd|credential|auth|(^|[-_.])key([-_.]|$)|apikey|api_?key|accesskey|policy",
    re.IGNORECASE,
)
"""The names of query fields that carry a secret: X-Amz-Signature, X-Goog-Credential, sig, access_token."""


def find_fault(artifact: str) -> str | None:
    """Returns why the reference can never be loaded, as "expected ..., got ..." or as its fault. Returns None if its
    text shows no fault.

    The result contains nothing that may be a secret.
    """
    if not artifact:
        return None
    if len(artifact) > ARTIFACT_CHARACTERS_MAX:
        return f"expected at most {ARTIFACT_CHARACTERS_MAX} characters, got {len(artifact)}"
    scheme, colon, rest = artifact.partition(":")
    fault = _unexpected(artifact)
    match f"{scheme}{colon}":
        case _ if not artifact.isprintable():
            return fault
        case "builtin:":
            return None if _BUILTIN.fullmatch(rest) else fault
        case "file:":
            return None if rest.strip("/") else fault
        case "hf:" if rest.startswith("//"):
            return _with(artifact, hub_fault(rest.removeprefix("//")))
        case "https:" if rest.startswith("//"):
            return _with(artifact, url_fault(artifact))
        case _:
            return fault


def hub_fault(path: str) -> str | None:
    """Returns the fault of OWNER/REPOSITORY/FILE[@REVISION], or None."""
    segments = path.split("/")
    if any("@" in segment for segment in segments[:2]) and len(segments) > 1:
        return "names no file: an @ has its place behind the file, and users and passwords have none"
    file = path.partition("@")[0].split("/")
    if len(file) < 3 or any(segment in {"", ".", ".."} for segment in file) or re.search(r"\s", path):
        return "names no file: use hf://OWNER/REPOSITORY/FILE[@REVISION]"
    return None


def url_fault(url: str) -> str | None:
    """Returns the fault of a web URL, whatever its scheme, or None."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        if "@" in parts.netloc:
            return NO_CREDENTIALS
        port = parts.port
    except ValueError:  # Its message may show a part of a password.
        return "is no URL: its host or its port can't be read (a port is a number up to 65535)"
    if not host:
        return "names no host"
    if not _is_host(host):
        return "names a host that can't be one"
    if port == 0:
        return "names port 0, at which nobody listens"
    if len(parts.path) < 2 and not parts.query:
        return "names no file, only a host"
    if re.search(r"\s", url):
        return "holds a space; %20 stands for one"
    return None


def _is_host(host: str) -> bool:
    if ":" in host:
        return True  # It is an IPv6 address in brackets, which has been read.
    try:
        name = host.rstrip(".").encode("idna").decode()
    except UnicodeError:
        return False
    return len(name) <= HOST_CHARACTERS_MAX and all(_LABEL.fullmatch(label) for label in name.split("."))


def _unexpected(artifact: str) -> str:
    return f'expected {FORMS}, got "{quoted(shown(artifact))}"'


def _with(artifact: str, fault: str | None) -> str | None:
    return None if fault is None else f"{quoted(shown(artifact))} {fault}"


def shown(artifact: str) -> str:
    """Returns the reference for errors and log lines: without the user and the query, which may be secret."""
    head = re.split(r"[?#]", artifact, maxsplit=1)[0]
    scheme, slashes, rest = head.partition("://") if "://" in head else ("", "", head)
    authority, slash, path = rest.partition("/")
    if "@" in path and re.search(r":.*\D", authority):
        return f"{scheme}{slashes}{MASK}"  # It is no port, but rather a password with a slash in it.
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def without_user(artifact: str) -> str:
    """Returns the reference for a store: with its user masked, since nobody could load it anyway (see `url_fault`)."""
    if not artifact.lower().startswith(("https://", "http://")):
        return artifact
    if (hidden := shown(artifact)).endswith(f"//{MASK}"):
        return hidden
    return re.sub(r"^([^/]*//)[^/?#]*@", rf"\1{MASK}@", artifact)


def masked(artifact: str) -> str:
    """Returns the reference for an administrator, who may put it again (see `unmasked`): everything but its secrets."""
    if not artifact.startswith(("https://", "http://")):
        return artifact if find_fault(artifact) is None else shown(artifact)
    try:
        parts = urlsplit(artifact)
    except ValueError:
        return shown(artifact)
    user, at, host = parts.netloc.rpartition("@")
    query = "&".join(_masked_field(field) for field in parts.query.split("&"))
    if not at and query == parts.query:
        return artifact
    return urlunsplit(parts._replace(netloc=f"{MASK if user else ''}{at}{host}", query=query))


def is_masked(artifact: str) -> bool:
    """Returns whether the reference contains a masked secret, and so cannot be loaded."""
    return any(field.endswith(f"={MASK}") for field in artifact.partition("?")[2].split("&"))


def unmasked(artifact: str, known: str | None) -> str:
    """Returns `known` if `artifact` is its masked form, as administrators see it and put it back, and `artifact`
    otherwise."""
    return known if known is not None and is_masked(artifact) and artifact == masked(known) else artifact


def _masked_field(field: str) -> str:
    name, sign, value = field.partition("=")
    return f"{name}{sign}{MASK}" if value and _SECRET_FIELD.search(name) else field
