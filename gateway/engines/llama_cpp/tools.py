"""Translates the tools of a chat, and the choice among them, for llama.cpp. Pure."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.engines.llama_cpp.errors import CallError, invalid
from gateway.engines.llama_cpp.forms.boolean_schemas import without_booleans
from gateway.engines.llama_cpp.sampling import Body, SamplingLimits, parse_json
from gateway.json_grammar.errors import SchemaError
from gateway.json_grammar.references import check_depth

TOOLS: Final = "tools"
TOOL_CHOICE: Final = "tool_choice"
MESSAGES: Final = "messages"
NO_ARGUMENTS: Final = "{}"
WORDS: Final = ("none", "auto", "required")

CALL_WITH_TEXT: Final = {
    "messages": [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "",
            # Some templates want ids of nine letters and digits.
            "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": '"a part"'}}],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": "Done."},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}],
}
"""A chat with an earlier call whose arguments are the JSON of a text."""


def tools_body(tools_text: str, choice_text: str, limits: SamplingLimits) -> Body:
    """Returns Tools and ToolChoice of PredictOptions as OpenAI's parameters, or nothing if no tool may be called.

    llama.cpp does not know two of OpenAI's choices and still shows the model all tools. So there are no tools here for
    `none`, and only that tool for a named one. Raises `CallError` (INVALID_ARGUMENT) that names the parameter.
    """
    tools, choice = _tools(tools_text), _choice(choice_text)
    if choice not in WORDS:
        tools, choice = [tool for tool in tools if _name(tool) == choice], "required"
    if choice == "required" and not tools:
        raise invalid(f"{TOOL_CHOICE} asks for a call of a tool that is not there", param=TOOL_CHOICE)
    if choice == "none" or not tools:
        return {}
    if not limits.takes_tools:
        raise invalid("this model can't call tools: its chat template has no place for them", param=TOOLS)
    return {TOOLS: tools, TOOL_CHOICE: choice}


def _tools(text: str) -> list[Mapping[str, Any]]:
    tools = parse_json(text, TOOLS) if text else []
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise invalid(f"{TOOLS} must be a JSON array of objects", param=TOOLS)
    return [_with_plain_schema(tool) for tool in tools]


def _with_plain_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the tool with parameters as llama.cpp reads them. Raises `CallError` if they are nested too deeply."""
    function = tool.get("function")
    if not isinstance(function, dict) or "parameters" not in function:
        return tool
    try:
        check_depth(function["parameters"])
    except SchemaError as error:
        raise invalid(f"the parameters of a tool can't be used: they {error.message}", param=TOOLS) from error
    return {**tool, "function": {**function, "parameters": without_booleans(function["parameters"])}}


def _choice(text: str) -> str:
    """Returns one of the words, or the name of a tool. The words come bare or as JSON strings."""
    if not text or text in WORDS:
        return text or "auto"
    choice = parse_json(text, TOOL_CHOICE)
    name = choice if choice in WORDS else _name(choice)
    if not isinstance(name, str):
        raise invalid(
            f"{TOOL_CHOICE} must be one of {', '.join(WORDS)} or an object that names a function", param=TOOL_CHOICE
        )
    return name


def _name(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def earlier_calls(text: str, limits: SamplingLimits) -> Any:  # noqa: ANN401 - a template's business
    """Returns the calls of an earlier message, with arguments that llama.cpp and the template can read.

    Arguments that were cut short are no JSON. If llama.cpp parses them, they become the JSON of a text, or an empty
    object if the template can't write a text. Raises `CallError` if the calls themselves are no JSON.
    """
    calls = parse_json(text, MESSAGES)
    if limits.parses_arguments and isinstance(calls, list):
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                function["arguments"] = _readable(function.get("arguments"), limits)
    return calls


def _readable(arguments: object, limits: SamplingLimits) -> object:
    if not isinstance(arguments, str):
        return arguments or {}
    if _is_object(arguments):
        return arguments
    return json.dumps(arguments) if limits.takes_text_arguments and arguments else NO_ARGUMENTS


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text, MESSAGES), dict)
    except CallError:
        return False


def takes_text_arguments(render: Callable[[Mapping[str, Any]], str]) -> bool:
    """Returns whether the chat template can write arguments of an earlier call that are a text and no object. `render`
    returns the prompt that the template makes of a chat, or raises `CallError`."""
    try:
        render(CALL_WITH_TEXT)
    except CallError:
        return False
    return True
