"""Reads the requests of Rerank and TokenizeString, and makes their answers. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import invalid


def rerank_input(request: pb.RerankRequest) -> tuple[str, Sequence[str]]:
    """Returns the query and the documents. Raises `CallError` (INVALID_ARGUMENT)."""
    if not request.query:
        raise invalid("query must not be empty", param="query")
    if not request.documents:
        raise invalid("documents must not be empty", param="documents")
    if request.top_n < 0:
        raise invalid("top_n must not be negative", param="top_n")
    return request.query, list(request.documents)


def best_of(result: pb.RerankResult, top_n: int) -> pb.RerankResult:
    """Returns the best documents first, `top_n` of them, or all if it is 0."""
    best = sorted(result.results, key=lambda each: (-each.relevance_score, each.index))
    return pb.RerankResult(usage=result.usage, results=best[: top_n or None])


def tokenization(tokens: Sequence[Mapping[str, Any]]) -> pb.TokenizationResponse:
    """Returns the tokens with their bytes."""
    texts = [_bytes(token["piece"]) for token in tokens]
    return pb.TokenizationResponse(length=len(tokens), tokens=[token["id"] for token in tokens], texts=texts)


def _bytes(text: str | Sequence[int]) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)
