"""Answers as the official client reads them: our bytes go through its own types."""

import base64
import json
import math
import struct
from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion

from gateway.api.openai import encode
from gateway.api.openai.errors import error_object
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError, ModelLoading, ModelNotFound
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Embedding, FinishReason, ToolCall
from gateway.domain.model_spec import NOTHING_KNOWN, Capabilities
from tests.contract.samples import spec

REQUEST = RequestId("r-1")
TINY = ModelName("tiny")
ANSWER = Completion(FinishReason.LENGTH, prompt_tokens=3, completion_tokens=4, text='a "quoted"\n🦙')


def test_a_chat_completion() -> None:
    raw = encode.chat_completion(REQUEST, TINY, 1_700_000_000, ANSWER)
    answer = ChatCompletion.model_validate_json(raw, strict=True)
    assert (answer.id, answer.object, answer.created, answer.model) == (
        "chatcmpl-r-1",
        "chat.completion",
        1_700_000_000,
        "tiny",
    )
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", ANSWER.text, None)
    assert "reasoning_content" not in json.loads(raw)["choices"][0]["message"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 4, 7)


def test_reasoning_has_a_field_of_its_own_in_chat_only() -> None:
    answer = Completion(FinishReason.STOP, 1, 2, text="4", reasoning="2+2")
    message = json.loads(encode.chat_completion(REQUEST, TINY, 0, answer))["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("4", "2+2")
    assert json.loads(encode.text_completion(REQUEST, TINY, 0, answer))["choices"][0]["text"] == "2+24"


CALLS = (ToolCall("c1", "get_weather", '{"city": "Paris"}'), ToolCall("", "get_time", "{}"))


def test_tool_calls() -> None:
    raw = encode.chat_completion(REQUEST, TINY, 0, Completion(FinishReason.TOOL_CALLS, 1, 2, tool_calls=CALLS))
    [choice] = ChatCompletion.model_validate_json(raw, strict=True).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert [call.model_dump() for call in choice.message.tool_calls or ()] == [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
        {"id": "call_r-1_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
    ]


def test_an_answer_may_have_text_and_calls_and_one_without_calls_does_not_mention_them() -> None:
    def message(answer: Completion) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(encode.chat_completion(REQUEST, TINY, 0, answer))["choices"][0]["message"]
        return found

    both = message(Completion(FinishReason.TOOL_CALLS, 1, 2, text="Well.", tool_calls=CALLS))
    assert (both["content"], len(both["tool_calls"])) == ("Well.", 2)
    neither = message(Completion(FinishReason.STOP, 1, 2))
    assert neither["content"] == ""
    assert "tool_calls" not in neither


def test_a_text_completion() -> None:
    raw = encode.text_completion(REQUEST, TINY, 5, ANSWER)
    answer = OpenAICompletion.model_validate_json(raw, strict=True)
    assert (answer.id, answer.object, answer.created, answer.model) == ("cmpl-r-1", "text_completion", 5, "tiny")
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, ANSWER.text, "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7


VECTORS = [Embedding((0.25, -1.0, 3.5), prompt_tokens=2), Embedding((0.0, 1e-30, -2.0), prompt_tokens=5)]


def test_embeddings_as_numbers() -> None:
    raw = encode.embeddings(TINY, VECTORS, "float")
    answer = CreateEmbeddingResponse.model_validate_json(raw, strict=True)
    assert (answer.object, answer.model) == ("list", "tiny")
    assert [(entry.index, tuple(entry.embedding)) for entry in answer.data] == [
        (0, VECTORS[0].vector),
        (1, VECTORS[1].vector),
    ]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)


def test_embeddings_as_base64_are_little_endian_float32() -> None:
    data = json.loads(encode.embeddings(TINY, VECTORS, "base64"))["data"]
    assert base64.b64decode(data[0]["embedding"]) == bytes.fromhex("0000803e 000080bf 00006040")
    assert struct.unpack("<3f", base64.b64decode(data[1]["embedding"])) == pytest.approx(VECTORS[1].vector)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (math.inf,), (math.inf, -math.inf)])
def test_a_vector_that_is_not_finite_is_the_backends_failure(
    numbers: tuple[float, ...], encoding_format: encode.EncodingFormat
) -> None:
    with pytest.raises(BackendFailed, match="not finite"):
        encode.embeddings(TINY, [Embedding(numbers, 1)], encoding_format)


def test_models() -> None:
    model = Model.model_validate_json(encode.model_object(spec(TINY), NOTHING_KNOWN, 7), strict=True)
    assert (model.id, model.object, model.created, model.owned_by) == ("tiny", "model", 7, "gateway")
    listed = json.loads(encode.model_list([(spec(TINY), NOTHING_KNOWN), (spec("demo"), NOTHING_KNOWN)], 7))
    assert listed["object"] == "list"
    assert [Model.model_validate(entry).id for entry in listed["data"]] == ["tiny", "demo"]
    assert json.loads(encode.model_list([], 7))["data"] == []


def test_a_model_says_what_is_known_of_it_and_guesses_nothing() -> None:
    loaded = Capabilities(generates=True, embeds=False, context_tokens=1024)
    stated = json.loads(encode.model_object(spec(TINY, context_size=4096), loaded, 7))
    assert stated["max_model_len"] == 1024
    assert stated["capabilities"] == {"generates": True, "embeds": False}
    configured = json.loads(encode.model_object(spec(TINY, context_size=4096), NOTHING_KNOWN, 7))
    assert configured["max_model_len"] == 4096
    assert "capabilities" not in configured
    assert "max_model_len" not in json.loads(encode.model_object(spec(TINY), NOTHING_KNOWN, 7))


@pytest.mark.parametrize(
    ("error", "kind", "param", "code"),
    [
        (BadRequest("No.", param="n"), "invalid_request_error", "n", None),
        (ModelNotFound(ModelName("x")), "invalid_request_error", "model", "model_not_found"),
        (BackendFailed("Gone."), "server_error", None, "backend_error"),
        (GatewayError("Oops."), "server_error", None, None),
    ],
)
def test_errors(error: GatewayError, kind: str, param: str | None, code: str | None) -> None:
    assert json.loads(error_object(error)) == {
        "error": {"message": error.message, "type": kind, "param": param, "code": code}
    }


def test_a_loading_model_says_how_far_it_is() -> None:
    error = ModelLoading("Soon.", retry_after_seconds=5, loading={"model": "tiny", "state": "fetching"})
    body = json.loads(error_object(error))
    assert body["error"]["code"] == "model_loading"
    assert body["loading"] == {"model": "tiny", "state": "fetching"}
