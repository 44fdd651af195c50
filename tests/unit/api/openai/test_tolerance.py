"""Names and values of other servers: what they mean here, and which are refused or dropped."""

import json
from typing import Any

import pytest

from gateway.api.openai.schema import ChatCall, parse_chat, parse_completion, parse_embeddings
from gateway.domain.errors import BadRequest
from gateway.domain.inference import INT32_MAX, Sampling


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def sampling(**fields: object) -> Sampling:
    return parse_chat(body(**fields)).generation.sampling


def refusal(**fields: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body(**fields))
    return caught.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": -1}, Sampling()),
        ({"max_completion_tokens": -1}, Sampling()),
        ({"max_tokens": 10**30}, Sampling(max_tokens=INT32_MAX)),
        ({"max_tokens": -1, "max_completion_tokens": 5}, Sampling(max_tokens=5)),
        ({"num_predict": 5}, Sampling(max_tokens=5)),
        ({"num_predict": -2}, Sampling()),
        ({"n_predict": -1}, Sampling()),
        ({"n_predict": 5, "max_tokens": 5}, Sampling(max_tokens=5)),
        ({"num_predict": 5, "max_completion_tokens": 5, "max_tokens": None}, Sampling(max_tokens=5)),
        ({"max_new_tokens": 5}, Sampling(max_tokens=5)),
        ({"repetition_penalty": 1.1}, Sampling(repeat_penalty=1.1)),
        ({"repetition_penalty": 1, "repeat_penalty": 1.0}, Sampling(repeat_penalty=1)),
        ({"repetition_penalty": None, "repeat_penalty": 1.5}, Sampling(repeat_penalty=1.5)),
        ({"top_k": -1}, Sampling(top_k=0)),
        ({"stop": ""}, Sampling()),
        ({"stop": [""]}, Sampling()),
        ({"stop": ["", "a"]}, Sampling(stop=("a",))),
        ({"logit_bias": [[5, 1.5], [6, False]]}, Sampling(logit_bias={5: 1.5, 6: -100.0})),
        ({"options": {"num_predict": 5, "temperature": 0, "num_ctx": 4096}}, Sampling(max_tokens=5, temperature=0)),
        ({"options": {"top_k": -1}, "top_p": 0.5}, Sampling(top_k=0, top_p=0.5)),
        ({"options": {"temperature": 1}, "temperature": 1}, Sampling(temperature=1)),
        ({"options": {"mirostat": 0, "seed": 4}}, Sampling(seed=4)),
        ({"options": {}}, Sampling()),
        ({"options": None}, Sampling()),
        ({"typo": None, "options": {"typo": None}}, Sampling()),
        ({"tools": [{"type": "function", "strict": None, "function": {"name": "f", "returns": None}}]}, Sampling()),
        ({"typical_p": 1.0, "mirostat": 0, "min_tokens": 0, "repeat_last_n": 64}, Sampling()),
        ({"mirostat_tau": 5.0, "dry_base": 1.75, "use_beam_search": False, "best_of": 1}, Sampling()),
    ],
)
def test_a_parameter_of_other_servers_has_its_equal_here(fields: dict[str, Any], expected: Sampling) -> None:
    assert sampling(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"think": True}, True),
        ({"think": False}, False),
        ({"enable_thinking": False}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, True),
        ({"think": False, "chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"think": False, "chat_template_kwargs": {}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "store": True, "think": True}, True),
    ],
)
def test_thinking_has_many_names(fields: dict[str, Any], thinks: bool) -> None:
    assert parse_chat(body(**fields)).generation.thinking is thinks


@pytest.mark.parametrize(
    ("fields", "param", "other"),
    [
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repetition_penalty", "repeat_penalty"),
        ({"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repeat_penalty", "repetition_penalty"),
        ({"num_predict": 1, "max_tokens": 2}, "max_tokens", "num_predict"),
        ({"num_predict": 1, "n_predict": 2}, "n_predict", "num_predict"),
        ({"temperature": 0, "options": {"temperature": 1}}, "options.temperature", "temperature"),
        ({"think": True, "enable_thinking": False}, "enable_thinking", "think"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "think": False},
            "think",
            "chat_template_kwargs.enable_thinking",
        ),
    ],
)
def test_two_names_of_one_parameter_may_not_differ(fields: dict[str, Any], param: str, other: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param, error.code) == (400, param, "invalid_value")
    assert error.message == f"'{other}' and '{param}' are two names of one parameter and differ; set one."


