"""Parses the reference of an artifact, before anything is fetched. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote, urlsplit, urlunsplit

from gateway.domain.artifact import hub_fault, shown, url_fault
from gateway.domain.host_port import is_loopback_address
from gateway.domain.texts import is_visible_ascii

HUB_URL: Final = "https://huggingface.co"
REVISION: Final = "main"


class ArtifactError(Exception):
    """The artifact can't be used; the message names it and, where there is one, the remedy."""


@dataclass(frozen=True)
class Builtin:
    """An artifact that comes with the gateway, `builtin:NAME`."""

    name: str


@dataclass(frozen=True)
class LocalFile:
    """An artifact that is named by its path, `file:PATH`."""

    path: Path
    """The path. A relative one starts in the models folder."""


@dataclass(frozen=True)
class WebFile:
    """An artifact that is downloaded, from `https://` or from the Hugging Face hub (`hf://`)."""

    url: str
    """The URL, with neither user nor fragment."""
    is_from_hub: bool = False


Reference: TypeAlias = Builtin | LocalFile | WebFile


@dataclass(frozen=True)
class Hub:
    """The server of `hf://`, and the token that only this server gets."""

    url: str = HUB_URL
    token: str | None = field(default=None, repr=False)


def hub_of(environ: Mapping[str, str]) -> Hub:
    """Returns the hub of HF_ENDPOINT and HF_TOKEN, as Hugging Face's own programs read them."""
    endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB_URL
    return Hub(endpoint if "://" in endpoint else f"https://{endpoint}", environ.get("HF_TOKEN", "").strip() or None)


def parse_reference(artifact: str, hub: Hub, *, plain_loopback: bool = False) -> Reference:
    """Parses a reference. `plain_loopback` allows `http://` to this machine itself. Raises `ArtifactError`."""
    kind, _, rest = artifact.partition(":")
    match kind:
        case "builtin":
            return Builtin(rest)
        case "file":
            return LocalFile(Path(rest))
        case "hf":
            url = _hub_url(artifact, rest.removeprefix("//"), hub)
            return WebFile(_checked(url, plain_loopback=plain_loopback), is_from_hub=True)
        case "https" | "http":
            return WebFile(_checked(artifact, plain_loopback=plain_loopback))
        case _:
            raise ArtifactError(
                f"artifact {shown(artifact)!r} is not known: use builtin:NAME, file:PATH, hf://OWNER/REPOSITORY/FILE "
                "or https://HOST/PATH"
            )


def _hub_url(artifact: str, path: str, hub: Hub) -> str:
    if hub.token is not None and not is_visible_ascii(hub.token):
        raise ArtifactError("HF_TOKEN holds characters that no token has; check it")
    if (fault := hub_fault(path)) is not None:
        raise ArtifactError(f"artifact {shown(artifact)!r} {fault}")
    path, _, revision = path.partition("@")
    owner, repository, *file = (quote(segment, safe="") for segment in path.split("/"))
    return f"{hub.url}/{owner}/{repository}/resolve/{quote(revision or REVISION, safe='')}/{'/'.join(file)}"


def _checked(url: str, *, plain_loopback: bool) -> str:
    if (fault := url_fault(url)) is not None:
        raise ArtifactError(f"{shown(url)} {fault}")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (
        plain_loopback and parts.scheme == "http" and is_loopback_address(parts.hostname or "")
    ):
        raise ArtifactError(f"{shown(url)} is not fetched: only https:// is")
    return urlunsplit(parts._replace(fragment=""))
