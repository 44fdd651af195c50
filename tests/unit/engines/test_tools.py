"""What llama.cpp is told of tools, and which choices have to be said otherwise."""

import dataclasses
import json

import pytest
from grpclib.const import Status

from gateway.backends.metadata import ERROR_PARAM
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.sampling import SamplingLimits
from gateway.engines.llama_cpp.tools import earlier_calls, tools_body

LIMITS = SamplingLimits(context_tokens=1024, vocabulary_size=100)
F, G = ({"type": "function", "function": {"name": name}} for name in "fg")
BOTH = json.dumps([F, G])
NAMED_G = '{"type": "function", "function": {"name": "g"}}'


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("", {"tools": [F, G], "tool_choice": "auto"}),
        ("auto", {"tools": [F, G], "tool_choice": "auto"}),
        ('"required"', {"tools": [F, G], "tool_choice": "required"}),
        ("required", {"tools": [F, G], "tool_choice": "required"}),
        (NAMED_G, {"tools": [G], "tool_choice": "required"}),
        ("none", {}),
    ],
)
def test_each_choice(choice: str, expected: dict[str, object]) -> None:
    assert tools_body(BOTH, choice, LIMITS) == expected


@pytest.mark.parametrize(("tools", "choice"), [("", ""), ("[]", ""), ("", "auto"), ("[]", "none")])
def test_without_tools_there_is_nothing_to_say(tools: str, choice: str) -> None:
    assert tools_body(tools, choice, LIMITS) == {}


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("{", "", "tools"),
        ("{}", "", "tools"),
        ("[1]", "", "tools"),
        ("", "required", "tool_choice"),
        (json.dumps([F]), NAMED_G, "tool_choice"),
        (BOTH, "sometimes", "tool_choice"),
        (BOTH, "{}", "tool_choice"),
        (BOTH, "[]", "tool_choice"),
        (BOTH, '{"function": "g"}', "tool_choice"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(tools: str, choice: str, param: str) -> None:
    with pytest.raises(CallError) as caught:
        tools_body(tools, choice, LIMITS)
    assert (caught.value.status, caught.value.trailers) == (Status.INVALID_ARGUMENT, {ERROR_PARAM: param})


def test_a_model_whose_template_shows_no_tools_refuses_them() -> None:
    """Its answer would be that to the same question without them."""
    limits = dataclasses.replace(LIMITS, takes_tools=False)
    with pytest.raises(CallError, match="can't call tools") as caught:
        tools_body(BOTH, "", limits)
    assert caught.value.trailers == {ERROR_PARAM: "tools"}
    assert tools_body(BOTH, "none", limits) == {}


CUT = '{"city": "Par'
OF_TEXT = dataclasses.replace(LIMITS, parses_arguments=True)
OF_OBJECTS = dataclasses.replace(OF_TEXT, takes_text_arguments=False)


def arguments_after(arguments: object, limits: SamplingLimits) -> object:
    """What llama.cpp gets as the arguments of an earlier call."""
    (call,) = earlier_calls(json.dumps([{"function": {"name": "f", "arguments": arguments}}]), limits)
    return call["function"]["arguments"]


@pytest.mark.parametrize("arguments", ["", CUT, "[1]", '{"a": 1}', '{"a": NaN}'])
def test_arguments_that_llama_cpp_does_not_parse_stay_as_they_are(arguments: str) -> None:
    assert arguments_after(arguments, LIMITS) == arguments


@pytest.mark.parametrize(
    ("arguments", "of_text", "of_objects"),
    [
        ('{"a": 1}', '{"a": 1}', '{"a": 1}'),
        ({"a": 1}, {"a": 1}, {"a": 1}),
        ("{}", "{}", "{}"),
        ("", "{}", "{}"),
        (None, {}, {}),
        (CUT, json.dumps(CUT), "{}"),
        ("[1]", '"[1]"', "{}"),
        ("5", '"5"', "{}"),
        ('{"a": NaN}', json.dumps('{"a": NaN}'), "{}"),
        ('{"a": "\\ud800"}', json.dumps('{"a": "\\ud800"}'), "{}"),
        ("[" * 100_000, json.dumps("[" * 100_000), "{}"),
    ],
)
def test_arguments_that_are_no_object_are_a_text_or_empty(
    arguments: object, of_text: object, of_objects: object
) -> None:
    assert arguments_after(arguments, OF_TEXT) == of_text
    assert arguments_after(arguments, OF_OBJECTS) == of_objects


@pytest.mark.parametrize("text", ["{", "[{}, 1]", '[{"function": 1}]', "{}"])
def test_calls_that_are_none_are_left_to_the_template(text: str) -> None:
    if text == "{":
        with pytest.raises(CallError):
            earlier_calls(text, OF_TEXT)
    else:
        assert earlier_calls(text, OF_TEXT) == json.loads(text)
