"""Rewrites the messages and tools of a chat to what the schema takes. Pure.

Clients send back what they have got, and their libraries add to it: ids, cache marks, parsed copies, the reasoning by
other names. An answer may also have been cut anywhere. None of that says anything to the model, so none of it refuses a
request. A value that is of no use here is left as it is, and the schema refuses it by its path.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import to_json

MESSAGES_MAX: Final = 16_384
"""The largest number of messages. It is far more than anyone needs, and few enough to be checked in a tenth of a
second."""
NO_ARGUMENTS: Final = "{}"
"""The arguments of a call that has none, which some models and clients write as an empty text."""

MESSAGE_FIELDS: Final = frozenset({"role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content"})
MEANT_FOR_MODEL: Final = frozenset({"function_call", "audio", "images", "prefix", "partial"})
"""The fields of other dialects that would change the answer. They are refused unless they are empty or false."""
MARKS: Final = frozenset({"cache_control", "copilot_cache_control", "defer_loading", "provider_specific_fields", "id"})
"""The fields by which clients mark a tool, for a cache or for themselves."""
THINKING_PARTS: Final = ("thinking", "reasoning", "redacted_thinking")


def plain_messages(messages: object) -> object:
    """Returns `messages` without anything that says nothing to the model."""
    if not isinstance(messages, list) or len(messages) > MESSAGES_MAX:
        return messages
    return [_plain_message(each) if isinstance(each, dict) else each for each in messages]


def plain_tools(tools: object) -> object:
    """Returns `tools` without the marks of clients. Any other unknown field could be meant for the model."""
    if not isinstance(tools, list):
        return tools
    return [_plain_tool(each) if isinstance(each, dict) else each for each in tools]


def _plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    plain = _without_marks(tool)
    if isinstance(function := plain.get("function"), dict):
        plain["function"] = _without_marks(function)
    return plain


def _without_marks(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in MARKS and value is not None}


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if name in MESSAGE_FIELDS}
    plain |= {name: value for name, value in message.items() if name in MEANT_FOR_MODEL and value}
    if isinstance(plain.get("content"), list):
        plain["content"] = [_plain_part(each) for each in plain["content"] if not _is_thinking(each)]
    if message.get("role") == "assistant":
        _complete_answer(plain, message)
    elif message.get("role") == "tool":
        plain["content"] = plain.get("content") or ""
    return plain


def _complete_answer(plain: dict[str, Any], message: Mapping[str, Any]) -> None:
    """Fills in the fields of an earlier answer. It may have ended before its text, or have been a refusal."""
    refusal = message.get("refusal")
    plain["content"] = plain.get("content") or (refusal if isinstance(refusal, str) else "")
    plain["reasoning_content"] = _reasoning(message)
    if isinstance(calls := plain.get("tool_calls"), list):
        plain["tool_calls"] = [_plain_call(each) if isinstance(each, dict) else each for each in calls]


def _plain_part(part: object) -> object:
    if not isinstance(part, dict):
        return part
    if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    return {"type": "text", "text": part["text"]} if part.get("type") == "text" and "text" in part else part


def _is_thinking(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in THINKING_PARTS


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        arguments = _arguments(function.get("arguments"))
        function = {"name": _or_empty(function.get("name")), "arguments": arguments}
    return {"id": _or_empty(call.get("id")), "type": call.get("type") or "function", "function": function}


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _arguments(arguments: object) -> object:
    """Returns arguments as text. Some clients send the parsed object."""
    if arguments is None:
        return NO_ARGUMENTS
    return to_json(arguments).decode() if isinstance(arguments, dict) else arguments


def _reasoning(message: Mapping[str, Any]) -> str | None:
    """Returns the reasoning of an earlier answer, which has one name for each family of servers. A text comes before
    its structured form, because servers that send both say the same in both."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(text := message.get(name), str) and text:
            return text
    for name in ("reasoning_details", "thinking_blocks", "content"):
        blocks = message.get(name)
        texts = [_block_text(each) for each in blocks] if isinstance(blocks, list) else []
        if joined := "".join(texts):
            return joined
    return None


def _block_text(block: object) -> str:
    """Returns the text of one block of reasoning: OpenRouter's details, or Anthropic's thinking. Encrypted ones have
    none."""
    if not isinstance(block, dict):
        return ""
    is_detail = str(block.get("type")).startswith("reasoning.")
    texts = (block.get(name) for name in ("text", "summary")) if is_detail or _is_thinking(block) else ()
    return next((text for text in (block.get("thinking"), *texts) if isinstance(text, str)), "")
