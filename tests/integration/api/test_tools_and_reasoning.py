"""Tools and reasoning all the way: the official client, a real gateway, llama.cpp, and the `demo` model.

Exact words are asserted only of what the model's own documentation (demo_model/README.md) promises.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion import Choice

from demo_model.tools import KNOWN, documented
from tests.integration.harness import GatewayProcess, running_gateway

TOOLS: Final = [documented(name) for name in KNOWN]
WEATHER: Final = "What is the weather in Paris?"
PUZZLE: Final = "A replica has 8 slots and 3 leases. How many are free?"
NO_THINKING: Final = {"chat_template_kwargs": {"enable_thinking": False}}
TOKENS_MAX: Final = 200
"""Several times what any answer takes: a model that has lost its way is not waited for."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("tools")) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with gateway.openai() as made:
        yield made


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(client: openai.OpenAI, question: str = WEATHER, *, stream: bool = False, **fields: Any) -> Choice:
    """The only choice of the answer; a stream is put together as the client does it."""
    options: dict[str, Any] = {"model": "demo", "messages": [user(question)], "max_tokens": TOKENS_MAX, **fields}
    answer: ChatCompletion
    if stream:
        state = ChatCompletionStreamState()
        for chunk in client.chat.completions.create(**options, stream=True):
            state.handle_chunk(chunk)
        answer = state.get_final_completion()
    else:
        answer = client.chat.completions.create(**options)
    (choice,) = answer.choices
    return choice


def calls_of(choice: Choice) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of each call, with the rest of it checked."""
    calls: list[Any] = list(choice.message.tool_calls or ())
    assert all(call.type == "function" and call.id for call in calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def reasoning_of(choice: Choice) -> str:
    return (choice.message.model_extra or {}).get("reasoning_content") or ""


# Tools


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "name", "arguments"),
    [
        (WEATHER, "get_weather", {"city": "Paris"}),
        ("What time is it in London?", "get_time", {"city": "London"}),
        ("How many replicas does demo have?", "count_replicas", {"model": "demo"}),
    ],
)
def test_the_model_calls_a_tool(
    client: openai.OpenAI, question: str, name: str, arguments: dict[str, str], *, stream: bool
) -> None:
    choice = ask(client, question, stream=stream, tools=TOOLS)
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content in (None, "")
    assert calls_of(choice) == [(name, arguments)]


def test_a_streamed_call_is_named_first_and_its_arguments_follow(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": [user(WEATHER)], "tools": TOOLS, "stream": True}
    chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**options))
    opening, *middle, ending = chunks
    assert opening.choices[0].delta.role == "assistant"
    assert ending.choices[0].finish_reason == "tool_calls"
    deltas = [call for chunk in middle for call in chunk.choices[0].delta.tool_calls or ()]
    first, *others = deltas
    assert first.function is not None
    assert (first.index, first.type, first.function.name) == (0, "function", "get_weather")
    assert first.id
    assert others, "the arguments come in parts"
    assert all((call.index, call.id, call.type) == (0, None, None) for call in others)
    assert all(call.function is not None and call.function.name is None for call in others)


@pytest.mark.parametrize("stream", [False, True])
def test_the_result_of_a_call_leads_to_an_answer(client: openai.OpenAI, *, stream: bool) -> None:
    """The assistant's message goes back just as it came."""
    called = ask(client, tools=TOOLS).message
    assert called.tool_calls
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sunny"}
    choice = ask(client, stream=stream, messages=[user(WEATHER), called, result], tools=TOOLS)
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert calls_of(choice) == []


@pytest.mark.parametrize("stream", [False, True])
def test_no_tool_is_called_when_none_may_be(client: openai.OpenAI, *, stream: bool) -> None:
    choice = ask(client, stream=stream, tools=TOOLS, tool_choice="none")
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert "tool_call" not in choice.message.content
    assert calls_of(choice) == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_may_be_asked_for(client: openai.OpenAI, choice: Any) -> None:
    assert calls_of(ask(client, tools=TOOLS, tool_choice=choice)) == [("get_weather", {"city": "Paris"})]


def test_what_is_no_schema_is_the_tools_fault_and_nothing_breaks(client: openai.OpenAI) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "nonsense"}}}}
    with pytest.raises(openai.BadRequestError, match="unrecognized type nonsense") as caught:
        ask(client, tools=[{"type": "function", "function": function}])
    assert caught.value.param == "tools"
    assert ask(client, "hello").message.content


def test_the_long_list_of_tools_of_an_agent_is_taken(client: openai.OpenAI) -> None:
    described = "Changes a file of the workspace: gives the old text and the new one, and returns the difference. " * 3
    properties = {name: {"type": "string"} for name in ("path", "old_text", "new_text")}
    tools: list[Any] = [
        {
            "type": "function",
            "function": {
                "name": f"workspace_{number}",
                "description": described,
                "parameters": {"type": "object", "properties": properties, "required": ["path"]},
            },
        }
        for number in range(60)
    ]
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "hi"}], tools=tools, max_tokens=1
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10_000


def test_a_model_that_knows_no_tools_says_so_and_goes_on(gateway: GatewayProcess, client: openai.OpenAI) -> None:
    plain: dict[str, Any] = {"model": "tiny", "max_tokens": 4}
    assert ask(client, "hello", **plain).message.content
    pids = gateway.backend_pids()
    with pytest.raises(openai.BadRequestError, match="can't call tools") as caught:
        ask(client, "hello", tools=TOOLS, **plain)
    assert caught.value.param == "tools"
    assert ask(client, "hello", tools=TOOLS, tool_choice="none", **plain).message.content
    assert gateway.backend_pids() == pids


# Reasoning


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_apart_from_the_answer(client: openai.OpenAI, *, stream: bool) -> None:
    choice = ask(client, PUZZLE, stream=stream)
    assert choice.finish_reason == "stop"
    assert reasoning_of(choice).strip()
    assert choice.message.content
    assert "think>" not in choice.message.content + reasoning_of(choice)


def test_a_stream_thinks_what_the_whole_answer_thinks(client: openai.OpenAI) -> None:
    whole, streamed = (ask(client, PUZZLE, stream=stream) for stream in (False, True))
    assert reasoning_of(streamed) == reasoning_of(whole)
    assert streamed.message.content == whole.message.content


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_can_be_switched_off(client: openai.OpenAI, *, stream: bool) -> None:
    choice = ask(client, PUZZLE, stream=stream, extra_body=NO_THINKING)
    assert reasoning_of(choice) == ""
    assert choice.message.content


def test_a_raw_completion_has_the_text_as_the_model_wrote_it(client: openai.OpenAI) -> None:
    prompt = f"<|im_start|>user\n{PUZZLE}<|im_end|>\n<|im_start|>assistant\n"
    (choice,) = client.completions.create(model="demo", prompt=prompt, max_tokens=TOKENS_MAX).choices
    assert choice.text.startswith("<think>")
    assert "</think>" in choice.text


# The model's own settings


def test_the_demo_model_repeats_its_answer_by_default(client: openai.OpenAI) -> None:
    """Greedy by default, though the request sets no temperature: the file asks for it."""

    def texts(count: int, **fields: Any) -> set[str]:
        options: dict[str, Any] = {"model": "demo", "prompt": "The", "max_tokens": 20, **fields}
        made = [client.completions.create(**options, seed=seed) for seed in range(1, count + 1)]
        return {answer.choices[0].text for answer in made}

    assert len(texts(4)) == 1
    assert len(texts(4, temperature=2.0, extra_body={"min_p": 0, "top_k": 0})) > 1
