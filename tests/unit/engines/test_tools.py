"""What llama.cpp is told of tools, and which choices have to be said otherwise."""

import dataclasses
import json

import pytest
from grpclib.const import Status

from gateway.backends.metadata import ERROR_PARAM
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.sampling import SamplingLimits
from gateway.engines.llama_cpp.tools import tools_body

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
