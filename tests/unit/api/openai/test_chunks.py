"""Streamed answers as the official client reads them."""

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk

from gateway.api.openai.chunks import ChatChunks, CompletionChunks, CountingChunks
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Delta, FinishReason, ToolCallDelta

REQUEST = RequestId("r-1")
TINY = ModelName("tiny")
END = Completion(FinishReason.STOP, prompt_tokens=3, completion_tokens=4)


def chat(*, include_usage: bool = False) -> ChatChunks:
    return ChatChunks(REQUEST, TINY, 1_700_000_000, include_usage=include_usage)


def test_a_chat_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    encoder = chat()
    raw = [*encoder.opening(), encoder.text("Hel"), encoder.text("lo"), *encoder.ending(END)]
    chunks = [ChatCompletionChunk.model_validate_json(chunk, strict=True) for chunk in raw]
    assert {(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks} == {
        ("chatcmpl-r-1", "chat.completion.chunk", 1_700_000_000, "tiny")
    }
    assert [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert all("usage" not in json.loads(chunk) for chunk in raw)


def test_with_usage_the_last_chunk_counts_and_the_others_say_null() -> None:
    encoder = chat(include_usage=True)
    *earlier, last = [json.loads(chunk) for chunk in [*encoder.opening(), encoder.text("x"), *encoder.ending(END)]]
    assert [chunk["usage"] for chunk in earlier] == [None, None, None]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
@pytest.mark.parametrize("prompt_tokens", [0, 3])
def test_with_usage_an_empty_answer_ends_with_its_counts(
    kind: type[ChatChunks] | type[CompletionChunks], prompt_tokens: int
) -> None:
    encoder = kind(REQUEST, TINY, 5, include_usage=True)
    reason, counts = [json.loads(chunk) for chunk in encoder.ending(Completion(FinishReason.STOP, prompt_tokens, 0))]
    assert (reason["choices"][0]["finish_reason"], reason["usage"]) == ("stop", None)
    assert counts["choices"] == []
    assert counts["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 0,
        "total_tokens": prompt_tokens,
    }


def test_reasoning_goes_to_its_own_field() -> None:
    deltas = [
        json.loads(chat().text(text, reasoning))["choices"][0]["delta"] for text, reasoning in [("", "hm"), ("a", "hm")]
    ]
    assert deltas == [{"reasoning_content": "hm"}, {"reasoning_content": "hm", "content": "a"}]


def test_a_call_is_named_once_and_its_arguments_follow() -> None:
    """Clients join the fields of all parts: an id or a name that came twice would be there twice."""
    encoder = chat()
    parts = [
        ToolCallDelta(0, "c1", "f", "{"),
        ToolCallDelta(0, "c1", "f", '"a": 1'),
        ToolCallDelta(1, "", "g", "{}"),
        ToolCallDelta(0, arguments="}"),
    ]
    raw = [encoder.text("", "", [part]) for part in parts[:2]] + [encoder.text("", "", parts[2:])]
    chunks = [ChatCompletionChunk.model_validate_json(chunk, strict=True) for chunk in raw]
    assert [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks] == [
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"a": 1'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_r-1_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                {"index": 0, "function": {"arguments": "}"}},
            ]
        },
    ]


def test_the_clients_own_accumulator_puts_calls_together() -> None:
    encoder, state = chat(), ChatCompletionStreamState()
    end = Completion(FinishReason.TOOL_CALLS, 3, 4)
    raw = [
        *encoder.opening(),
        encoder.text("Well."),
        encoder.text("", "", [ToolCallDelta(0, "c1", "f", "{")]),
        encoder.text("", "", [ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "c2", "g", "{}")]),
        *encoder.ending(end),
    ]
    for chunk in raw:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(chunk))
    [choice] = state.get_final_completion().choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Well.")
    calls: list[Any] = list(choice.message.tool_calls or ())
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("c1", "f", "{}"),
        ("c2", "g", "{}"),
    ]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_completion_stream(include_usage: bool) -> None:
    encoder = CompletionChunks(REQUEST, TINY, 5, include_usage=include_usage)
    raw = [*encoder.opening(), encoder.text("Once"), encoder.text("b", reasoning="a"), *encoder.ending(END)]
    # As the client does, without validation: its type forgets that the reason is null until the end.
    chunks = [OpenAICompletion.construct(**json.loads(chunk)) for chunk in raw]
    assert {(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks} == {
        ("cmpl-r-1", "text_completion", 5, "tiny")
    }
    choices = [(choice.text, choice.finish_reason) for chunk in chunks for choice in chunk.choices]
    assert choices == [("Once", None), ("ab", None), ("", "stop")]
    if include_usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 7
        assert all(json.loads(chunk)["usage"] is None for chunk in raw[:-1])


def test_a_model_name_cannot_break_out_of_its_string() -> None:
    name = ModelName('x"},\n{"\u2028')
    encoder = ChatChunks(REQUEST, name, 0, include_usage=False)
    assert json.loads(encoder.text("hi"))["model"] == name


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
def test_each_chunk_may_carry_the_counts_so_far(kind: type[ChatChunks] | type[CompletionChunks]) -> None:
    plain = kind(REQUEST, TINY, 5, include_usage=True)
    encoder = CountingChunks(kind(REQUEST, TINY, 5, include_usage=True))
    delta = Delta("null}", prompt_tokens=3, completion_tokens=1)
    chunks = [json.loads(chunk) for chunk in [encoder.part(delta), *encoder.ending(END)]]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 4, 4]
    assert [chunk["usage"]["total_tokens"] for chunk in chunks] == [4, 7, 7]
    bare = [json.loads(chunk) for chunk in [plain.part(delta), *plain.ending(END)]]
    assert [{**chunk, "usage": None} for chunk in chunks] == [{**chunk, "usage": None} for chunk in bare]
    assert encoder.opening() == plain.opening()
