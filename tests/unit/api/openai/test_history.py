"""What clients send back: our own answers with everything that their libraries add, and what the model gets of it."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from openai.types import chat as chat_types

from gateway.api.openai.schema import parse_chat
from gateway.domain.errors import BadRequest
from gateway.domain.inference import ChatMessage, Text, ToolCall

USER: dict[str, Any] = {"role": "user", "content": "hi"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = (ToolCall("c", "f", "{}"),)


def parsed(*messages: dict[str, Any], **fields: object) -> Text | tuple[ChatMessage, ...]:
    body = {"model": "m", "messages": [USER, *messages, USER], **fields}
    return parse_chat(json.dumps(body).encode()).generation.prompt


def answer(**fields: object) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def of(**fields: Any) -> ChatMessage:
    return ChatMessage("assistant", **{"content": "", **fields})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (answer(content="hi", parsed=None), of(content="hi")),
        (answer(content="hi", parsed={"a": 1}, id="x", opts={}), of(content="hi")),
        (answer(content="hi", refusal=None, audio=None, annotations=[], function_call=None), of(content="hi")),
        (answer(content="hi", annotations=[{"type": "url_citation"}]), of(content="hi")),
        (answer(content="hi", provider_specific_fields={"a": 1}), of(content="hi")),
        (answer(content="hi", cache_control={"type": "ephemeral"}), of(content="hi")),
        (answer(content=None), of()),
        (answer(), of()),
        (answer(content=[]), of()),
        (answer(content=None, tool_calls=[]), of()),
        (answer(content=[], tool_calls=[CALL]), of(tool_calls=CALLED)),
        (answer(content="", tool_calls=[{**CALL, "parsed": 1, "index": 0}]), of(tool_calls=CALLED)),
        (answer(tool_calls=[{"function": {"name": "f"}}]), of(tool_calls=(ToolCall("", "f", "{}"),))),
        (answer(tool_calls=[{**CALL, "id": None, "type": None}]), of(tool_calls=(ToolCall("", "f", "{}"),))),
        (
            answer(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}]),
            of(tool_calls=CALLED),
        ),
        (
            answer(tool_calls=[{**CALL, "function": {"name": "f", "arguments": {"a": [1]}}}]),
            of(tool_calls=(ToolCall("c", "f", '{"a":[1]}'),)),
        ),
        (
            answer(tool_calls=[{**CALL, "function": {"name": None, "arguments": '{"a'}}]),
            of(tool_calls=(ToolCall("c", "", '{"a'),)),
        ),
        (answer(content=None, refusal="no"), of(content="no")),
        (answer(content="x", refusal="no"), of(content="x")),
        (answer(content=[{"type": "refusal", "refusal": "no"}]), of(content="no")),
        (answer(content=[{"type": "text", "text": "a", "cache_control": {}, "annotations": []}]), of(content="a")),
        (answer(content=[{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}]), of(content="a")),
        (answer(content="a", reasoning_content="so"), of(content="a", reasoning="so")),
        (answer(content="a", reasoning="so"), of(content="a", reasoning="so")),
        (answer(content="a", reasoning=None, reasoning_content=None), of(content="a")),
        (answer(content="a", thinking="so"), of(content="a", reasoning="so")),
        (answer(content="a", reasoning="so", reasoning_details=[{"type": "reasoning.text", "text": "so"}]), None),
        (
            answer(
                content="a",
                reasoning_details=[
                    {"type": "reasoning.summary", "summary": "s", "index": 0},
                    {"type": "reasoning.encrypted", "data": "x"},
                    {"type": "reasoning.text", "text": "o", "signature": None},
                ],
            ),
            None,
        ),
        (answer(content="a", thinking_blocks=[{"type": "thinking", "thinking": "so", "signature": "x"}]), None),
        (answer(content=[{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "a"}]), None),
        ({**USER, "id": 5, "opts": {"visible": False}}, ChatMessage("user", "hi")),
        ({**USER, "copilot_cache_control": {"type": "ephemeral"}}, ChatMessage("user", "hi")),
        ({**USER, "name": None, "tool_calls": None, "images": None, "prefix": False}, ChatMessage("user", "hi")),
        (
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            ChatMessage("user", "hi"),
        ),
        ({"role": "tool", "tool_call_id": "c", "content": None}, ChatMessage("tool", "", tool_call_id="c")),
        ({"role": "tool", "tool_call_id": "c", "content": []}, ChatMessage("tool", "", tool_call_id="c")),
        ({"role": "tool", "tool_call_id": "c", "is_error": True}, ChatMessage("tool", "", tool_call_id="c")),
    ],
)
def test_what_clients_add_says_nothing_to_the_model(message: dict[str, Any], expected: ChatMessage | None) -> None:
    """Where nothing is expected, it is the answer "a" with the reasoning "so"."""
    assert parsed(message)[1] == (expected or of(content="a", reasoning="so"))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({**USER, "images": ["x"]}, "messages[1].images"),
        (answer(content="The", prefix=True), "messages[1].prefix"),
        (answer(function_call={"name": "f", "arguments": "{}"}), "messages[1].function_call"),
        (answer(audio={"id": "a"}), "messages[1].audio"),
        (answer(tool_calls=[{"type": "custom", "custom": {}}]), "messages[1].tool_calls[0].type"),
        (answer(tool_calls=[{**CALL, "function": {"name": "f", "arguments": 5}}]), None),
        (answer(content=[{"type": "image_url", "image_url": {"url": ""}}], parsed=1), "messages[1].content[0].type"),
        ({"role": "user", "content": None}, "messages[1].content"),
    ],
)
def test_what_is_meant_for_the_model_is_refused_by_its_path(message: dict[str, Any], param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed({**message, "x_client": 1})
    assert caught.value.param == (param or "messages[1].tool_calls[0].function.arguments")


@pytest.mark.parametrize(
    "types",
    [
        chat_types.ChatCompletionSystemMessageParam,
        chat_types.ChatCompletionDeveloperMessageParam,
        chat_types.ChatCompletionUserMessageParam,
        chat_types.ChatCompletionAssistantMessageParam,
        chat_types.ChatCompletionToolMessageParam,
    ],
)
def test_each_field_that_the_official_client_types_may_be_null(types: Any) -> None:
    """A required one has a value."""
    (role,) = get_args(get_type_hints(types)["role"])
    message = dict.fromkeys(types.__required_keys__ | types.__optional_keys__)
    message |= {"role": role, "content": "x", "tool_call_id": "c"}
    read = parsed(message)[1]
    assert isinstance(read, ChatMessage)
    assert read.content == "x"


def test_marks_of_clients_are_taken_from_tools() -> None:
    function = {"name": "f", "strict": True, "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}
    body = {"model": "m", "messages": [USER], "tools": [tool]}
    call = parse_chat(json.dumps(body).encode())
    assert call.generation.tools == '[{"type":"function","function":{"name":"f"}}]'