def test_the_limit_has_two_names_of_ours_and_more_of_other_servers() -> None:
    error = refusal(num_predict=1, max_completion_tokens=2)
    assert (error.param, error.code) == ("num_predict", "invalid_value")
    assert error.message == "'num_predict' and 'max_completion_tokens' are two names of one limit and differ; set one."


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"num_predict": "x"}, "num_predict", "Invalid type for 'num_predict': expected an integer, got a string."),
        ({"n_predict": 0}, "n_predict", "Invalid value for 'n_predict': must be at least 1, got 0."),
        ({"repetition_penalty": 0}, "repetition_penalty", "Invalid value for 'repetition_penalty': must be above 0"),
        ({"think": "high"}, "think", "Invalid type for 'think': expected a boolean, got a string."),
        ({"options": 5}, "options", "Invalid type for 'options': expected an object, got an integer."),
        ({"options": {"top_p": 2}}, "options.top_p", "Invalid value for 'options.top_p': must be at most 1"),
        ({"options": {"typo": 2}}, "options.typo", "Unrecognized request argument supplied: options.typo"),
        ({"options": {"messages": []}}, "options.messages", "Unrecognized request argument"),
        ({"options": {"tfs_z": 2}}, "options.tfs_z", "Parameter 'options.tfs_z' is not supported by this gateway yet:"),
        ({"mirostat": 2}, "mirostat", "Parameter 'mirostat' is not supported by this gateway yet: the sampler has no"),
        ({"best_of": 2}, "best_of", "Parameter 'best_of' is not supported"),
        ({"typo": 1, "store": True, "num_predict": 4}, "typo", "Unrecognized request argument supplied: typo"),
    ],
)
def test_an_error_has_the_name_that_the_client_used(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(message)


def ignoring(**fields: object) -> ChatCall:
    return parse_chat(body(**fields), ignore_unknown=True)


def test_what_nobody_knows_may_be_ignored_and_is_named() -> None:
    fields: dict[str, Any] = {"typo": 1, "mirostat": 2, "tfs_z": 1, "num_predict": 4, "options": {"typo": 1}}
    fields |= {"stream": True, "stream_options": {"include_usage": True, "typo": 1}}
    call = ignoring(**fields)
    assert call.generation == parse_chat(body(max_tokens=4)).generation
    assert call.include_usage
    assert call.ignored == ("typo", "mirostat", "options.typo", "stream_options.typo")
    assert ignoring(temperature=1).ignored == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ["audio"]},
        {"logprobs": "yes"},
        {"web_search_options": {}},
        {"n": 0},
        {"temperature": "hot"},
        {"messages": [{"role": "user", "content": "x", "images": ["x"]}]},
    ],
)
def test_what_asks_for_another_answer_is_refused_in_any_case(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        ignoring(**fields, typo=1)
    assert (caught.value.param or "").startswith(next(iter(fields)))


ITEM: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ITEM_FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "item", "schema": ITEM}}


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"guided_json": ITEM}, ITEM_FORMAT),
        ({"guided_json": json.dumps(ITEM)}, ITEM_FORMAT),
        ({"json_schema": ITEM}, ITEM_FORMAT),
        ({"format": ITEM}, ITEM_FORMAT),
        ({"format": "json"}, {"type": "json_object"}),
        ({"format": ""}, None),
        ({"structured_outputs": {"json": ITEM}}, ITEM_FORMAT),
        ({"structured_outputs": {"json": ITEM, "regex": None, "disable_any_whitespace": True}}, ITEM_FORMAT),
        ({"structured_outputs": {"json_object": True}}, {"type": "json_object"}),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": None}, None),
        ({"response_format": {"type": "json_object", "schema": ITEM}}, ITEM_FORMAT),
    ],
)
def test_the_form_of_an_answer_has_many_names(fields: dict[str, Any], same: dict[str, Any] | None) -> None:
    assert parse_chat(body(**fields)).generation == parse_chat(body(response_format=same)).generation


def test_a_choice_is_a_grammar() -> None:
    for fields in ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}):
        assert parse_chat(body(**fields)).generation.grammar == 'root ::= ( "a" | "b" )'
    prompt = json.dumps({"model": "m", "prompt": "x", "structured_outputs": {"choice": ["a", "b"]}}).encode()
    assert parse_completion(prompt).generation.grammar == 'root ::= ( "a" | "b" )'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"guided_json": {"type": "object", "properties": {"a": {"pattern": "x"}}}},
            "guided_json.properties.a.pattern",
        ),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json.not"),
        ({"structured_outputs": {"regex": "x"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"typo": "x"}}, "structured_outputs.typo"),
        ({"guided_json": ITEM, "response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": ITEM, "structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_json": ITEM, "tools": [{"type": "function", "function": {"name": "f"}}]}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
    ],
)
def test_a_form_that_is_refused_has_the_name_that_the_client_used(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message or error.code == "unknown_parameter"


def test_completions_and_embeddings_are_as_tolerant() -> None:
    completion = json.dumps({"model": "m", "prompt": "x", "n_predict": 4, "typo": 1, "suffix": ""}).encode()
    call = parse_completion(completion, ignore_unknown=True)
    assert (call.generation.sampling, call.ignored) == (Sampling(max_tokens=4), ("typo",))
    with pytest.raises(BadRequest, match="typo"):
        parse_completion(completion)
    embeddings = json.dumps({"model": "m", "input": "x", "keep_alive": 0, "truncate": True}).encode()
    assert parse_embeddings(embeddings, ignore_unknown=True).ignored == ("truncate",)
    with pytest.raises(BadRequest, match="truncate"):
        parse_embeddings(embeddings)
