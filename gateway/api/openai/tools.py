"""The tools of a request: those that it offers, those that may be called, and the calls in earlier messages.

Source: the OpenAI API reference, chat/completions, `tools`, `tool_choice` and `messages[].tool_calls`. Functions are
the only kind of tool that is supported.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import to_json

from gateway.api.http.json_body import (
    ANY_VALUE,
    INVALID_VALUE,
    MISSING,
    UNSUPPORTED_VALUE,
    JsonBody,
    validation_error,
    wrong_type,
    wrong_value,
)
from gateway.api.http.json_count import COUNTED_FROM_BYTES, find_broken_bound
from gateway.api.openai.history import NO_ARGUMENTS
from gateway.domain.errors import BackendFailed, BadRequest
from gateway.domain.inference import Completion, FinishReason, Generation, ToolCall

TOOLS_MAX: Final = 128
"""The largest number of tools of one request."""
CALLS_MAX: Final = 8_192
"""The largest number of calls of one message: an answer may be nothing but calls. A body has hardly room for more."""
TOOLS_BYTES_MAX: Final = 1024 * 1024
"""The largest size of all tools as JSON. Backends turn each schema into a grammar before the first token, and cannot be
stopped meanwhile."""
CHOICE_WORDS: Final = ("none", "auto", "required")

_FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def refuse_other_kind(data: object, known: str, things: str) -> None:
    """Raises an error for the `type` of a JSON object if it is not `known`. Other checks handle a missing type, and one
    that is no string.

    It has to be called before the other keys are checked: the fault of an image is its type and not its `image_url`
    key.
    """
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind != known:
        message = f"Invalid value for '{{param}}': {things} of type '{kind[:64]}' are not supported."
        raise validation_error(UNSUPPORTED_VALUE, message, "type")


def _check_function_name(name: str) -> str:
    if not _FUNCTION_NAME.fullmatch(name):
        raise wrong_value("be 1 to 64 letters, digits, '_' or '-'")
    return name


FunctionName = Annotated[str, AfterValidator(_check_function_name)]


def _as_schema(value: object) -> object:
    """Reads the schema `true`, which admits everything, as the object that means the same."""
    return {} if value is True else value


class Function(JsonBody):
    """A function that the model may call: its name, what it does, and a JSON schema of its arguments."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({"strict": (False, True)})
    """The parameter `strict` changes nothing: arguments follow the schema in any case, because llama.cpp samples
    them under a grammar made from it."""

    name: FunctionName
    description: str | None = None
    parameters: Annotated[dict[str, Any], BeforeValidator(_as_schema)] | None = None
    """A JSON schema, in the caller's order of keys, because the model sees it like that. The backend checks it."""


class Tool(JsonBody):
    """One entry of `tools`; types other than `function` are refused by name."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_tools(cls, data: object) -> object:
        refuse_other_kind(data, "function", "tools")
        return data


def _check_unique(tools: list[Tool]) -> list[Tool]:
    seen = set[str]()
    for index, tool in enumerate(tools):
        if tool.function.name in seen:
            message = "Invalid value for '{param}': another tool has this name."
            raise validation_error(INVALID_VALUE, message, index, "function", "name")
        seen.add(tool.function.name)
    return tools


Tools = Annotated[list[Tool], Field(max_length=TOOLS_MAX, fail_fast=True), AfterValidator(_check_unique)]


class NamedFunction(JsonBody):
    """The function that a `tool_choice` demands, by its name."""

    name: FunctionName


class ToolChoice(JsonBody):
    """One of the words, or an object that names a function. A word is read as an object of that type."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_word(cls, data: object) -> object:
        if isinstance(data, str):
            if data not in CHOICE_WORDS:
                raise wrong_value("be 'none', 'auto', 'required' or an object that names a function")
            return {"type": data}
        if not isinstance(data, dict):
            raise wrong_type("a string or an object", data)
        if data.get("type") in CHOICE_WORDS:
            raise wrong_value("be 'function'", "type")
        refuse_other_kind(data, "function", "choices")
        return data

    @model_validator(mode="after")
    def _check_function(self) -> Self:
        if self.type == "function" and self.function is None:
            raise validation_error(MISSING, "Missing required parameter: '{param}'.", "function")
        return self


