"""Translates between domain records and the messages of Rerank, TokenizeString and Detokenize. Pure."""

from math import isfinite
from typing import Any, cast

from gateway.backends.metadata import ADD_SPECIAL_KEY
from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import RequestId
from gateway.domain.inference import DetokenizeInput, Ranking, RerankInput, TokenizeInput


def rerank_request(item: RerankInput, request_id: RequestId) -> pb.RerankRequest:
    """Returns the message for one query. Texts may be UTF-8 bytes, which the generated types do not say."""
    return pb.RerankRequest(
        query=cast("str", item.query),
        documents=cast("Any", item.documents),
        top_n=item.top_n or 0,
        ModelIdentity=item.model,
        CorrelationId=request_id,
    )


def ranking(result: pb.RerankResult, item: RerankInput) -> Ranking:
    """Returns the documents in falling order of their scores, and of equal ones in the order of the request. Not all
    backends sort or cut. Raises `BackendFailed` for a document that was not asked about, or a score that is no
    number."""
    scores = [(document.index, document.relevance_score) for document in result.results]
    indices = {index for index, _ in scores}
    if len(indices) < len(scores) or not indices <= set(range(len(item.documents))):
        raise BackendFailed("The backend answered with scores of documents that were not in the request.")
    if not all(isfinite(score) for _, score in scores):
        raise BackendFailed("The backend answered with a score that is no number (NaN, infinity).")
    best = sorted(scores, key=lambda each: (-each[1], each[0]))[: item.top_n]
    return Ranking(tuple(best), max(0, result.usage.prompt_tokens or result.usage.total_tokens))


def tokenize_options(item: TokenizeInput, request_id: RequestId) -> pb.PredictOptions:
    """Returns the message for one text."""
    options = pb.PredictOptions(CorrelationId=request_id, ModelIdentity=item.model, Prompt=cast("str", item.text))
    options.Metadata[ADD_SPECIAL_KEY] = "true" if item.add_special else "false"
    return options


def detokenize_request(item: DetokenizeInput, request_id: RequestId) -> pb.DetokenizeRequest:
    """Returns the message for the tokens of one text."""
    return pb.DetokenizeRequest(tokens=item.tokens, ModelIdentity=item.model, CorrelationId=request_id)
