"""Finds where an answer begins after a prompt that a chat template has made, for models that would think first. Pure.

An answer with a grammar begins with its first token, without reasoning. Thinking is switched off for it, but not every
template can do that: some end their prompt with the mark that opens the reasoning.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

REASONING_MARKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "<think>": "</think>\n\n",
        "<thinking>": "</thinking>\n\n",
        "<seed:think>": "</seed:think>",
        "[THINK]": "[/THINK]",
        "<|START_THINKING|>": "<|END_THINKING|><|START_RESPONSE|>",
        "<|start|>assistant": "<|channel|>final<|message|>",
    }
)
"""The ends of prompts after which a model reasons, with the text after which it answers."""


def answer_start(prompt: str) -> str:
    """Returns the prompt of a chat, up to where the answer itself begins."""
    end = prompt.rstrip()
    closing = next((closing for mark, closing in REASONING_MARKS.items() if end.endswith(mark)), None)
    return prompt if closing is None else prompt + closing
