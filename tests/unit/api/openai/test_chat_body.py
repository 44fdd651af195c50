"""Every parameter of /v1/chat/completions: what is taken, where it goes, and what is refused by which name."""

import json
from typing import Any

import pytest

from gateway.api.openai.parameter_rows import CHAT
from gateway.api.openai.schema import parse_chat
from gateway.domain.errors import BadRequest
from gateway.domain.inference import ChatMessage, Sampling

HELLO = [{"role": "user", "content": "hello"}]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "tiny", "messages": HELLO} | fields).encode()


def refusal(**fields: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body(**fields))
    return caught.value


def test_the_smallest_request_leaves_everything_to_the_backend() -> None:
    call = parse_chat(body())
    assert call.generation.model == "tiny"
    assert call.generation.prompt == (ChatMessage("user", "hello"),)
    assert call.generation.sampling == Sampling()
    assert (call.stream, call.include_usage, call.user) == (False, False, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, Sampling(temperature=0)),
        ({"temperature": 2}, Sampling(temperature=2)),
        ({"top_p": 0.5}, Sampling(top_p=0.5)),
        ({"top_k": 0}, Sampling(top_k=0)),
        ({"top_k": 40}, Sampling(top_k=40)),
        ({"min_p": 0.05}, Sampling(min_p=0.05)),
        ({"repeat_penalty": 1.1}, Sampling(repeat_penalty=1.1)),
        ({"presence_penalty": -2}, Sampling(presence_penalty=-2)),
        ({"frequency_penalty": 2}, Sampling(frequency_penalty=2)),
        ({"max_tokens": 1}, Sampling(max_tokens=1)),
        ({"max_completion_tokens": 2**31 - 1}, Sampling(max_tokens=2**31 - 1)),
        ({"max_tokens": 5, "max_completion_tokens": 5}, Sampling(max_tokens=5)),
        ({"max_tokens": None, "max_completion_tokens": 5}, Sampling(max_tokens=5)),
        ({"stop": "a"}, Sampling(stop=("a",))),
        ({"stop": ["a", "\n"]}, Sampling(stop=("a", "\n"))),
        ({"stop": ["x"] * 16}, Sampling(stop=("x",) * 16)),
        ({"stop": []}, Sampling()),
        ({"seed": 42}, Sampling(seed=42)),
        ({"seed": 2**31 - 1}, Sampling(seed=2**31 - 1)),
        ({"logit_bias": {}}, Sampling()),
        ({"logit_bias": {"5": -100, "70": 0.5}}, Sampling(logit_bias={5: -100.0, 70: 0.5})),
        ({"ignore_eos": True}, Sampling(ignore_end=True)),
        ({"n": 1}, Sampling()),
    ],
)
def test_a_sampling_parameter_reaches_the_backend(fields: dict[str, Any], expected: Sampling) -> None:
    assert parse_chat(body(**fields)).generation.sampling == expected


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)])
def test_any_seed_becomes_one_that_the_wire_takes_for_a_seed(seed: int) -> None:
    """0 would be "not set" and -1 "random" there."""
    mapped = parse_chat(body(seed=seed)).generation.sampling.seed
    assert mapped is not None
    assert 1 <= mapped < 2**31
    assert (mapped - seed) % (2**31 - 1) == 0


