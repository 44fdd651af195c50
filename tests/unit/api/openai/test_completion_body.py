"""What /v1/completions has of its own; the parameters it shares with chat are tested there."""

import json
from typing import Any

import pytest

from gateway.api.openai.schema import parse_completion
from gateway.domain.errors import BadRequest
from gateway.domain.inference import Generation, Sampling


def body(**fields: object) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "Once"} | fields).encode()


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
def test_one_prompt_in_both_spellings(prompt: str | list[str]) -> None:
    call = parse_completion(body(prompt=prompt))
    assert call.generation == Generation(call.generation.model, "Once", Sampling(max_tokens=16))
    assert (call.stream, call.include_usage, call.user) == (False, False, None)


def test_shared_parameters_are_honoured() -> None:
    call = parse_completion(body(max_tokens=3, stop="x", seed=7, stream=True, stream_options={"include_usage": True}))
    assert call.generation.sampling == Sampling(max_tokens=3, stop=("x",), seed=7)
    assert (call.stream, call.include_usage) == (True, True)


@pytest.mark.parametrize("name", ["echo", "best_of", "logprobs", "suffix", "n"])
def test_null_and_the_default_change_nothing(name: str) -> None:
    default = {"echo": False, "best_of": 1, "logprobs": None, "suffix": "", "n": 1}[name]
    assert parse_completion(body(**{name: default})) == parse_completion(body())
    assert parse_completion(body(**{name: None})) == parse_completion(body())


def test_each_prompt_has_the_suffix() -> None:
    generations = parse_completion(body(prompt=["a", [7]], suffix="The end.")).generations
    assert [generation.suffix for generation in generations] == ["The end.", "The end."]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        (["a", ""], ["a", ""]),
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["a", [7]], ["a", (7,)]),
    ],
)
def test_each_prompt_is_a_generation(prompt: object, prompts: list[object]) -> None:
    generations = parse_completion(body(prompt=prompt)).generations
    assert [generation.tokens or generation.prompt for generation in generations] == prompts


def test_each_answer_to_a_prompt_has_a_seed_of_its_own() -> None:
    call = parse_completion(body(prompt=["a", "b"], n=2, best_of=2, seed=7, echo=True))
    asked = [(generation.prompt, generation.sampling.seed) for generation in call.generations]
    assert asked == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert (call.copies, call.echo, list(call.echoes())) == (2, True, ["a", "a", "b", "b"])
    assert {generation.sampling.seed for generation in parse_completion(body(n=3)).generations} == {None}


def test_probabilities_of_as_many_alternatives_as_are_asked_for() -> None:
    assert [parse_completion(body(logprobs=count)).generation.logprobs for count in (None, 0, 5)] == [None, 0, 5]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "expected a string, an array of strings or an array of token ids, got null"),
        ({"prompt": 5}, "prompt", "or an array of token ids, got an integer"),
        ({"prompt": [{}]}, "prompt[0]", "expected a string or an array of token ids, got an object"),
        ({"prompt": ["a", None]}, "prompt[1]", "expected a string or an array of token ids, got null"),
        ({"prompt": []}, "prompt", "must have 1 to"),
        ({"prompt": [1, "a"]}, "prompt[1]", "expected a token id"),
        ({"prompt": [[-1]]}, "prompt[0][0]", "must be a token id from 0"),
        ({"prompt": ["a"] * 129}, "prompt", "must have 1 to 128 entries"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "'n' times the number of prompts must be at most 128"),
        ({"best_of": 2}, "best_of", "only the value of 'n' is supported"),
        ({"best_of": 2, "n": 3}, "best_of", "only the value of 'n' is supported"),
        ({"echo": True, "logprobs": 1}, "echo", "can't be combined with 'logprobs'"),
        ({"echo": True, "prompt": [1]}, "echo", "can't be combined with a prompt of token ids"),
        ({"logprobs": 21}, "logprobs", "must be at most 20, got 21"),
        ({"messages": []}, "messages", "Unrecognized request argument supplied: messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "Unrecognized request argument"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1, got 0"),
        ({"stream_options": {}}, "stream_options", "only allowed when 'stream' is enabled"),
    ],
)
def test_a_bad_value_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_completion(body(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(BadRequest, match="Missing required parameter: 'prompt'"):
        parse_completion(b'{"model": "tiny"}')
