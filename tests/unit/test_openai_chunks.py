"""Streamed answers as the official client reads them."""

import json

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk

from gateway.api.openai.chunks import ChatChunks, CompletionChunks
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Finish

REQUEST = RequestId("r-1")
TINY = ModelName("tiny")
END = Completion(Finish.STOP, prompt_tokens=3, completion_tokens=4)


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


def test_reasoning_goes_to_its_own_field() -> None:
    deltas = [
        json.loads(chat().text(text, reasoning))["choices"][0]["delta"] for text, reasoning in [("", "hm"), ("a", "hm")]
    ]
    assert deltas == [{"reasoning_content": "hm"}, {"reasoning_content": "hm", "content": "a"}]


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