def test_null_means_not_set_for_every_optional_parameter() -> None:
    names = [*TAKEN_WHERE_WITHOUT_EFFECT, "stream", "stream_options", "user", "temperature", "top_p", "top_k", "min_p"]
    names += ["max_tokens", "max_completion_tokens", "stop", "seed", "n", "presence_penalty", "frequency_penalty"]
    names += ["logit_bias", "repeat_penalty", "ignore_eos", "safety_identifier", *WITHOUT_EFFECT]
    names += ["logprobs", "top_logprobs", "reasoning_effort"]
    names += ["response_format", "grammar", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"]
    assert parse_chat(body(**dict.fromkeys(names))) == parse_chat(body())


TAKEN_WHERE_WITHOUT_EFFECT: dict[str, tuple[Any, Any]] = {
    "functions": ([], [{"name": "f"}]),
    "function_call": ("none", "auto"),
    "modalities": (["text"], ["text", "audio"]),
    "web_search_options": (None, {}),
    "moderation": (None, {}),
}
"""Parameter -> a value that changes nothing, and one whose effect we lack."""

WITHOUT_EFFECT: dict[str, object] = {
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "audio": {"voice": "alloy", "format": "wav"},
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "keep_alive": "5m",
    "priority": 3,
    "num_ctx": 8192,
}
"""Parameter -> a value that asks for something besides the answer."""


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_says_nothing_to_the_model_is_taken(name: str) -> None:
    assert parse_chat(body(**{name: WITHOUT_EFFECT[name]})) == parse_chat(body())


@pytest.mark.parametrize("name", TAKEN_WHERE_WITHOUT_EFFECT)
def test_what_we_lack_is_taken_where_it_changes_nothing(name: str) -> None:
    assert parse_chat(body(**{name: TAKEN_WHERE_WITHOUT_EFFECT[name][0]})) == parse_chat(body())


@pytest.mark.parametrize("name", TAKEN_WHERE_WITHOUT_EFFECT)
def test_what_we_lack_is_refused_by_name(name: str) -> None:
    error = refusal(**{name: TAKEN_WHERE_WITHOUT_EFFECT[name][1]})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message == f"Parameter '{name}' is not supported by this gateway yet: {CHAT.reasons[name]}."


def test_a_parameter_nobody_knows_is_refused_by_name() -> None:
    error = refusal(temprature=1)
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert error.message == "Unrecognized request argument supplied: temprature"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": None}, "model", "expected a string, got null"),
        ({"model": ""}, "model", "must not be empty"),
        ({"model": "m" * 513}, "model", "at most 512 characters"),
        ({"model": ["tiny"]}, "model", "expected a string, got an array"),
        ({"stream": "true"}, "stream", "expected a boolean, got a string"),
        ({"stream": 1}, "stream", "expected a boolean, got an integer"),
        ({"user": 5}, "user", "expected a string, got an integer"),
        ({"temperature": 2.01}, "temperature", "must be at most 2, got 2.01"),
        ({"temperature": -0.1}, "temperature", "must be at least 0, got -0.1"),
        ({"temperature": "hot"}, "temperature", "expected a number, got a string"),
        ({"top_p": 1.1}, "top_p", "must be at most 1, got 1.1"),
        ({"top_p": -1}, "top_p", "must be at least 0, got -1"),
        ({"top_k": -2}, "top_k", "must be at least 0, got -2"),
        ({"top_k": 2**31}, "top_k", "must be at most 2147483647"),
        ({"min_p": 2}, "min_p", "must be at most 1, got 2"),
        ({"repeat_penalty": 0}, "repeat_penalty", "must be above 0, got 0"),
        ({"repeat_penalty": 11}, "repeat_penalty", "must be at most 10, got 11"),
        ({"presence_penalty": 2.5}, "presence_penalty", "must be at most 2, got 2.5"),
        ({"frequency_penalty": -3}, "frequency_penalty", "must be at least -2, got -3"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1, got 0"),
        ({"max_tokens": -5}, "max_tokens", "must be at least 1, got -5"),
        ({"max_tokens": 1.5}, "max_tokens", "expected an integer, got a number"),
        ({"max_tokens": "9"}, "max_tokens", "expected an integer, got a string"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "must be at least 1, got 0"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "two names of one limit"),
        ({"stop": 5}, "stop", "expected a string or an array of strings, got an integer"),
        ({"stop": ["a", None]}, "stop[1]", "expected a string, got null"),
        ({"stop": ["x"] * 17}, "stop", "must have at most 16 entries"),
        ({"seed": 2**63}, "seed", "must be at most 9223372036854775807"),
        ({"seed": -(2**63) - 1}, "seed", "must be at least -9223372036854775808"),
        ({"seed": 0.5}, "seed", "expected an integer, got a number"),
        ({"n": 129}, "n", "must be at most 128, got 129"),
        ({"top_logprobs": 1}, "top_logprobs", "only allowed when 'logprobs' is enabled"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "must be at most 20, got 21"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "must be 'none'"),
        ({"n": 0}, "n", "must be at least 1, got 0"),
        ({"logit_bias": []}, "logit_bias", "expected an object, got an array"),
        ({"logit_bias": [5]}, "logit_bias", "expected an object, got an array"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "does not name a token id"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "does not name a token id"),
        ({"logit_bias": {"": 1}}, "logit_bias.", "does not name a token id"),
        ({"logit_bias": {"٣": 1}}, "logit_bias.٣", "does not name a token id"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias.2147483648", "does not name a token id"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "expected a number, got a string"),
        ({"logit_bias": {"5": True}}, "logit_bias.5", "expected a number, got a boolean"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "must be from -100 to 100"),
        ({"logit_bias": {str(i): 0 for i in range(65_537)}}, "logit_bias", "at most 65536 entries"),
        ({"ignore_eos": "yes"}, "ignore_eos", "expected a boolean, got a string"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream' is enabled"),
        ({"stream": False, "stream_options": {}}, "stream_options", "only allowed when 'stream' is enabled"),
        ({"stream": True, "stream_options": True}, "stream_options", "expected an object, got a boolean"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "a boolean"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unrecognized request argument"),
    ],
)
def test_a_bad_value_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert message in error.message


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    fields = {"model": "tiny", "messages": HELLO}
    del fields[name]
    with pytest.raises(BadRequest, match=f"Missing required parameter: '{name}'") as caught:
        parse_chat(json.dumps(fields).encode())
    assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


def test_streaming_and_its_options() -> None:
    assert parse_chat(body(stream=True)).stream
    options = {"include_usage": True, "include_obfuscation": False}
    assert parse_chat(body(stream=True, stream_options=options)).include_usage
    assert not parse_chat(body(stream=True, stream_options={"include_usage": False})).include_usage


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False),
        ({"include_usage": True, "continuous_usage_stats": False}, False),
        ({"include_usage": True}, False),
        ({"continuous_usage_stats": True}, False),
    ],
)
def test_counts_in_each_chunk_are_possible_only_with_usage(options: dict[str, bool], counts: bool) -> None:
    assert parse_chat(body(stream=True, stream_options=options)).counts_in_each_chunk is counts


