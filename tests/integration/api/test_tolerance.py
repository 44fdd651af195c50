"""What clients send back and what they add, all the way: the official client, a real gateway, llama.cpp, `demo`."""

from collections.abc import Iterator
from typing import Any, Final, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from demo_model.tools import KNOWN, documented
from tests.integration.harness import GatewayProcess, running_gateway

CONFIG: Final = """
[server]
unknown_parameters = "ignore"
[[models]]
name = "demo"
backend = "llama-cpp"
artifact = "builtin:demo"
context_size = 1024
"""
TOOLS: Final = [{**documented(name), "cache_control": {"type": "ephemeral"}} for name in KNOWN]
QUESTION: Final = {"role": "user", "content": "What is the weather in Paris?"}
THANKS: Final = {"role": "user", "content": "Thank you."}
PUZZLE: Final = {"role": "user", "content": "A replica has 8 slots and 3 leases. How many are free?"}
TOKENS_MAX: Final = 64
LONG: Final[dict[str, Any]] = {"max_tokens": 1000}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("tolerance"), CONFIG) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with gateway.openai() as made:
        yield made


@pytest.fixture(scope="module")
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as made:
        yield made


def ask(client: openai.OpenAI, *messages: object, **fields: Any) -> Any:
    """The message of the answer to these messages."""
    options: dict[str, Any] = {"model": "demo", "messages": messages, "max_tokens": TOKENS_MAX, **fields}
    return client.chat.completions.create(**options).choices[0].message


@pytest.mark.parametrize("tokens", [10, 13, 16, 17, 18, 20])
def test_a_tool_call_that_was_cut_short_can_be_sent_back(client: openai.OpenAI, tokens: int) -> None:
    own = ask(client, QUESTION, tools=TOOLS, tool_choice="required", max_tokens=tokens)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "The call was cut short."} for call in own.tool_calls or ()
    ]
    assert ask(client, QUESTION, own, *results, tools=TOOLS).role == "assistant"


CALLING: Final = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"ci'}}],
}
BEGUN: Final = {"role": "assistant", "content": "A replica is"}


@pytest.mark.parametrize("tools", [TOOLS, []])
@pytest.mark.parametrize(
    "history",
    [
        [CALLING],
        [CALLING, CALLING],
        [BEGUN, CALLING],
        [CALLING, BEGUN],
        [BEGUN, BEGUN],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "reasoning_content": "It is"}],
        [CALLING, QUESTION],
    ],
)
def test_an_answer_may_be_the_last_message(
    client: openai.OpenAI, history: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    assert ask(client, QUESTION, *history, tools=tools, max_tokens=4).role == "assistant"


def test_an_answer_that_was_begun_is_continued(client: openai.OpenAI) -> None:
    question = {"role": "user", "content": "What is a replica?"}
    whole = ask(client, question, temperature=0).content
    assert ask(client, question, BEGUN, temperature=0).content == whole.removeprefix(BEGUN["content"])


def test_what_the_stream_helper_returns_can_be_sent_back(client: openai.OpenAI) -> None:
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in map(documented, KNOWN)]
    options: dict[str, Any] = {"model": "demo", "messages": [QUESTION], "tools": strict, "max_tokens": TOKENS_MAX}
    with client.chat.completions.stream(**options) as stream:
        own = stream.get_final_completion().choices[0].message
    assert own.tool_calls
    sent = own.model_dump()
    assert {"parsed", "refusal"} <= sent.keys()
    assert "parsed_arguments" in sent["tool_calls"][0]["function"]
    result = {"role": "tool", "tool_call_id": own.tool_calls[0].id, "content": "sunny"}
    for message in (own, sent):
        assert ask(client, QUESTION, message, result, tools=strict).content


class Place(BaseModel):
    """What the model has to answer with."""

    city: Literal["Paris", "London"]


def test_what_the_parse_helper_returns_can_be_sent_back(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": [QUESTION], "max_tokens": TOKENS_MAX}
    own = client.chat.completions.parse(response_format=Place, **options).choices[0].message
    assert own.parsed
    sent = own.model_dump(warnings=False)  # the client's type does not know the class of `parsed`
    assert sent["parsed"].keys() == {"city"}
    assert ask(client, QUESTION, sent, THANKS).content


def test_reasoning_that_is_sent_back_is_part_of_the_prompt(client: openai.OpenAI) -> None:
    own = ask(client, PUZZLE)
    assert own.reasoning_content
    lengths = []
    for message in (own, {"role": "assistant", "content": own.content}):
        options: dict[str, Any] = {"model": "demo", "messages": [PUZZLE, message, THANKS], "max_tokens": 1}
        answer: Any = client.chat.completions.create(**options)
        lengths.append(answer.usage.prompt_tokens)
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("limit", [{"max_tokens": 10**9}, {"max_tokens": -1}, {"max_completion_tokens": 1025}])
def test_a_limit_above_the_context_is_an_upper_bound(client: openai.OpenAI, limit: dict[str, Any]) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    answers: list[Any] = [client.chat.completions.create(**options, **each) for each in (limit, LONG)]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert {answer.choices[0].finish_reason for answer in answers} == {"stop"}


def test_each_chunk_of_a_stream_may_carry_the_counts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": [QUESTION], "max_tokens": 6, "stream": True}
    options["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    opening, *chunks = client.chat.completions.create(**options)
    assert opening.usage is None
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 6


def test_what_is_ignored_is_named_in_a_header(http: httpx.Client) -> None:
    body = {"model": "demo", "messages": [QUESTION], "max_tokens": 1, "store": True, "keep_alive": "5m"}
    assert "x-gateway-ignored-parameters" not in http.post("/v1/chat/completions", json=body).headers
    odd = {"mirostat": 2, "a,b\r\nc": 1, "é" * 100: 1}
    for stream in (False, True):
        response = http.post("/v1/chat/completions", json={**body, **odd, "stream": stream})
        assert response.status_code == 200
        assert response.headers["x-gateway-ignored-parameters"] == f"mirostat, a%2Cb%0D%0Ac, {'%C3%A9' * 64}"
    refused = http.post("/v1/chat/completions", json={**body, "web_search_options": {}, "typo": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "web_search_options")
