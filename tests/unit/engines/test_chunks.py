"""llama.cpp's chunks, as it sends them, read into records and errors."""

from typing import Any

import pytest
from grpclib.const import Status

from gateway.backends.metadata import ERROR_CODE, ERROR_PARAM
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import Chunk, read_chunk
from gateway.engines.llama_cpp.errors import CallError

TIMINGS = {"cache_n": 3, "prompt_n": 4, "prompt_ms": 0.5, "predicted_n": 2, "predicted_ms": 1.5}


def error_of(error: dict[str, Any]) -> CallError:
    with pytest.raises(CallError) as caught:
        read_chunk({"error": error}, "messages")
    return caught.value


def test_text_of_a_chat_and_of_a_completion() -> None:
    expected = Chunk("abc", prompt_tokens=7, completion_tokens=2, prompt_ms=0.5, generation_ms=1.5, cached_tokens=3)
    chat = {"choices": [{"delta": {"content": "abc"}, "finish_reason": None}], "timings": TIMINGS}
    raw = {"choices": [{"text": "abc", "finish_reason": None}], "timings": TIMINGS}
    assert read_chunk(chat, "messages") == read_chunk(raw, "prompt") == expected


def test_a_chats_first_chunk_has_a_role_and_no_text() -> None:
    raw = {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    assert read_chunk(raw, "messages") == Chunk()


def test_a_chats_last_chunk_has_the_usage_and_no_choice() -> None:
    raw = {"choices": [], "usage": {"prompt_tokens": 27, "completion_tokens": 5}, "timings": TIMINGS}
    chunk = read_chunk(raw, "messages")
    assert (chunk.prompt_tokens, chunk.completion_tokens, chunk.text) == (27, 5, "")


def test_reasoning_is_no_text() -> None:
    raw = {"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    assert read_chunk(raw, "messages") == Chunk(reasoning="hm")


def test_a_call_begins_with_its_name_and_goes_on_with_its_arguments() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    second = {"index": 0, "function": {"arguments": "}"}}
    raws = [{"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": None}]} for call in (first, second)]
    assert [read_chunk(raw, "messages") for raw in raws] == [
        Chunk(tool_calls=(pb.ToolCallDelta(index=0, id="c1", name="f", arguments="{"),)),
        Chunk(tool_calls=(pb.ToolCallDelta(index=0, arguments="}"),)),
    ]


@pytest.mark.parametrize(
    ("chunk", "has"),
    [
        (Chunk("a"), True),
        (Chunk(reasoning="a"), True),
        (Chunk(tool_calls=(pb.ToolCallDelta(index=0),)), True),
        (Chunk(finish_reason="stop", completion_tokens=5), False),
    ],
)
def test_what_a_chunk_has_to_be_sent_for(chunk: Chunk, has: bool) -> None:
    assert chunk.has_content is has


@pytest.mark.parametrize(
    ("message", "explanation"),
    [
        (
            "Unable to generate parser for this template. JSON schema error at #/a: unrecognized type x",
            "the parameters of a tool can't be used: JSON schema error at #/a: unrecognized type x",
        ),
        ("Failed to initialize samplers: failed to parse grammar", "too large or nested too deeply"),
    ],
)
def test_a_tool_without_a_grammar_is_the_tools_fault(message: str, explanation: str) -> None:
    error = error_of({"code": 400, "message": message, "type": "invalid_request_error"})
    assert (error.status, error.trailers) == (Status.INVALID_ARGUMENT, {ERROR_PARAM: "tools"})
    assert explanation in error.message


def test_the_finish_reason() -> None:
    assert read_chunk({"choices": [{"delta": {}, "finish_reason": "length"}]}, "messages").finish_reason == "length"


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers() -> None:
    error = error_of({"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 2006, "n_ctx": 1024})
    assert error.status is Status.INVALID_ARGUMENT
    assert "2006" in error.message
    assert "1024" in error.message
    assert error.trailers == {ERROR_CODE: "context_length_exceeded", ERROR_PARAM: "messages"}


def test_llamas_client_errors_are_the_users() -> None:
    error = error_of({"code": 400, "message": "no such role", "type": "invalid_request_error"})
    assert (error.status, error.message) == (Status.INVALID_ARGUMENT, "no such role")


@pytest.mark.parametrize("error", [{"code": 500, "message": "boom"}, {"message": "boom"}])
def test_llamas_own_errors_are_internal(error: dict[str, Any]) -> None:
    caught = error_of(error)
    assert (caught.status, caught.message, dict(caught.trailers)) == (Status.INTERNAL, "boom", {})
