"""Sampling parameters: from the gateway's JSON or the classic fields, checked, in llama.cpp's words."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.metadata import ERROR_PARAM, SAMPLING_KEY
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.sampling import READERS, SEED_RANDOM, SamplingLimits, sampling_body

LIMITS = SamplingLimits(context_tokens=1024, vocabulary_size=100)


def explicit(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return sampling_body(pb.PredictOptions(Metadata={SAMPLING_KEY: json.dumps(parameters)}), LIMITS)


def refusal(options: pb.PredictOptions) -> CallError:
    with pytest.raises(CallError) as caught:
        sampling_body(options, LIMITS)
    assert caught.value.status is Status.INVALID_ARGUMENT
    return caught.value


def test_every_parameter_is_passed_on() -> None:
    parameters = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "seed": 42,
        "max_tokens": 1024,
        "stop": ["a", "b"],
        "logit_bias": {"5": 100, "99": -1.5},
        "ignore_eos": True,
    }
    assert parameters.keys() | {"reproducible"} == READERS.keys()
    assert explicit(parameters) == parameters | {"logit_bias": [(5, 100.0), (99, -1.5)]}


def test_nothing_set_leaves_everything_to_llama() -> None:
    assert explicit({}) == {}


def test_the_gateways_object_hides_the_classic_fields() -> None:
    """It fills both; only the object knows that a zero was not set."""
    options = pb.PredictOptions(Temperature=0.0, Tokens=5, Metadata={SAMPLING_KEY: '{"temperature": 1}'})
    assert sampling_body(options, LIMITS) == {"temperature": 1.0}


def test_classic_zeros_are_not_set_but_for_the_temperature() -> None:
    assert sampling_body(pb.PredictOptions(), LIMITS) == {"temperature": 0.0}


def test_classic_fields_are_read() -> None:
    options = pb.PredictOptions(
        Temperature=0.5,
        TopP=0.25,
        TopK=7,
        MinP=0.125,
        Penalty=1.5,
        PresencePenalty=-0.5,
        FrequencyPenalty=0.5,
        Seed=3,
        Tokens=9,
        StopPrompts=["end"],
        LogitBias='{"5": 1}',
        IgnoreEOS=True,
    )
    assert sampling_body(options, LIMITS) == {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "repeat_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "seed": 3,
        "max_tokens": 9,
        "stop": ["end"],
        "logit_bias": [(5, 1.0)],
        "ignore_eos": True,
    }


@pytest.mark.parametrize("seed", [-1, 0, SEED_RANDOM, 2**64])
def test_a_seed_is_never_the_one_that_means_random(seed: int) -> None:
    assert explicit({"seed": seed})["seed"] in range(SEED_RANDOM)


@pytest.mark.parametrize("parameters", [{}, {"seed": 1}, {"temperature": 0}, {"temperature": 0, "seed": 1}])
def test_every_request_may_use_the_prompt_cache(parameters: dict[str, Any]) -> None:
    """Agents and evaluations ask for temperature 0 or a seed, and repeat the longest prompts."""
    assert "cache_prompt" not in explicit(parameters)


@pytest.mark.parametrize(("of_model", "of_request"), [(False, True), (True, None), (True, True)])
def test_what_must_repeat_exactly_does_not_use_the_prompt_cache(of_model: bool, of_request: bool | None) -> None:
    assert cached(of_model, of_request) is False


def test_a_request_may_use_the_prompt_cache_of_a_reproducible_model() -> None:
    assert cached(of_model=True, of_request=False) is True


def cached(of_model: bool, of_request: bool | None) -> object:
    given = {} if of_request is None else {"reproducible": of_request}
    options = pb.PredictOptions(Metadata={SAMPLING_KEY: json.dumps(given)})
    return sampling_body(options, dataclasses.replace(LIMITS, reproducible=of_model)).get("cache_prompt")


def test_one_stop_word_may_stand_alone() -> None:
    assert explicit({"stop": "end"}) == {"stop": ["end"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", 1e999),
        ("temperature", 10**400),
        ("top_p", 1.5),
        ("top_k", 1.5),
        ("top_k", -1),
        ("min_p", None),
        ("repeat_penalty", 0),
        ("presence_penalty", [1]),
        ("frequency_penalty", {}),
        ("seed", 1.0),
        ("seed", False),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", ["a"] * 65),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"100": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "much"}),
        ("ignore_eos", 1),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    error = refusal(pb.PredictOptions(Metadata={SAMPLING_KEY: json.dumps({name: value})}))
    assert error.trailers[ERROR_PARAM] in (name, SAMPLING_KEY)
    assert error.message


def test_more_tokens_than_the_context_holds_are_as_many_as_it_holds() -> None:
    """The limit is an upper bound, and an answer ends with the context in any case."""
    for wanted, limit in ((1023, 1023), (1025, 1024), (2**31 - 1, 1024)):
        options = pb.PredictOptions(Metadata={SAMPLING_KEY: json.dumps({"max_tokens": wanted})})
        assert sampling_body(options, LIMITS)["max_tokens"] == limit


def test_an_unknown_parameter_is_refused() -> None:
    error = refusal(pb.PredictOptions(Metadata={SAMPLING_KEY: '{"temprature": 1}'}))
    assert error.trailers == {ERROR_PARAM: "temprature"}


def test_a_name_that_no_trailer_can_carry_is_not_put_into_one() -> None:
    assert refusal(pb.PredictOptions(Metadata={SAMPLING_KEY: '{"a\\nb": 1}'})).trailers == {}


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN", '{"temperature": NaN}', '{"stop": "\\ud800"}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    assert refusal(pb.PredictOptions(Metadata={SAMPLING_KEY: text})).trailers == {ERROR_PARAM: SAMPLING_KEY}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(READERS)), JSON))
def test_any_json_is_read_or_refused(parameters: dict[str, Any]) -> None:
    options = pb.PredictOptions(Metadata={SAMPLING_KEY: json.dumps(parameters)})
    with contextlib.suppress(CallError):
        assert sampling_body(options, LIMITS).keys() - {"cache_prompt"} == parameters.keys()
