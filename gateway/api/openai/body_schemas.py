"""The JSON schemas of request bodies, for the description of the API."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from gateway.api.openai.schema import ChatBody, CompletionBody, EmbeddingsBody

BODIES: Final[Mapping[str, type[BaseModel]]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingsBody,
}
"""The bodies by the path that takes them."""


def body_schemas(reference: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the schemas by path. `reference` is the form of references to their parts, with `{model}` in it."""
    return {path: body.model_json_schema(ref_template=reference) for path, body in BODIES.items()}
