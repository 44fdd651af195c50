"""What /v1/chat/completions takes about tools and thinking, where it goes, and what is refused by which name."""

import json
from typing import Any

import pytest

from gateway.api.http.json_count import CONTAINERS_MAX
from gateway.api.openai.schema import parse_chat
from gateway.api.openai.tools import TOOLS_BYTES_MAX
from gateway.domain.errors import BadRequest
from gateway.domain.inference import ChatMessage, Generation, ToolCall

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"b": {"default": None}, "a": {"type": "string"}}, "required": ["a"]}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


def tool(name: str = "f", **fields: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def call(**fields: object) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **fields}


def calling(*calls: dict[str, Any], **fields: object) -> list[dict[str, Any]]:
    return [*HELLO, {"role": "assistant", "tool_calls": calls, **fields}]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "demo", "messages": HELLO} | fields).encode()


def parsed(**fields: object) -> Generation:
    return parse_chat(body(**fields)).generation


def test_tools_are_passed_on_in_a_fixed_order_of_keys_but_for_the_schemas() -> None:
    """A template writes them out as they come, and models know OpenAI's order."""
    given = {"function": {"strict": True, "parameters": SCHEMA, "description": "ü", "name": "f"}, "type": "function"}
    generation = parsed(tools=[given, tool("g-1_")])
    assert generation.tools == (
        '[{"type":"function","function":{"name":"f","description":"ü","parameters":{"type":"object","properties":'
        '{"b":{"default":null},"a":{"type":"string"}},"required":["a"]}}},'
        '{"type":"function","function":{"name":"g-1_"}}]'
    )
    assert (generation.tool_choice, generation.thinking) == (None, None)


@pytest.mark.parametrize(
    ("choice", "passed_on"),
    [(None, None), ("auto", None), ("required", "required"), (NAMED, '{"type":"function","function":{"name":"f"}}')],
)
def test_choices_that_allow_a_call(choice: object, passed_on: str | None) -> None:
    generation = parsed(tools=[tool()], tool_choice=choice)
    assert generation.tools is not None
    assert generation.tool_choice == passed_on


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool()], "tool_choice": "none"},
        {"tools": [tool()], "tool_choice": "none", "parallel_tool_calls": False},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"parallel_tool_calls": True},
        {"chat_template_kwargs": {}},
        {"chat_template_kwargs": {"enable_thinking": None}},
    ],
)
def test_what_allows_no_call_leaves_the_request_as_it_is_without_tools(fields: dict[str, Any]) -> None:
    """A model calls what it sees, so `none` hides the tools from it."""
    assert parsed(**fields) == parsed()


def test_calls_may_be_parallel() -> None:
    assert parsed(tools=[tool()], parallel_tool_calls=True) == parsed(tools=[tool()])
    assert not parsed(tools=[tool()]).single_call


def test_an_answer_may_be_asked_to_end_after_its_first_call() -> None:
    assert parsed(tools=[tool()], parallel_tool_calls=False).single_call


def test_the_schema_true_admits_all_arguments() -> None:
    assert parsed(tools=[tool(parameters=True)]) == parsed(tools=[tool(parameters={})])


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_may_be_switched(thinking: bool) -> None:
    assert parsed(chat_template_kwargs={"enable_thinking": thinking}).thinking is thinking


def test_other_settings_of_the_template_are_passed_on() -> None:
    generation = parsed(chat_template_kwargs={"enable_thinking": True, "style": {"a": 1}, "unset": None})
    assert (generation.thinking, generation.template) == (True, '{"style":{"a":1}}')
    assert parsed(chat_template_kwargs={"enable_thinking": True}).template is None


@pytest.mark.parametrize(
    ("effort", "settings", "expected"),
    [
        ("none", {}, (False, None)),
        ("none", {"enable_thinking": True}, (True, None)),
        ("low", {}, (None, "low")),
        ("high", {"enable_thinking": False}, (False, "high")),
    ],
)
def test_no_effort_switches_thinking_off_and_others_are_passed_on(
    effort: str, settings: dict[str, Any], expected: tuple[bool | None, str | None]
) -> None:
    generation = parsed(reasoning_effort=effort, chat_template_kwargs=settings)
    assert (generation.thinking, generation.effort) == expected


