"""Forces an answer to be a call of one of the offered tools, from its first token on. Pure.

llama.cpp's own `tool_choice: "required"` lets free text come first, with which a weak model fills its context. So here
the template writes the prompt, the beginning of the call is added to it, and a grammar admits nothing but the name of a
tool and its arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.errors import invalid
from gateway.engines.llama_cpp.forms.call_format import CallFormat
from gateway.json_grammar.errors import SchemaError
from gateway.json_grammar.text import literal
from gateway.json_grammar.writer import GrammarWriter


@dataclass(frozen=True)
class ForcedCall:
    """The parts that make an answer a call."""

    opening: str
    """The part of the call that is added to the prompt: as much of it as all offered tools have in common."""
    heads: Mapping[str, str]
    """The texts between the opening and the arguments, with the name of the tool that each stands for."""
    grammar: str
    """The grammar of the answer: a head, its tool's arguments, and the end of the call."""


def force_call(tools: Sequence[Mapping[str, Any]], call_format: CallFormat) -> ForcedCall:
    """Returns the call that an answer has to be. Raises `CallError` for parameters that are no schema."""
    names = [tool["function"]["name"] for tool in tools]
    texts = [f"{call_format.before_name}{name}{call_format.before_arguments}" for name in names]
    opening = (texts[0] if len(texts) == 1 else call_format.before_name).rstrip()
    heads = [text.removeprefix(opening) for text in texts]
    writer = GrammarWriter(is_lenient=True)
    rules = [_arguments_rule(writer, index, tool) for index, tool in enumerate(tools)]
    end = literal(call_format.after_arguments)
    root = " | ".join(f"{literal(head)} {rule} {end}" for head, rule in zip(heads, rules, strict=True))
    return ForcedCall(opening, dict(zip(heads, names, strict=True)), writer.text(root))


def _arguments_rule(writer: GrammarWriter, index: int, tool: Mapping[str, Any]) -> str:
    schema = tool["function"].get("parameters", {})
    if isinstance(schema, dict) and not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"}:
        schema = {**schema, "type": "object"}
    try:
        return writer.add(schema)
    except SchemaError as error:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.path)
        raise invalid(f"tools[{index}].function.parameters{steps}: it {error.message}", param="tools") from error


class CallReader:
    """Turns the text of an answer that is a call into parts of that call."""

    def __init__(self, call: ForcedCall) -> None:
        self._heads = call.heads
        self._held = ""
        """The text before the arguments, as far as it has come."""
        self._is_named = False
        self._end = ObjectEnd()

    def read(self, chunk: Chunk) -> Chunk:
        """Returns the chunk with its text as a part of the call. A complete call ends for its own reason."""
        parts = self._parts(chunk.text)
        reason = "tool_calls" if chunk.finish_reason and self._end.is_reached else chunk.finish_reason
        return replace(chunk, text="", tool_calls=parts, finish_reason=reason)

    def _parts(self, text: str) -> tuple[pb.ToolCallDelta, ...]:
        if self._is_named:
            arguments = self._end.take(text)
            return (pb.ToolCallDelta(index=0, arguments=arguments),) if arguments else ()
        self._held += text
        head = max((head for head in self._heads if self._held.startswith(head)), key=len, default=None)
        if head is None or not text:
            return ()
        self._is_named = True
        arguments = self._end.take(self._held.removeprefix(head))
        return (pb.ToolCallDelta(index=0, name=self._heads[head], arguments=arguments),)


class ObjectEnd:
    """Finds the end of a JSON object that comes in parts."""

    def __init__(self) -> None:
        self.is_reached = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def take(self, text: str) -> str:
        """Returns the part of `text` that belongs to the object."""
        for index, character in enumerate(text):
            if self.is_reached:
                return text[:index]
            self._step(character)
        return text

    def _step(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._is_escaped or character != '"'
            self._is_escaped = character == "\\" and not self._is_escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_reached = self._depth == 0