AUTO: Final = ToolChoice.model_validate("auto")
"""The choice of a request that has none."""


def _check_counts(arguments: str) -> str:
    """Checks the number of values in the text, which the counts of the whole body do not include."""
    if len(arguments) > COUNTED_FROM_BYTES and (bound := find_broken_bound(arguments.encode())[0]) is not None:
        raise wrong_value(f"have at most {bound}")
    return arguments


class CalledFunction(JsonBody):
    """The function that an earlier message called. An answer may have ended anywhere, so any text is accepted."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({"parsed_arguments": ANY_VALUE})

    name: str
    arguments: Annotated[str, AfterValidator(_check_counts)]
    """The text of a JSON object, or a part of it. The backend knows what its template can write."""


class MessageToolCall(JsonBody):
    """One entry of an assistant message's `tool_calls`."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
    """The position of the call. It is accepted because the parts of a streamed call carry it, and dropped, because
    the order says the same."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_calls(cls, data: object) -> object:
        refuse_other_kind(data, "function", "tool calls")
        return data

    def as_tool_call(self) -> ToolCall:
        """Returns the call for a backend. Its arguments are the text that the client sent, if there is any."""
        arguments = self.function.arguments
        is_empty = not arguments or arguments.isspace()
        return ToolCall(self.id, self.function.name, NO_ARGUMENTS if is_empty else arguments)


MessageToolCalls = Annotated[list[MessageToolCall], Field(max_length=CALLS_MAX, fail_fast=True)]


def offer(tools: Sequence[Tool], choice: ToolChoice | None) -> tuple[str | None, str | None]:
    """Returns `tools` and `tool_choice` for a `Generation`. Raises `BadRequest` if they do not fit together.

    The tools of a request that allows no call are left out, because a model calls the tools that it sees.
    """
    choice = choice or AUTO
    _check_choice(tools, choice)
    if not tools or choice.type == "none":
        return None, None
    return _tools_text(tools), _choice_text(choice)


def check_call(generation: Generation, answer: Completion) -> None:
    """Raises `BackendFailed` for an answer without a call, if the request demands one."""
    if generation.tool_choice is None or answer.tool_calls:
        return
    why = "reached its limit of tokens before it" if answer.finish_reason is FinishReason.LENGTH else "made none"
    raise BackendFailed(f"'tool_choice' demands a tool call, and the model {why}.", param="tool_choice")


def _check_choice(tools: Sequence[Tool], choice: ToolChoice) -> None:
    message = None
    if choice.type in ("required", "function") and not tools:
        message = "Invalid value for 'tool_choice': it asks for a call, and 'tools' offers nothing to call."
    elif choice.function is not None and choice.function.name not in {tool.function.name for tool in tools}:
        message = f"Invalid value for 'tool_choice': 'tools' has no function '{choice.function.name}'."
    if message is not None:
        raise BadRequest(message, param="tool_choice", code=INVALID_VALUE)


def _tools_text(tools: Sequence[Tool]) -> str:
    text = to_json([{"type": tool.type, "function": _function_fields(tool.function)} for tool in tools])
    if len(text) > TOOLS_BYTES_MAX:
        message = f"Invalid value for 'tools': must be at most {TOOLS_BYTES_MAX} bytes of JSON, got {len(text)}."
        raise BadRequest(message, param="tools", code=INVALID_VALUE)
    return text.decode()


def _function_fields(function: Function) -> dict[str, Any]:
    fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {name: value for name, value in fields.items() if value is not None}


def _choice_text(choice: ToolChoice) -> str | None:
    """Returns the text of a choice, or None for the choice of a request that has none."""
    if choice.function is not None:
        return to_json({"type": choice.type, "function": {"name": choice.function.name}}).decode()
    return None if choice.type == "auto" else choice.type
