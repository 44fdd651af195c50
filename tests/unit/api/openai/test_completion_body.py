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


WITHOUT_EFFECT: dict[str, tuple[Any, Any]] = {
    "echo": (False, True),
    "suffix": ("", "The end."),
    "best_of": (1, 2),
    "logprobs": (None, 0),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_we_lack_is_taken_only_where_it_changes_nothing(name: str) -> None:
    taken, refused = WITHOUT_EFFECT[name]
    assert parse_completion(body(**{name: taken})) == parse_completion(body())
    assert parse_completion(body(**{name: None})) == parse_completion(body())
    with pytest.raises(BadRequest, match=f"Parameter '{name}' is not supported by this gateway yet.") as caught:
        parse_completion(body(**{name: refused}))
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "expected a string, got null"),
        ({"prompt": 5}, "prompt", "expected a string, got an integer"),
        ({"prompt": {}}, "prompt", "expected a string, got an object"),
        ({"prompt": [{}]}, "prompt", "expected a string"),
        ({"prompt": [None]}, "prompt", "expected a string"),
        ({"prompt": []}, "prompt", "must not be empty"),
        ({"prompt": ["a", "b"]}, "prompt", "several prompts in one request are not supported"),
        ({"prompt": [1, 2]}, "prompt", "token arrays are not supported"),
        ({"prompt": [[1, 2]]}, "prompt", "token arrays are not supported"),
        ({"messages": []}, "messages", "Unrecognized request argument supplied: messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "Unrecognized request argument"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1, got 0"),
        ({"n": 3}, "n", "n > 1 is not supported"),
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