def test_the_user_has_two_names() -> None:
    assert parse_chat(body(user="ann")).user == "ann"
    assert parse_chat(body(safety_identifier="ann")).user == "ann"
    assert parse_chat(body(safety_identifier="new", user="old")).user == "old"


def test_roles_and_fields_of_messages() -> None:
    call = parse_chat(
        body(
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "system", "content": "Be kind.", "name": "rules"},
                {"role": "user", "content": ""},
                {"role": "assistant", "content": "Yes."},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            ]
        )
    )
    assert call.generation.prompt == (
        ChatMessage("system", "Be brief."),
        ChatMessage("system", "Be kind.", name="rules"),
        ChatMessage("user", ""),
        ChatMessage("assistant", "Yes."),
        ChatMessage("tool", "42", tool_call_id="call_1"),
    )


def test_text_parts_are_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]
    assert parse_chat(body(messages=[{"role": "user", "content": parts}])).generation.prompt == (
        ChatMessage("user", "first\nsecond"),
    )


def test_an_answer_of_ours_can_be_sent_back_whole() -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "hi", "reasoning_content": "hmm", "annotations": []}
    answer |= dict.fromkeys(["refusal", "audio", "tool_calls", "function_call"])
    expected = ChatMessage("assistant", "hi", reasoning="hmm")
    assert parse_chat(body(messages=[*HELLO, answer])).generation.prompt[1] == expected


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (None, "messages", "expected an array, got null"),
        ("hello", "messages", "expected an array, got a string"),
        ({}, "messages", "expected an array, got an object"),
        ([], "messages", "must not be empty"),
        (HELLO * 16_385, "messages", "at most 16384 entries"),
        (["hello"], "messages[0]", "expected an object, got a string"),
        ([*HELLO, {}], "messages[1].role", "Missing required parameter"),
        ([{"role": "user"}], "messages[0].content", "Missing required parameter"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "must be 'system', "),
        ([{"role": "function", "content": "x"}], "messages[0].role", 'got "function"'),
        ([{"role": 5, "content": "x"}], "messages[0].role", "got 5"),
        (
            [{"role": "user", "content": 5}],
            "messages[0].content",
            "Invalid type for 'messages[0].content': expected a string or an array of content parts, got an integer.",
        ),
        ([{"role": "user", "content": None}], "messages[0].content", "content parts, got null"),
        ([{"role": "user", "content": {}}], "messages[0].content", "content parts, got an object"),
        ([{"role": "user", "content": []}], "messages[0].content", "must not be empty"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "expected an object, got a string"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type", "Missing required parameter"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "Missing required"),
        ([{"role": "user", "content": [{"type": 1, "text": ""}]}], "messages[0].content[0].type", "got 1"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": 1}]}],
            "messages[0].content[1].text",
            "expected a string, got an integer",
        ),
        ([{"role": "user", "content": "x", "name": 1}], "messages[0].name", "expected a string, got an integer"),
        ([{"role": "user", "content": "x", "images": ["a"]}], "messages[0].images", "Unrecognized request argument"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "Missing required parameter"),
        ([{"role": "assistant", "content": "x", "audio": {"id": "a"}}], "messages[0].audio", "is not supported"),
    ],
)
def test_a_bad_message_is_refused_by_its_path(messages: object, param: str, message: str) -> None:
    error = refusal(messages=messages)
    assert (error.status, error.param) == (400, param)
    assert message in error.message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "refusal", "TEXT"])
def test_parts_that_are_no_text_are_refused_by_their_type(kind: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": kind, kind: {"url": "data:,"}}]
    error = refusal(messages=[*HELLO, {"role": "user", "content": parts}])
    assert (error.param, error.code) == ("messages[1].content[1].type", "unsupported_value")
    assert f"content parts of type '{kind}' are not supported" in error.message
