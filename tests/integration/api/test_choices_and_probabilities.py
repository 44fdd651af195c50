"""Several answers, several prompts, probabilities and counts, all the way: the official client and a real llama.cpp."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest

from tests.integration.harness import SCRIPTED, GatewayProcess, running_gateway

MODELS: Final = f"""
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
parallel = 2
"""
"""`tiny` has fewer slots than there are answers."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("choices"), MODELS) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with gateway.openai() as made:
        yield made


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **fields}


def test_three_answers_have_their_indices_and_one_usage(client: openai.OpenAI) -> None:
    asked = chat(n=3, seed=5, temperature=1.0)
    answer = client.chat.completions.create(**asked)
    one = client.chat.completions.create(**chat(seed=5, temperature=1.0))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.choices[0].message.content == one.choices[0].message.content
    assert answer.usage is not None
    assert one.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (one.usage.prompt_tokens, 24)
    again = client.chat.completions.create(**asked)
    assert [choice.message for choice in again.choices] == [choice.message for choice in answer.choices]


def test_three_streamed_answers_say_what_the_whole_ones_say(client: openai.OpenAI) -> None:
    asked = chat(n=3, seed=5, temperature=1.0)
    whole = client.chat.completions.create(**asked)
    texts: dict[int, str] = defaultdict(str)
    reasons: dict[int, str] = {}
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert [texts[index] for index in range(3)] == [choice.message.content for choice in whole.choices]
    assert reasons == dict.fromkeys(range(3), "length")
    assert last.choices == []
    assert whole.usage is not None
    assert last.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_several_answers_of_any_backend(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**chat(model="foreign", n=2))
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_several_prompts_are_answered_in_order(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    alone = [client.completions.create(prompt=prompt, **options) for prompt in ("the river", "a hill")]
    both = client.completions.create(prompt=["the river", "a hill"], n=2, **options)
    texts = [each.choices[0].text for each in alone]
    assert [choice.text for choice in both.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage is not None
    counts = [each.usage for each in alone if each.usage is not None]
    assert both.usage.prompt_tokens == sum(count.prompt_tokens for count in counts)
    assert both.usage.completion_tokens == 20


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_begin_with_its_prompt(client: openai.OpenAI, *, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["the river", "a hill"], "max_tokens": 3, "echo": True}
    texts: dict[int, str] = defaultdict(str)
    found = client.completions.create(**asked, stream=True) if stream else [client.completions.create(**asked)]
    for each in found:
        for choice in each.choices:
            texts[choice.index] += choice.text
    assert texts[0].startswith("the river")
    assert texts[1].startswith("a hill")


def test_a_prompt_of_token_ids_is_that_of_its_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    logprobs = client.completions.create(prompt=[1, 300, 301], logprobs=0, **options)
    (several,) = client.completions.create(prompt=[[1, 300, 301]], **options).choices
    assert several.text == logprobs.choices[0].text
    assert logprobs.usage is not None
    assert logprobs.usage.prompt_tokens == 3


@pytest.mark.parametrize("top", [None, 0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_an_answer_have_their_probabilities(
    client: openai.OpenAI, top: int | None, *, stream: bool
) -> None:
    asked = chat(model="demo", logprobs=True, temperature=0, **({} if top is None else {"top_logprobs": top}))
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
        text = "".join(choice.delta.content or "" for choice in chunks)
        entries = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content or ()]
    else:
        (choice,) = client.chat.completions.create(**asked).choices
        text = choice.message.content or ""
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
    assert "".join(entry.token for entry in entries) == text
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == text
    assert all(entry.logprob <= 0 for entry in entries)
    assert {len(entry.top_logprobs) for entry in entries} == {top or 0}
    for entry in entries if top else ():
        assert entry.top_logprobs[0].token == entry.token, "the most likely token is taken at temperature 0"
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1.0001


def test_a_completion_has_them_in_the_older_form(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "the river", "max_tokens": 4, "temperature": 0}
    (choice,) = client.completions.create(**options, logprobs=2).choices
    found = choice.logprobs
    assert found is not None
    assert "".join(found.tokens or ()) == choice.text
    assert len(found.token_logprobs or ()) == 4
    assert [len(each) for each in found.top_logprobs or ()] == [2, 2, 2, 2]
    assert [choice.text[at:] for at in found.text_offset or ()][-1] == (found.tokens or [""])[-1]
    offsets = [
        at
        for chunk in client.completions.create(**options, logprobs=2, stream=True)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for at in logprobs.text_offset or ()
    ]
    assert offsets == found.text_offset


def test_an_answer_in_a_form_has_them_too(client: openai.OpenAI) -> None:
    asked = chat(logprobs=True, extra_body={"grammar": 'root ::= "b" "c"'})
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    assert "".join(entry.token for entry in choice.logprobs.content or ()) == choice.message.content == "bc"


def test_a_turn_that_was_read_before_counts_as_cached(client: openai.OpenAI) -> None:
    asked = chat(model="demo", messages=[{"role": "user", "content": "What is a replica of a model?"}], temperature=0.7)
    for _ in range(2):
        answer = client.chat.completions.create(**asked)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 0
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage is not None
    assert last.usage.prompt_tokens_details is not None
    assert (last.usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_no_effort_means_no_reasoning(client: openai.OpenAI) -> None:
    puzzle = [{"role": "user", "content": "A replica has 8 slots and 3 leases. How many are free?"}]
    asked = chat(model="demo", messages=puzzle, max_tokens=200)
    thought = client.chat.completions.create(**asked).choices[0].message
    plain = client.chat.completions.create(**asked, reasoning_effort="none").choices[0].message
    assert (thought.model_extra or {}).get("reasoning_content")
    assert not (plain.model_extra or {}).get("reasoning_content")
    assert plain.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"chat_template_kwargs": {"no_such_thing": 1}}}, "chat_template_kwargs.no_such_thing"),
        ({"model": "foreign", "logprobs": True}, "logprobs"),
        ({"model": "foreign", "extra_body": {"chat_template_kwargs": {"x": 1}}}, "chat_template_kwargs"),
    ],
)
def test_what_a_backend_would_ignore_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat(**fields))
    assert caught.value.param == param


def test_a_foreign_backend_gets_no_token_ids(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="foreign", prompt=[1, 2])
    assert caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="foreign", input=[[1, 2]])
    assert caught.value.param == "input"
    assert json.loads(caught.value.response.text)["error"]["code"] == "unsupported_parameter"
