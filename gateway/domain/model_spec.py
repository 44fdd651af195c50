"""The spec of a model: the name that users call, what its backend process gets, and how it is scheduled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal

from gateway.domain.builtin_backends import BUILTIN_BACKENDS, default_parallel, default_prompt_cache_bytes
from gateway.domain.errors import BadRequest
from gateway.domain.ids import ModelName, Revision
from gateway.domain.texts import quoted

NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
BUILTIN_CONTEXT_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"builtin:demo": 40_960})
"""The contexts with which artifacts of the package are loaded if their models do not say. `demo` takes the long lists
of tools that agents and chat front ends send."""


@dataclass(frozen=True)
class ModelSpec:
    """One `[[models]]` entry. None means "not set", which differs from the value of the default (see `revision`).

    The first group of fields reaches the backend process, the second is for the planner only.
    """

    name: ModelName
    backend: str
    artifact: str
    """The source of the weights: `builtin:NAME`, `file:PATH`, `hf://OWNER/REPOSITORY/FILE[@REVISION]` or `https://`. It
    is empty if the backend needs no file."""
    sha256: str | None = None
    context_size: int | None = None
    """The number of tokens that one request may use, prompt and answer together."""
    gpu_layers: int | None = None
    parallel: int | None = None
    """The number of requests that one replica serves at a time. `slots` resolves the default."""
    options: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    reproducible: bool = False
    """Whether equal requests get equal answers unless they say otherwise. Then no request uses the prompt cache."""
    prompt_cache: int | None = None
    """The bytes of main memory for prompts of past requests. `prompt_cache_bytes` resolves the default."""

    min_replicas: int = 0
    max_replicas: int = 1
    """The largest number of replicas. 0 means as many as there is room for."""
    on_every_node: bool = False
    """Whether `replicas = "all"`: one replica on each node that the selector allows."""
    selector: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    exclusive_group: str | None = None
    pinned: bool = False
    """Whether replicas that are loaded stay although nobody uses them, or another model needs their room."""
    load_timeout_seconds: float | None = None
    rollout: Literal["replace", "surge"] = "replace"
    """The way in which a new revision replaces old replicas. With `replace` they take no new request at once, with
    `surge` only when a new one is ready."""
    source: Literal["file", "api"] = "file"

    @property
    def slots(self) -> int:
        """How many requests one replica serves at a time: `parallel`, else the backend's default."""
        return self.parallel or default_parallel(self.backend)

    @property
    def context_tokens(self) -> int | None:
        """The context with which a replica is loaded, or None for the backend's default."""
        return self.context_size or BUILTIN_CONTEXT_TOKENS.get(self.artifact)

    @property
    def prompt_cache_bytes(self) -> int:
        """How much main memory one replica fills with past prompts: `prompt_cache`, else the backend's default."""
        return default_prompt_cache_bytes(self.backend) if self.prompt_cache is None else self.prompt_cache

    @cached_property
    def revision(self) -> Revision:
        """The hash of the explicitly set keys that the backend process sees, whatever their order (A8).

        Neither scheduling keys nor defaults are part of it, so changing `min_replicas` or upgrading the gateway reloads
        nothing.
        """
        seen: dict[str, Any] = {
            "backend": self.backend,
            "artifact": self.artifact,
            "sha256": self.sha256,
            "context_size": self.context_size,
            "gpu_layers": self.gpu_layers,
            "parallel": self.parallel,
            "options": dict(self.options) or None,
            "reproducible": self.reproducible or None,
            "prompt_cache": self.prompt_cache,
        }
        canonical = json.dumps({key: value for key, value in seen.items() if value is not None}, sort_keys=True)
        return Revision(hashlib.sha256(canonical.encode()).hexdigest())


UNSUPPORTED: Final = "unsupported"


class Ability(StrEnum):
    """An ability that a model is made for. The values are the names of fields of `Capabilities`."""

    GENERATES = "generates"
    EMBEDS = "embeds"
    RERANKS = "reranks"


KINDS: Final = (
    (Ability.RERANKS, "a reranking model", "/v1/rerank"),
    (Ability.GENERATES, "a model that generates text", "/v1/chat/completions or /v1/completions"),
    (Ability.EMBEDS, "an embedding model", "/v1/embeddings"),
)
"""The name of a model by the first ability that it has, and the routes to use it with."""
VERBS: Final = {
    Ability.GENERATES: "can't generate text",
    Ability.EMBEDS: "can't embed text",
    Ability.RERANKS: "can't rerank documents",
}


@dataclass(frozen=True)
class Capabilities:
    """The abilities of one revision of a model. None means that its backend does not say."""

    generates: bool | None = None
    embeds: bool | None = None
    reranks: bool | None = None
    context_tokens: int | None = None
    """The number of tokens that one request may use, prompt and answer together, as the model was really loaded."""
    tools: bool | None = None
    """Whether its chat template shows the model its tools."""
    thinking: bool | None = None
    """Whether it can reason before it answers."""
    schema: bool | None = None
    """Whether its answer can be held to a JSON schema."""
    vision: bool | None = None
    infill: bool | None = None
    """Whether it can fill in what is missing between two texts."""

    def known(self) -> dict[str, bool]:
        """Returns the abilities that are known, by their names, without the size of the context."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, bool)}


NOTHING_KNOWN: Final = Capabilities()


def refusal(model: ModelName, capabilities: Capabilities, needed: Ability) -> BadRequest | None:
    """Returns the error for a request that the model is not made for, which says its kind. Returns None unless its
    backend has said so."""
    if getattr(capabilities, needed) is not False:
        return None
    return BadRequest(wrong_kind(model, capabilities, needed), param="model", code=UNSUPPORTED)


def wrong_kind(model: str, capabilities: Capabilities, needed: Ability) -> str:
    """Returns the sentence that says which kind of model it is, and what it can be used with instead."""
    for ability, kind, routes in KINDS:
        if getattr(capabilities, ability):
            return f"The model '{quoted(model)}' is {kind} and {VERBS[needed]}; use it with {routes}."
    return f"The model '{quoted(model)}' {VERBS[needed]}."


def infill_refusal(spec: ModelSpec, capabilities: Capabilities) -> BadRequest | None:
    """Returns the error for a text with a suffix, unless the model can fill in what is missing, or is of the built-in
    backend, which will say whether it can. Other backends may ignore the suffix."""
    is_open = capabilities.infill is None and spec.backend in BUILTIN_BACKENDS
    if capabilities.infill or is_open:
        return None
    message = f"The model '{quoted(spec.name)}' can't fill in text before a suffix."
    return BadRequest(message, param="suffix", code=UNSUPPORTED)


def context_warning(spec: ModelSpec, context_tokens: int | None) -> str | None:
    """Returns the sentence about a configured context that is larger than what the model has, or None."""
    if spec.context_size is None or context_tokens is None or context_tokens >= spec.context_size:
        return None
    return f"context_size is {spec.context_size}, but the model has a context of {context_tokens} tokens only"
