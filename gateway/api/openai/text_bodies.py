"""The bodies and answers of the endpoints beside OpenAI's: rerank, tokenize and detokenize.

Rerank has the shape of Jina's and Cohere's API, the other two that of llama.cpp's server and vLLM, where they agree.
Scores are the model's own: their order counts, and their range differs between models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import getsizeof
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_core import to_json

from gateway.api.http.json_body import JsonBody, wrong_type, wrong_value
from gateway.api.openai.parameter_rows import DETOKENIZE, RERANK, TOKENIZE
from gateway.api.openai.parameters import Name, User
from gateway.api.openai.schema import read_body
from gateway.domain.errors import BadRequest
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import INT32_MAX, DetokenizeInput, Ranking, RerankInput, TokenizeInput, Tokens, kept_text

DOCUMENTS_MAX: Final = 2048
TOKENS_MAX: Final = 1_000_000
TEXT_BYTES: Final = 400
"""The memory of one document, without its text. It is rather too much than too little, as the next one."""
TOKEN_BYTES: Final = 40


@dataclass(frozen=True)
class RerankCall:
    """A request to /v1/rerank."""

    item: RerankInput
    returns_documents: bool
    user: str | None
    kept_bytes: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizeCall:
    """A request to /tokenize."""

    item: TokenizeInput
    with_pieces: bool
    user: str | None
    kept_bytes: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class DetokenizeCall:
    """A request to /detokenize."""

    item: DetokenizeInput
    user: str | None
    kept_bytes: int
    ignored: tuple[str, ...] = ()


def _as_texts(value: object) -> object:
    """Turns documents into their texts: each is a string, or an object with the field `text`."""
    if not isinstance(value, list):
        return value
    if not 1 <= len(value) <= DOCUMENTS_MAX:
        raise wrong_value(f"have 1 to {DOCUMENTS_MAX} entries")
    return [_text_of(entry, index) for index, entry in enumerate(value)]


def _text_of(entry: object, index: int) -> str:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise wrong_type("a string or an object with a 'text'", entry, index)
    return text


def _as_tokens(value: object) -> object:
    if not isinstance(value, list):
        return value
    if len(value) > TOKENS_MAX:
        raise wrong_value(f"have at most {TOKENS_MAX} entries")
    for index, token in enumerate(value):
        if not isinstance(token, int) or isinstance(token, bool):
            raise wrong_type("an integer", token, index)
        if not 0 <= token <= INT32_MAX:
            raise wrong_value(f"be from 0 to {INT32_MAX}", index)
    return value


class RerankBody(JsonBody):
    """The body of a request to /v1/rerank."""

    without_effect = RERANK.without_effect
    reasons = RERANK.reasons

    model: Name
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str], BeforeValidator(_as_texts)]
    top_n: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    return_documents: bool | None = None
    user: User | None = None


class TokenizeBody(JsonBody):
    """The body of a request to /tokenize."""

    without_effect = TOKENIZE.without_effect
    reasons = TOKENIZE.reasons

    model: Name
    content: str | None = None
    prompt: str | None = None
    """vLLM's name of `content`."""
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    """vLLM's name of `add_special`."""
    with_pieces: bool | None = None
    user: User | None = None

    def text(self) -> str:
        """Returns the text under either name. Raises `BadRequest` unless there is exactly one."""
        given = [text for text in (self.content, self.prompt) if text is not None]
        if len(given) != 1:
            raise BadRequest("Give the text as either 'content' or 'prompt'.", param="content")
        return given[0]

    def adds_special(self) -> bool:
        """Returns whether the tokens have those that begin or end a prompt. If the request does not say, they have them
        under vLLM's name for the text and not under llama.cpp's, as there."""
        given = self.add_special if self.add_special is not None else self.add_special_tokens
        return self.prompt is not None if given is None else given


class DetokenizeBody(JsonBody):
    """The body of a request to /detokenize."""

    without_effect = DETOKENIZE.without_effect
    reasons = DETOKENIZE.reasons

    model: Name
    tokens: Annotated[list[int], BeforeValidator(_as_tokens)]
    user: User | None = None


def parse_rerank(body: bytes, ignore_unknown: bool = False) -> RerankCall:
    """Parses a rerank request. Raises `BadRequest`."""
    parsed, ignored = read_body(RerankBody, body, RERANK, ignore_unknown=ignore_unknown)
    documents = tuple(map(kept_text, parsed.documents))
    item = RerankInput(ModelName(parsed.model), kept_text(parsed.query), documents, parsed.top_n)
    kept_bytes = sum(TEXT_BYTES + getsizeof(text) for text in (item.query, *documents))
    return RerankCall(item, bool(parsed.return_documents), parsed.user, kept_bytes, ignored)


def parse_tokenize(body: bytes, ignore_unknown: bool = False) -> TokenizeCall:
    """Parses a tokenize request. Raises `BadRequest`."""
    parsed, ignored = read_body(TokenizeBody, body, TOKENIZE, ignore_unknown=ignore_unknown)
    text = kept_text(parsed.text())
    item = TokenizeInput(ModelName(parsed.model), text, add_special=parsed.adds_special())
    return TokenizeCall(item, bool(parsed.with_pieces), parsed.user, TEXT_BYTES + getsizeof(text), ignored)


def parse_detokenize(body: bytes, ignore_unknown: bool = False) -> DetokenizeCall:
    """Parses a detokenize request. Raises `BadRequest`."""
    parsed, ignored = read_body(DetokenizeBody, body, DETOKENIZE, ignore_unknown=ignore_unknown)
    item = DetokenizeInput(ModelName(parsed.model), tuple(parsed.tokens))
    return DetokenizeCall(item, parsed.user, TEXT_BYTES + TOKEN_BYTES * len(item.tokens), ignored)


def rerank_answer(request_id: RequestId, call: RerankCall, ranking: Ranking) -> bytes:
    """Encodes the documents that fit best, the best first."""
    results = [_result(call, index, score) for index, score in ranking.scores]
    usage = {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens}
    answer = {"id": f"rerank-{request_id}", "object": "list", "model": call.item.model}
    return to_json({**answer, "results": results, "usage": usage})


def _result(call: RerankCall, index: int, score: float) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if call.returns_documents:
        result["document"] = {"text": call.item.documents[index]}
    return result


def tokenize_answer(call: TokenizeCall, tokens: Tokens, context_tokens: int | None) -> bytes:
    """Encodes the tokens of a text. A piece that is no text of its own is an array of its bytes, as in llama.cpp.

    Raises `BadRequest` for pieces that the backend does not give.
    """
    listed: list[Any] = list(tokens.ids)
    if call.with_pieces:
        if len(tokens.texts) != len(tokens.ids):
            message = "The model's backend does not give the pieces of tokens."
            raise BadRequest(message, param="with_pieces", code="unsupported")
        listed = [{"id": token, "piece": _shown(text)} for token, text in zip(tokens.ids, tokens.texts, strict=True)]
    answer: Mapping[str, Any] = {"tokens": listed, "count": len(tokens.ids)}
    return to_json(answer if context_tokens is None else {**answer, "max_model_len": context_tokens})


def _shown(text: bytes) -> str | list[int]:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return list(text)


def detokenize_answer(text: str) -> bytes:
    """Encodes the text of tokens under llama.cpp's name and vLLM's."""
    return to_json({"content": text, "prompt": text})
