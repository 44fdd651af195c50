"""Tells what a model can do from its file, its load options and its chat template. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import wrong_kind
from gateway.engines.llama_cpp.options import LoadOptions
from gateway.engines.llama_cpp.sampling import SamplingLimits
from gateway.gguf.header import Header
from gateway.gguf.shape import CACHELESS

POOLING_RANK: Final = 4
"""The pooling type of a model that scores a pair of texts, in the file and in llama.cpp."""
CANNOT: Final = {
    "generates": "can't generate text",
    "embeds": "can't embed text",
    "reranks": "can't rerank documents",
}
THINKING_MARKS: Final = ("<think>", "[THINK]", "<|channel|>analysis", "enable_thinking", "reasoning_content")
"""Parts of the templates of models that reason before they answer."""


@dataclass(frozen=True)
class ModelKind:
    """The abilities that a model is made for."""

    generates: bool
    embeds: bool
    reranks: bool

    @property
    def name(self) -> str:
        """The name of this kind in errors."""
        if self.reranks:
            return "a reranking model"
        return "a model that generates text" if self.generates else "an embedding model"

    def check(self, ability: str, model: str) -> None:
        """Raises `CallError` that names the model's kind if it lacks the ability, a field of this class."""
        if not getattr(self, ability):
            raise wrong_kind(f"The model '{model}' is {self.name} and {CANNOT[ability]}.")


def kind_of(header: Header, options: LoadOptions) -> ModelKind:
    """Returns what the model is made for. A model that says how its embeddings are pooled was trained for those."""
    declared = header.metadata.get(f"{header.architecture}.pooling_type")
    reranks = options.pooling == "rank" or (options.pooling == "auto" and declared == POOLING_RANK)
    causal = header.metadata.get(f"{header.architecture}.attention.causal", True)
    generates = declared is None and bool(causal) and header.architecture not in CACHELESS and not reranks
    return ModelKind(generates=generates, embeds=options.embeddings and not reranks, reranks=reranks)


def thinks(template: str) -> bool:
    """Returns whether a chat template is that of a model that reasons before it answers."""
    return any(mark in template for mark in THINKING_MARKS)


def metadata_of(kind: ModelKind, limits: SamplingLimits, properties: Mapping[str, Any]) -> pb.ModelMetadataResponse:
    """Returns what the model can do, as the answer to ModelMetadata. `properties` are llama.cpp's own."""
    reasons = kind.generates and thinks(str(properties.get("chat_template", "")))
    vision = bool(properties["modalities"]["vision"])
    return pb.ModelMetadataResponse(
        supports_thinking=reasons,
        media_marker=properties["media_marker"] if vision else "",
        generates=kind.generates,
        embeds=kind.embeds,
        reranks=kind.reranks,
        context_size=limits.context_tokens,
        tools=kind.generates and limits.takes_tools,
        thinking=reasons,
        schema=kind.generates,
        vision=vision,
        infill=limits.infill is not None,
    )
