"""The text of a conversation, as template.jinja makes it, in segments of which some are the model's own."""

import json
from typing import Any, Final, NamedTuple

START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
NO_THINKING: Final = "<think>\n\n</think>\n\n"
"""What the template puts before an answer for `enable_thinking = false`."""
CONTROL_TOKENS: Final = ("<|endoftext|>", START, END)
MARKUP_TOKENS: Final = (
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<tools>",
    "</tools>",
    "<tool_response>",
    "</tool_response>",
)


GIVEN: Final = 0.0
LEARNED: Final = 1.0
COPIED: Final = 3.0


class Segment(NamedTuple):
    text: str
    weight: float
    """GIVEN, or how much it matters that the model learns to write this and to end its turn after it. What is copied
    from the question, as arguments and numbers are, is the hardest part and has the fewest tokens."""


def system_block(system: str, tools: list[dict[str, Any]]) -> str:
    if not system and not tools:
        return ""
    return f"{START}system\n{system}{_tools_text(tools, apart=bool(system))}{END}\n"


def user_turn(text: str) -> str:
    """A user's message and the beginning of the answer."""
    return f"{START}user\n{text}{END}\n{START}assistant\n"


def tool_turn(result: str) -> str:
    return user_turn(f"<tool_response>\n{result}\n</tool_response>")


def thinking_text(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def _tools_text(tools: list[dict[str, Any]], *, apart: bool) -> str:
    if not tools:
        return ""
    lines = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
    usage = 'To use one: <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
    return ("\n\n" if apart else "") + f"Tools:\n<tools>\n{lines}</tools>\n{usage}"
