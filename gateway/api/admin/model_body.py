"""Reads a model's spec from a request body: the keys of a `[[models]]` entry, checked by the configuration's rules.

Two rules are stricter than in the file, because a caller of the API need not be the owner of the machine: `file:` stays
below the models folder, and a URL's host has to be on the public Internet. Pure.
"""

import posixpath
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.api.http.json_body import INVALID_VALUE, MISSING, UNKNOWN, field_path, missing_message, shown
from gateway.config.messages import explain_errors
from gateway.config.model import ModelEntry
from gateway.config.rules import check_model
from gateway.domain.artifact import MASK, is_masked, masked
from gateway.domain.errors import BadRequest
from gateway.domain.model_spec import ModelSpec
from gateway.domain.special_addresses import is_never_public
from gateway.field_errors import FieldErrorKind

ENTRIES_MAX: Final = 256
"""The largest number of entries of `options` and of `selector`. Each wrong one costs time, and the configuration's
checks collect all of them."""
RESERVED: Final = ("/load", "/unload", "/load-status")
"""The paths below a model's own path. No model's name may end with one of them."""
AT: Final = ("models", 0)
"""The place of the entry in a file, which the configuration's messages depend on."""


def parse_model(name: str, body: Mapping[str, Any], backends: Collection[str], models_dir: PurePath) -> ModelSpec:
    """Returns the spec. `null` means "not set", and `models_dir` is absolute. Raises `BadRequest`, which names the
    field."""
    if name.endswith(RESERVED):
        raise _wrong(("name",), f"a name can't end with {' or '.join(RESERVED)}: the path is taken")
    body = {key: value for key, value in body.items() if value is not None}
    _check_keys(body)
    entry = _read_entry(name, body)
    for finding in check_model(entry, AT, backends):
        raise _wrong(finding.loc[len(AT) :], finding.message)
    _check_file(entry.artifact, models_dir)
    _check_host(entry.artifact)
    return entry.to_spec()


def _check_keys(body: Mapping[str, Any]) -> None:
    """Refuses the first unknown key by its name; pydantic would list all of them."""
    for key in body:
        if key == "name":
            raise _wrong(("name",), "a model's name is in the path")
        if key not in ModelEntry.model_fields:
            raise BadRequest(
                f"Unrecognized request argument supplied: {shown(key)}", param=field_path((key,)), code=UNKNOWN
            )
    for key in ("options", "selector"):
        if isinstance(body.get(key), dict) and len(body[key]) > ENTRIES_MAX:
            raise _wrong((key,), f"expected at most {ENTRIES_MAX} entries")


def _read_entry(name: str, body: Mapping[str, Any]) -> ModelEntry:
    try:
        return ModelEntry.model_validate({**body, "name": name})
    except ValidationError as error:
        found = next(explain_errors(error, AT))
        loc = found.loc[len(AT) :]
        raise (_missing(loc) if found.kind is FieldErrorKind.MISSING else _wrong(loc, found.message)) from None


def _check_file(artifact: str, models_dir: PurePath) -> None:
    """Checks the path by its text alone. The worker sees where symbolic links lead."""
    if not artifact.startswith("file:"):
        return
    folder = posixpath.normpath(models_dir)
    path = posixpath.normpath(posixpath.join(folder, artifact.removeprefix("file:")))
    if path == folder or posixpath.commonpath((folder, path)) != folder:
        raise _wrong(("artifact",), "a file has to be below the models folder; give its path relative to that")


def _check_host(artifact: str) -> None:
    """Checks the host by its text alone. The worker sees where a name leads."""
    if not artifact.startswith("https://"):
        return
    if is_masked(artifact):
        raise _wrong(("artifact",), f"{MASK} stands for a secret that is not shown; give the whole URL again")
    host = urlsplit(artifact).hostname or ""
    if is_never_public(host):
        reason = f"{shown(host)} is not public (see RFC 6890); only the configuration file may name such a source"
        raise _wrong(("artifact",), reason)


def _wrong(loc: tuple[str | int, ...], sentence: str) -> BadRequest:
    param = field_path(loc)
    return BadRequest(f"Invalid value for '{param}': {sentence}.", param=param, code=INVALID_VALUE)


def _missing(loc: tuple[str | int, ...]) -> BadRequest:
    param = field_path(loc)
    return BadRequest(missing_message(param), param=param, code=MISSING)


def spec_body(spec: ModelSpec) -> dict[str, Any]:
    """Returns the body of this spec: only keys that are set, and no secret (see `unmasked`)."""
    counts = {"min_replicas": spec.min_replicas or None, "max_replicas": spec.max_replicas}
    fields = {
        "backend": spec.backend,
        "artifact": masked(spec.artifact) or None,
        "sha256": spec.sha256,
        "context_size": spec.context_size,
        "gpu_layers": spec.gpu_layers,
        "parallel": spec.parallel,
        "options": dict(spec.options) or None,
        "reproducible": spec.reproducible or None,
        "prompt_cache": spec.prompt_cache,
        **({"replicas": "all"} if spec.on_every_node else counts),
        "selector": dict(spec.selector) or None,
        "exclusive_group": spec.exclusive_group,
        "pinned": spec.pinned or None,
        "load_timeout": None if spec.load_timeout_seconds is None else duration_text(spec.load_timeout_seconds),
        "rollout": spec.rollout,
    }
    return {key: value for key, value in fields.items() if value is not None}


def duration_text(seconds: float) -> str:
    """Returns a duration as the configuration writes it, such as `1.5s`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
