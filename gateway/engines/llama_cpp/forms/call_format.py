"""Learns how a model writes a tool call, from what its chat template makes of one. Pure.

Most templates write the name of the function, then its arguments as a JSON object, with fixed texts around them. For
those a call can be forced to begin as the model would begin it. Others (arguments as XML, as Python) get a JSON object
of their own, which every model can write.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

END_CHARACTERS: Final = 4
"""The length at which the mark that ends an answer is recognized. What follows the mark differs."""
FIXED_CHARACTERS_MAX: Final = 256
"""The largest length of the fixed texts of a call. A longer one is more than a mark."""

_QUESTION: Final = "gatewayasksthis"
_NAME: Final = "gateway_probe"
_CONTENT: Final = "gatewaysaysthis"
_KEY: Final = "probedkey"
_ARGUMENTS: Final = re.compile(r'\{\s*"' + _KEY + r'"\s*:\s*1\s*\}')
_PROPERTIES: Final[Mapping[str, Any]] = {_KEY: {"type": "integer"}}
_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": _PROPERTIES, "required": [_KEY]}
_TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {"name": _NAME, "description": "Probes.", "parameters": _PARAMETERS},
}
_CALL: Final[Mapping[str, Any]] = {
    "id": "probe0001",
    "type": "function",
    "function": {"name": _NAME, "arguments": f'{{"{_KEY}": 1}}'},
}


@dataclass(frozen=True)
class CallFormat:
    """The fixed texts of a tool call."""

    before_name: str
    """The text from the beginning of the answer up to the function's name."""
    before_arguments: str
    """The text between the name and the JSON object with the arguments."""
    after_arguments: str
    """The text after the arguments, up to the end of the answer. The model's tokens may reach from the arguments into
    it."""


PLAIN: Final = CallFormat('{"name": "', '", "arguments": ', "}")
"""The format for models whose own is not made of a name and a JSON object."""

Render = Callable[[Mapping[str, Any]], str]
"""Applies the model's chat template to a chat, and returns the prompt."""


def find_call_format(render: Render) -> CallFormat:
    """Returns the format in which the model's template writes a call. The errors of `render` are raised."""
    question = {"role": "user", "content": _QUESTION}
    result = {"role": "tool", "tool_call_id": _CALL["id"], "name": _NAME, "content": "1"}
    called = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    said = {"role": "assistant", "content": _CONTENT}
    call = render(_chat([question, called, result, question]))
    text = render(_chat([question, said, question]))
    return _compared(call.partition(_QUESTION)[2], text.partition(_QUESTION)[2])


def _chat(messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return {"messages": messages, "tools": [_TOOL], "chat_template_kwargs": {"enable_thinking": False}}


def _compared(call: str, text: str) -> CallFormat:
    """Compares how an answer begins that is a call, and one that is text."""
    header, found, ending = text.partition(_CONTENT)
    before_name, named, rest = call.removeprefix(header).partition(_NAME)
    arguments = _ARGUMENTS.search(rest)
    if not (found and named and arguments and call.startswith(header)):
        return PLAIN
    before_arguments, after = rest[: arguments.start()], _before_end(rest[arguments.end() :], ending)
    is_short = len(before_name) + len(before_arguments) + len(after) <= FIXED_CHARACTERS_MAX
    return CallFormat(before_name, before_arguments, after) if before_arguments and is_short else PLAIN


def _before_end(text: str, ending: str) -> str:
    """Returns the part of `text` before the mark that ends an answer, which `ending` begins with."""
    mark = ending[:END_CHARACTERS]
    return text.partition(mark)[0] if mark and mark in text else ""
