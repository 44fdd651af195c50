"""The official `openai` client, unchanged, against a real gateway with a real llama.cpp model."""

import asyncio
import json
import math
import struct
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.plain_asyncio import run_asyncio
from tests.integration.harness import (
    SCRIPTED,
    WAIT_SECONDS,
    GatewayProcess,
    RawClient,
    chat_request,
    running_gateway,
    together,
    wait_for,
)

HELLO: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "hello"}]
VECTOR_LENGTH: Final = 64
"""Of `tiny`."""
KEY: Final = "sk-right"

FAILING: Final = f"""
[auth]
api_keys = [{{ name = "client", key = "{KEY}", role = "admin" }}]
[routing]
queue_max = 1
{SCRIPTED.replace("scripted]", "silent]")}
env = {{ SCRIPT = '{{"hang_after_tokens": 0}}' }}
{SCRIPTED.replace("scripted]", "broken]")}
env = {{ SCRIPT = '{{"load_fails": "no such tensor"}}' }}
[[models]]
name = "silent"
backend = "silent"
[[models]]
name = "broken"
backend = "broken"
"""
"""A model that never answers, with one slot and one place in its queue, and a model that can't be loaded."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("openai")) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with gateway.openai() as made:
        yield made


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("failing"), FAILING) as process:
        yield process


def text_of(client: openai.OpenAI, **fields: Any) -> str:
    answer = client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 8, **fields})
    content: str = answer.choices[0].message.content
    return content


def counts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    """The counts that equal requests have in common. How much comes from a cache differs."""
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


# Chat


def test_a_chat_answer_is_whole_and_its_counts_are_true(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=7)
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model, choice.index) == ("chat.completion", "tiny", 0)
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    *middle, finish, usage = chunks
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == whole.choices[0].message.content
    assert {chunk.choices[0].finish_reason for chunk in middle} == {None}
    assert {chunk.usage for chunk in (*middle, finish)} == {None}
    assert finish.choices[0].finish_reason == "length"
    assert (usage.choices, counts(usage.usage)) == ([], counts(whole.usage))
    assert {(chunk.id, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, "tiny", "chat.completion.chunk")
    }


def test_a_stream_without_the_option_has_no_usage_chunk(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_max_completion_tokens_is_the_same_limit(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_temperature_zero_says_the_same_again(client: openai.OpenAI) -> None:
    assert len({text_of(client, temperature=0) for _ in range(3)}) == 1


def test_a_seed_says_the_same_again_and_another_says_something_else(client: openai.OpenAI) -> None:
    texts = [text_of(client, temperature=1.0, seed=seed, max_tokens=16) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_word_ends_the_answer_before_it(client: openai.OpenAI, *, as_list: bool) -> None:
    full = text_of(client, temperature=0, max_tokens=16)
    word = full[len(full) // 2 :][:3]
    stop = ["never said", word] if as_list else word
    answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=16, stop=stop)
    assert answer.choices[0].message.content == full[: full.index(word)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_forces_a_token(client: openai.OpenAI) -> None:
    free = text_of(client, temperature=0)
    forced = text_of(client, temperature=0, logit_bias={"65": 100})
    assert forced != free
    assert len(set(forced)) == 1, "one token, again and again"


def test_every_role_and_text_parts_reach_the_model(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}],
        },
        {"role": "assistant", "content": "Yes?"},
        {"role": "tool", "tool_call_id": "call-1", "content": "42"},
    ]
    prompts = []
    for count in range(1, len(messages) + 1):
        answer = client.chat.completions.create(model="tiny", messages=messages[:count], max_tokens=1)
        assert answer.usage is not None
        prompts.append(answer.usage.prompt_tokens)
    assert prompts == sorted(set(prompts)), "each message makes the prompt longer"


def test_a_conversation_goes_on_with_the_answer_as_it_came(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3)
    reply: Any = first.choices[0].message
    answer = client.chat.completions.create(model="tiny", messages=[*HELLO, reply, *HELLO], max_tokens=3)
    assert answer.choices[0].message.content


# Completions


def test_a_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "The sky", "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(**options)
    assert (whole.object, whole.choices[0].finish_reason) == ("text_completion", "length")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 9
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, counts(chunks[-1].usage)) == ([], counts(whole.usage))


def test_a_completion_has_sixteen_tokens_unless_asked(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="The sky", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


# Embeddings


def test_one_text_is_one_vector(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input="hello")
    (item,) = answer.data
    assert (item.index, item.object, len(item.embedding)) == (0, "embedding", VECTOR_LENGTH)
    assert math.isclose(math.hypot(*item.embedding), 1.0, rel_tol=1e-3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_many_texts_are_vectors_in_their_order(client: openai.OpenAI) -> None:
    words = [f"word{index}" for index in range(11)]
    answer = client.embeddings.create(model="tiny", input=words)
    assert [item.index for item in answer.data] == list(range(11))
    alone = [client.embeddings.create(model="tiny", input=word) for word in words]
    for item, single in zip(answer.data, alone, strict=True):
        assert item.embedding == pytest.approx(single.data[0].embedding, abs=1e-4)
    assert answer.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in alone)


def test_tokens_are_taken_as_they_are(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="tiny", input=[5, 6, 7])
    several = client.embeddings.create(model="tiny", input=[[5, 6, 7], [8, 9]])
    assert one.usage.prompt_tokens == 3
    assert several.usage.prompt_tokens == 5
    assert several.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-4)


def test_inputs_of_different_lengths_do_not_mix(client: openai.OpenAI) -> None:
    """They are worked on at the same time; the vector of one may not depend on the others."""
    inputs = [list(range(5, 5 + length)) for length in (3, 2, 4, 1, 7)]
    alone = [client.embeddings.create(model="tiny", input=tokens).data[0].embedding for tokens in inputs]
    for _ in range(10):
        answer = client.embeddings.create(model="tiny", input=inputs)
        for item, single in zip(answer.data, alone, strict=True):
            assert item.embedding == pytest.approx(single, abs=1e-4)


def test_both_encodings_are_the_same_numbers(client: openai.OpenAI) -> None:
    by_default = client.embeddings.create(model="tiny", input="hello").data[0].embedding
    floats = client.embeddings.create(model="tiny", input="hello", encoding_format="float").data[0].embedding
    text: Any = client.embeddings.create(model="tiny", input="hello", encoding_format="base64").data[0].embedding
    unpacked = struct.unpack(f"<{VECTOR_LENGTH}f", b64decode(text))
    assert by_default == pytest.approx(floats, abs=1e-6)
    assert by_default == pytest.approx(unpacked, abs=1e-6)


# Models


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["demo", "tiny"]
    for model in models:
        assert (model.object, model.owned_by) == ("model", "gateway")
        assert client.models.retrieve(model.id) == model


# Errors


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model(client: openai.OpenAI, *, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=HELLO, stream=stream)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"no_such_thing": 1}}, "no_such_thing"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ],
)
def test_a_bad_parameter_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        text_of(client, messages=[{"role": "user", "content": "hello " * 10_000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("key", ["wrong", "none"])
def test_a_wrong_key(failing: GatewayProcess, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        failing.openai(api_key=key).models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_full_queue(failing: GatewayProcess) -> None:
    request = chat_request("silent").replace(b"\r\n", f"\r\nauthorization: Bearer {KEY}\r\n".encode(), 1)
    with RawClient(failing) as served, RawClient(failing) as waiting:
        served.send(request)
        wait_for(lambda: state_of(failing, "silent")["in_flight"] == 1, "the first request to be served")
        waiting.send(request)
        wait_for(lambda: state_of(failing, "silent")["queued"] == 1, "the second request to wait")
        with pytest.raises(openai.RateLimitError) as caught:
            text_of(failing.openai(api_key=KEY), model="silent")
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    wait_for(lambda: state_of(failing, "silent")["in_flight"] == 0, "both to be gone")


def test_a_model_that_does_not_load(failing: GatewayProcess) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        text_of(failing.openai(api_key=KEY), model="broken")
    assert (caught.value.status_code, caught.value.code) == (503, "model_load_failed")
    assert "no such tensor" in caught.value.message
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_wait_leaves_nothing_behind(failing: GatewayProcess, *, stream: bool) -> None:
    with failing.openai(api_key=KEY, timeout=1.0) as hasty, pytest.raises(openai.APITimeoutError):
        text_of(hasty, model="silent", stream=stream)
    wait_for(lambda: state_of(failing, "silent")["in_flight"] == 0, "the lease to end")


def state_of(gateway: GatewayProcess, model: str) -> dict[str, Any]:
    document = httpx.get(
        f"{gateway.url}/api/status", headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS
    ).json()
    return next(entry for entry in document["models"] if entry["name"] == model)


# Other ways in


def test_the_raw_response_has_the_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "my-request"}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "my-request"
    assert raw.parse().id == "chatcmpl-my-request"


def test_the_streaming_response_can_be_read_as_lines(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=HELLO, max_tokens=2, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_a_stream_that_is_left_early_ends_at_the_backend(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_for(lambda: gateway.model()["in_flight"] == 0, "the lease to end")


def test_thirty_two_threads_at_once(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """More than there are slots: the rest wait, and nobody gets another one's answer."""

    def ask(index: int) -> tuple[str, str]:
        options: dict[str, Any] = {"temperature": 0, "messages": [{"role": "user", "content": f"word{index % 4}"}]}
        if index % 2:
            return f"word{index % 4}", text_of(client, **options)
        chunks = client.chat.completions.create(**{"model": "tiny", "max_tokens": 8, **options, "stream": True})
        return f"word{index % 4}", "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    answers = together(32, ask)
    assert len(answers) == 32
    assert len(set(answers)) == 4
    wait_for(lambda: gateway.model()["in_flight"] == 0, "all leases to end")


def test_the_asynchronous_client(gateway: GatewayProcess) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, stream=True)
            streamed = [chunk.choices[0].finish_reason async for chunk in stream]
            calls = [client.completions.create(model="tiny", prompt="hi", max_tokens=2) for _ in range(4)]
            whole = [answer.choices[0].finish_reason for answer in await asyncio.gather(*calls)]
            return [streamed[-1] or "", *whole]

    assert run_asyncio(ask()) == ["length"] * 5


Ask = Callable[[openai.OpenAI], object]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.moderations.create(input="x"),
        lambda client: client.responses.create(model="tiny", input="x"),
        lambda client: client.files.list(),
    ],
)
def test_what_is_not_there_is_not_found(client: openai.OpenAI, ask: Ask) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(client)
