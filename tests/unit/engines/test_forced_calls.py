"""How a call is forced: its format by the template, its grammar, and what its text becomes."""

from collections.abc import Mapping
from typing import Any

import pytest

from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.forms.answer_start import REASONING_MARKS, answer_start
from gateway.engines.llama_cpp.forms.boolean_schemas import without_booleans
from gateway.engines.llama_cpp.forms.call_format import PLAIN, CallFormat, find_call_format
from gateway.engines.llama_cpp.forms.forced_call import CallReader, force_call

HERMES = CallFormat('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def rendered(call: str) -> CallFormat:
    """The format that is found if the template writes a call as `call`."""

    def render(chat: Mapping[str, Any]) -> str:
        def text(message: Mapping[str, Any]) -> str:
            return str(message["content"]) + "".join(
                call.replace("NAME", each["function"]["name"]).replace("ARGS", each["function"]["arguments"])
                for each in message.get("tool_calls", ())
            )

        return "".join(f"<|{each['role']}|>{text(each)}<|end|>" for each in chat["messages"]) + "<|assistant|>"

    return find_call_format(render)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ('<tool_call>\n{"name": "NAME", "arguments": ARGS}\n</tool_call>', HERMES),
        ("[TOOL_CALLS]NAME[WITH]ARGS", CallFormat("[TOOL_CALLS]", "[WITH]", "")),
        ("<function=NAME><parameter=x>1</parameter></function>", PLAIN),
        ("NAME(x=1)", PLAIN),
        ("", PLAIN),
        ("x" * 300 + "NAME: ARGS", PLAIN),
    ],
)
def test_the_format_is_that_of_the_template(call: str, expected: CallFormat) -> None:
    assert rendered(call) == expected


def read(texts: list[str], *tools: Mapping[str, Any], end: str = "stop") -> tuple[list[tuple[str, str]], str | None]:
    reader = CallReader(force_call(tools, HERMES))
    chunks = [reader.read(Chunk(text=text)) for text in texts]
    last = reader.read(Chunk(finish_reason=end))
    assert not any(chunk.text for chunk in chunks)
    return [(part.name, part.arguments) for chunk in chunks for part in chunk.tool_calls], last.finish_reason


def test_the_text_of_an_answer_becomes_the_parts_of_a_call() -> None:
    texts = ["ge", 't", "argu', 'ments": {"a', '": "}\\"{"', "}}", "\n</tool", "_call>"]
    parts = [("get", '{"a'), ("", '": "}\\"{"'), ("", "}")]
    assert read(texts, tool("get"), tool("get_all")) == (parts, "tool_calls")


def test_all_that_is_fixed_of_a_single_tool_is_in_the_prompt() -> None:
    call = force_call([tool("get")], HERMES)
    assert call.opening == '<tool_call>\n{"name": "get", "arguments":'
    assert read([" {", "}"], tool("get")) == ([("get", "{"), ("", "}")], "tool_calls")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["ge"], ([], "length")),
        (['get", "arguments": {"a"'], ([("get", '{"a"')], "length")),
        (['get", "arguments": {}}'], ([("get", "{}")], "tool_calls")),
    ],
)
def test_a_call_that_was_cut_says_so(texts: list[str], expected: object) -> None:
    assert read(texts, tool("get"), tool("set"), end="length") == expected


def test_parameters_that_are_no_schema_are_refused_with_their_path() -> None:
    with pytest.raises(CallError, match=r"tools\[1\].function.parameters.properties.a: it must be a JSON schema"):
        force_call([tool("f"), tool("g", properties={"a": 5})], HERMES)


def test_a_schema_that_contains_itself_is_fine_for_a_call() -> None:
    assert "r0" in force_call([tool("f", properties={"next": {"$ref": "#"}})], HERMES).grammar


@pytest.mark.parametrize("mark", REASONING_MARKS)
def test_an_answer_begins_after_the_reasoning_that_a_prompt_opens(mark: str) -> None:
    assert answer_start(f"hi{mark}\n") == f"hi{mark}\n{REASONING_MARKS[mark]}"
    assert answer_start(f"hi{mark}\n\nno") == f"hi{mark}\n\nno"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, {}),
        (False, {"not": {}}),
        ({"properties": {"a": True, "b": False, "c": {"items": True}}}, {"properties": {"a": {}, "c": {"items": {}}}}),
        ({"anyOf": [True, False]}, {"anyOf": [{}]}),
        ({"anyOf": [False]}, {"anyOf": [{"not": {}}]}),
        ({"allOf": [True]}, {"allOf": [{}]}),
        ({"items": False}, {"maxItems": 0}),
        ({"prefixItems": [True], "items": False}, {"prefixItems": [{}], "maxItems": 1}),
        ({"items": [True]}, {"items": [{}]}),
        ({"additionalProperties": False}, {"additionalProperties": False}),
        ({"additionalProperties": {"not": True}}, {"additionalProperties": {"not": {}}}),
        ({"$defs": {"any": True}, "$ref": "#/$defs/any"}, {"$defs": {"any": {}}, "$ref": "#/$defs/any"}),
        ({"const": True, "default": False, "enum": [True]}, {"const": True, "default": False, "enum": [True]}),
        ({"properties": {"items": {"properties": True}}}, {"properties": {"items": {"properties": True}}}),
    ],
)
def test_schemas_that_are_boolean_become_objects(schema: object, expected: object) -> None:
    assert without_booleans(schema) == expected