def test_as_many_tools_as_openai_takes() -> None:
    assert len(json.loads(parsed(tools=[tool(f"f{index}") for index in range(128)]).tools or "")) == 128


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": {}}, "tools", "expected an array, got an object"),
        ({"tools": [tool(f"f{index}") for index in range(129)]}, "tools", "at most 128 entries"),
        ({"tools": ["f"]}, "tools[0]", "expected an object, got a string"),
        ({"tools": [{}]}, "tools[0].type", "Missing required parameter"),
        ({"tools": [{"type": 1}]}, "tools[0].type", "must be 'function', got 1"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "tools of type 'custom' are not supported"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing required parameter"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "Missing required parameter"),
        ({"tools": [tool(), tool("g h")]}, "tools[1].function.name", "must be 1 to 64 letters, digits"),
        ({"tools": [tool("")]}, "tools[0].function.name", "must be 1 to 64 letters, digits"),
        ({"tools": [tool("f" * 65)]}, "tools[0].function.name", "must be 1 to 64 letters, digits"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name", "must be 1 to 64 letters, digits"),
        ({"tools": [tool("g"), tool(), tool()]}, "tools[2].function.name", "another tool has this name"),
        ({"tools": [tool(description=1)]}, "tools[0].function.description", "expected a string, got an integer"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "expected an object, got an array"),
        ({"tools": [tool(returns={})]}, "tools[0].function.returns", "Unrecognized request argument"),
        ({"tools": [tool(description="x" * TOOLS_BYTES_MAX)]}, "tools", "must be at most 1048576 bytes of JSON"),
        ({"tool_choice": "any"}, "tool_choice", "must be 'none', 'auto', 'required' or an object"),
        ({"tool_choice": 1}, "tool_choice", "expected a string or an object, got an integer"),
        ({"tool_choice": {}}, "tool_choice.type", "Missing required parameter"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice.type", "must be 'function'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "type 'allowed_tools' are not supported"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "Missing required parameter"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name", "Unrecognized request argument"),
        ({"tool_choice": "required"}, "tool_choice", "'tools' offers nothing to call"),
        ({"tool_choice": NAMED, "tools": []}, "tool_choice", "'tools' offers nothing to call"),
        ({"tool_choice": NAMED, "tools": [tool("g")]}, "tool_choice", "'tools' has no function 'f'"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls", "expected a boolean, got an integer"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "expected an object, got an array"),
        ({"chat_template_kwargs": {"x": "y" * 65_536}}, "chat_template_kwargs", "at most 65536 bytes of JSON"),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "chat_template_kwargs.enable_thinking",
            "expected a boolean, got a string",
        ),
        ({"messages": calling({"id": "c1"})}, "messages[1].tool_calls[0].function", "expected an object, got null"),
        ({"messages": calling(call(id=1))}, "messages[1].tool_calls[0].id", "expected a string, got an integer"),
        ({"messages": calling(call(type="custom"))}, "messages[1].tool_calls[0].type", "tool calls of type 'custom'"),
        ({"messages": calling(call(function={"name": 1}))}, "messages[1].tool_calls[0].function.name", "a string"),
        ({"messages": calling(*[call()] * 8_193)}, "messages[1].tool_calls", "at most 8192 entries"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [call()]}]}, "messages[0].tool_calls", "only"),
        ({"messages": [{"role": "user", "tool_calls": [call()]}]}, "messages[0].content", "Missing required"),
    ],
)
def test_a_bad_value_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_arguments_with_more_values_than_a_request_may_have_are_refused() -> None:
    """They are JSON in a text, which the counts of the body know nothing of."""
    arguments = "{" + ",".join(f'"k{number}":[]' for number in range(CONTAINERS_MAX + 1)) + "}"
    with pytest.raises(BadRequest) as caught:
        parsed(messages=calling(call(function={"name": "f", "arguments": arguments})))
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"
    assert str(CONTAINERS_MAX) in caught.value.message


@pytest.mark.parametrize("arguments", ["no", "{", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 1000])
def test_arguments_that_were_cut_short_reach_the_backend_as_they_are(arguments: str) -> None:
    message = parsed(messages=calling(call(function={"name": "f", "arguments": arguments}))).prompt[1]
    assert message == ChatMessage("assistant", "", tool_calls=(ToolCall("c1", "f", arguments),))


@pytest.mark.parametrize("arguments", ["", " \n", None])
def test_a_call_without_arguments_has_an_empty_object(arguments: object) -> None:
    message = parsed(messages=calling(call(function={"name": "f", "arguments": arguments}))).prompt[1]
    assert message == ChatMessage("assistant", "", tool_calls=(ToolCall("c1", "f", "{}"),))


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"content": ""}])
def test_an_assistant_that_calls_need_not_say_anything(fields: dict[str, Any]) -> None:
    messages = calling(call(), call(id="c2", index=1), **fields)
    result = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    assert parsed(messages=[*messages, result]).prompt == (
        ChatMessage("user", "hello"),
        ChatMessage("assistant", "", tool_calls=(ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}"))),
        ChatMessage("tool", "sunny", tool_call_id="c1"),
    )


def test_an_assistant_may_say_something_and_call() -> None:
    message = parsed(messages=calling(call(), content="Let me see.")).prompt[1]
    assert message == ChatMessage("assistant", "Let me see.", tool_calls=(ToolCall("c1", "f", "{}"),))
