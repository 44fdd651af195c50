"""Answers in a form that the client demands, all the way: the official client, a real gateway and llama.cpp."""

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final, Literal

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from demo_model.tools import KNOWN, documented
from tests.integration.harness import SCRIPTED, GatewayProcess, running_gateway

TOOLS: Final = [documented(name) for name in KNOWN]
QUESTION: Final = "A replica has 8 slots and 3 leases. How many are free?"
"""A question before whose answer the demo model thinks."""
FOREIGN: Final = f"""
{SCRIPTED}
[[models]]
name = "foreign"
backend = "scripted"
[[models]]
name = "demo"
backend = "llama-cpp"
artifact = "builtin:demo"
[[models]]
name = "tiny"
backend = "llama-cpp"
artifact = "builtin:tiny"
"""


class Kind(StrEnum):
    NODE = "node"
    REPLICA = "replica"


class Part(BaseModel):
    """Small enough to be complete however weak the model is."""

    kind: Kind
    size: int = Field(ge=0, le=99)
    share: float = Field(gt=0, le=1)
    state: Literal["ready"] | None


class Whole(BaseModel):
    parts: list[Part] = Field(min_length=1, max_length=2)
    is_complete: bool


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("structured"), FOREIGN) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with gateway.openai() as made:
        yield made


def options(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 400, **fields}


def in_schema(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_the_client_parses_an_answer_into_its_own_class(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(**options(model=model, response_format=Whole))
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Whole)


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_a_streamed_answer_is_parsed_as_well(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(**options(model=model, response_format=Whole)) as stream:
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Whole)


@pytest.mark.parametrize("thinking", [{}, {"chat_template_kwargs": {"enable_thinking": True}}])
def test_no_reasoning_comes_before_an_answer_in_a_form(client: openai.OpenAI, thinking: dict[str, Any]) -> None:
    answer = client.chat.completions.create(
        **options(response_format=in_schema({"const": {"a": 1}})), extra_body=thinking
    )
    message = answer.choices[0].message
    assert message.content == '{"a":1}'
    assert "reasoning_content" not in (message.model_extra or {})


@pytest.mark.parametrize("seed", range(3))
def test_any_object_is_an_object_or_cut(client: openai.OpenAI, seed: int) -> None:
    asked = options(model="tiny", response_format={"type": "json_object"}, seed=seed, temperature=1.0)
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.message.content
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_a_grammar(client: openai.OpenAI, *, stream: bool) -> None:
    asked = options(extra_body={"grammar": 'root ::= "yes" | "no"'})
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
    assert text in ("yes", "no")
    raw = client.completions.create(model="tiny", prompt="a", extra_body={"grammar": 'root ::= "b" "c"'})
    assert raw.choices[0].text == "bc"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"grammar": "root ::= nothing"}}, "grammar"),
        ({"response_format": in_schema({"items": {"$ref": "#/x"}})}, "response_format.json_schema.schema.items.$ref"),
        ({"response_format": in_schema({}), "tools": TOOLS}, "response_format"),
        ({"model": "foreign", "response_format": in_schema({})}, "response_format"),
        ({"model": "foreign", "extra_body": {"grammar": "x"}}, "grammar"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**options(**fields))
    assert caught.value.param == param
    assert param in caught.value.message


# Tool calls that are demanded


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("question", ["What is a replica?", "hello", "What is the weather in Paris?"])
def test_a_demanded_call_comes_whatever_the_question(client: openai.OpenAI, question: str, *, stream: bool) -> None:
    asked = options(messages=[{"role": "user", "content": question}], tools=TOOLS, tool_choice="required")
    answer: ChatCompletion
    if stream:
        with client.chat.completions.stream(**asked) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in KNOWN
    assert isinstance(json.loads(call.function.arguments), dict)


def test_a_named_function_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    for name in KNOWN:
        choice = {"type": "function", "function": {"name": name}}
        asked = options(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == name


def test_arguments_follow_their_schema(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}, "any": True}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {**parameters, "required": ["n"]}}}
    (call,) = (
        client.chat.completions.create(**options(tools=[tool], tool_choice="required")).choices[0].message.tool_calls
        or []
    )
    assert call.type == "function"
    assert 3 <= json.loads(call.function.arguments)["n"] <= 5


def test_a_call_that_the_limit_forbids_is_an_error_and_no_empty_answer(client: openai.OpenAI) -> None:
    asked = options(tools=TOOLS, tool_choice="required", max_tokens=1)
    with pytest.raises(openai.InternalServerError, match="limit of tokens") as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.status_code, caught.value.code) == (502, "backend_error")
    with pytest.raises(openai.APIError, match="limit of tokens"):
        list(client.chat.completions.create(**asked, stream=True))


def test_a_backend_that_makes_no_call_is_an_error_too(client: openai.OpenAI) -> None:
    asked = options(model="foreign", tools=TOOLS, tool_choice="required", max_tokens=5)
    with pytest.raises(openai.InternalServerError, match="demands a tool call"):
        client.chat.completions.create(**asked)


def test_a_schema_may_be_true_or_false_anywhere(client: openai.OpenAI) -> None:
    properties = {"city": {"type": "string"}, "extra": True, "never": False, "list": {"type": "array", "items": True}}
    parameters = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    (choice,) = client.chat.completions.create(**options(messages=weather, tools=[tool])).choices
    assert choice.finish_reason == "tool_calls"
    whole = in_schema({"type": "object", "properties": {"a": True, "b": False, "c": {"const": 1}}, "required": ["c"]})
    answer = client.chat.completions.create(**options(response_format=whole)).choices[0]
    assert answer.finish_reason in ("stop", "length")
