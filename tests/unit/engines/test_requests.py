"""What llama.cpp is asked for a PredictOptions."""

import dataclasses
from typing import Any

import pytest

from gateway.backends.metadata import (
    EFFORT_KEY,
    ERROR_PARAM,
    GRAMMAR_PARAM_KEY,
    SAMPLING_KEY,
    TEMPLATE_KEY,
    THINKING_KEY,
    TOKENS_KEY,
)
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.requests import (
    CHAT_ONLY_FIELDS,
    REFUSED_FIELDS,
    STREAMED,
    embedding_input,
    generation_request,
)
from gateway.engines.llama_cpp.sampling import SamplingLimits
from gateway.engines.llama_cpp.template_settings import names_in

LIMITS = SamplingLimits(context_tokens=1024, vocabulary_size=100)
NOTHING_SET = {SAMPLING_KEY: "{}"}


def refused_param(options: pb.PredictOptions) -> str:
    with pytest.raises(CallError) as caught:
        generation_request(options, LIMITS)
    return caught.value.trailers[ERROR_PARAM]


def test_a_raw_prompt_stays_raw() -> None:
    request = generation_request(pb.PredictOptions(Prompt="the river", Metadata=NOTHING_SET), LIMITS)
    assert request.param == "prompt"
    assert request.body == {**STREAMED, "prompt": "the river"}


def test_a_chat_goes_through_the_models_template() -> None:
    options = pb.PredictOptions(
        UseTokenizerTemplate=True,
        Prompt="ignored",
        Messages=[
            pb.Message(role="user", content="hi", name="ann"),
            pb.Message(role="assistant", tool_calls='[{"id": "c1"}]', reasoning_content="hm"),
            pb.Message(role="tool", content="4", tool_call_id="c1"),
        ],
        Metadata=NOTHING_SET,
    )
    request = generation_request(options, LIMITS)
    assert request.param == "messages"
    assert request.body == {
        **STREAMED,
        "reasoning_format": "auto",
        "messages": [
            {"role": "user", "content": "hi", "name": "ann"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}], "reasoning_content": "hm"},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
    }


@pytest.mark.parametrize(
    ("last", "continued"),
    [
        (pb.Message(role="user", content="hi"), False),
        (pb.Message(role="assistant", content="A replica"), True),
        (pb.Message(role="assistant", reasoning_content="so"), True),
        (pb.Message(role="assistant", tool_calls='[{"id": "c1"}]'), False),
        (pb.Message(role="tool", content="4", tool_call_id="c1"), False),
    ],
)
def test_only_an_answer_that_is_not_finished_is_continued(last: pb.Message, continued: bool) -> None:
    messages = [pb.Message(role="user", content="hi"), last]
    body = generation_request(
        pb.PredictOptions(UseTokenizerTemplate=True, Messages=messages, Metadata=NOTHING_SET), LIMITS
    ).body
    assert body.get("continue_final_message", False) is continued
    assert body.get("add_generation_prompt", True) is not continued


def asking(**fields: Any) -> pb.PredictOptions:
    """A chat, and whatever else."""
    fields["Metadata"] = NOTHING_SET | fields.get("Metadata", {})
    return pb.PredictOptions(UseTokenizerTemplate=True, Messages=[pb.Message(role="user", content="hi")], **fields)


def test_a_chat_has_its_tools() -> None:
    plain = generation_request(asking(), LIMITS).body
    body = generation_request(asking(Tools='[{"function": {"name": "f"}}]'), LIMITS).body
    assert body == {**plain, "tools": [{"function": {"name": "f"}}], "tool_choice": "auto"}


def test_a_call_that_is_demanded_is_forced_through_a_prompt_of_its_own() -> None:
    options = asking(Tools='[{"function": {"name": "f"}}]', ToolChoice="required")
    options.Metadata[SAMPLING_KEY] = '{"stop": ["a"], "max_tokens": 5}'
    request = generation_request(options, LIMITS)
    assert (request.is_chat, request.param) == (False, "messages")
    assert request.chat == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"function": {"name": "f"}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert request.call is not None
    assert request.call.opening == '{"name": "f", "arguments":'
    assert request.call.heads == {" ": "f"}
    assert request.body == {**STREAMED, "max_tokens": 5, "grammar": request.call.grammar}


def test_a_chat_with_a_grammar_has_its_own_prompt_and_thinks_not() -> None:
    options = asking(Grammar="root ::= value", Metadata={THINKING_KEY: "true", GRAMMAR_PARAM_KEY: "response_format"})
    request = generation_request(options, LIMITS)
    assert request.body == {**STREAMED, "grammar": "root ::= value"}
    assert request.chat is not None
    assert request.chat["chat_template_kwargs"] == {"enable_thinking": False}
    assert (request.is_chat, request.call, request.grammar_param) == (False, None, "response_format")


def test_a_grammar_and_tools_are_refused_together() -> None:
    assert refused_param(asking(Grammar="root ::= value", Tools='[{"function": {"name": "f"}}]')) == "grammar"


@pytest.mark.parametrize(("said", "thinks"), [("true", True), ("false", False)])
def test_a_chat_may_say_whether_to_think(said: str, thinks: bool) -> None:
    assert THINKING_KEY == "enable_thinking"
    body = generation_request(asking(Metadata={THINKING_KEY: said}), LIMITS).body
    assert body["chat_template_kwargs"] == {"enable_thinking": thinks}
    assert "chat_template_kwargs" not in generation_request(asking(), LIMITS).body


def test_thinking_that_is_neither_on_nor_off_is_refused() -> None:
    assert refused_param(asking(Metadata={THINKING_KEY: "maybe"})) == "chat_template_kwargs.enable_thinking"


def test_sampling_never_changes_how_llama_is_called() -> None:
    options = pb.PredictOptions(Prompt="a", Metadata={SAMPLING_KEY: '{"stream": false}'})
    assert refused_param(options) == "stream"


def test_a_chat_without_messages_is_refused() -> None:
    assert refused_param(pb.PredictOptions(UseTokenizerTemplate=True)) == "messages"


def test_tool_calls_that_are_no_json_are_refused() -> None:
    message = pb.Message(role="assistant", tool_calls="[")
    assert refused_param(pb.PredictOptions(UseTokenizerTemplate=True, Messages=[message])) == "messages"


REFUSED = {
    "Grammar": pb.PredictOptions(Grammar="root ::= [a]"),
    "Images": pb.PredictOptions(Images=["x"]),
    "Videos": pb.PredictOptions(Videos=["x"]),
    "Audios": pb.PredictOptions(Audios=["x"]),
    "NegativePrompt": pb.PredictOptions(NegativePrompt="x"),
}


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_a_field_that_is_not_honoured_is_refused_by_name(field: str) -> None:
    assert refused_param(REFUSED[field]) == REFUSED_FIELDS[field]


@pytest.mark.parametrize("field", sorted(CHAT_ONLY_FIELDS))
def test_a_raw_prompt_has_no_tools(field: str) -> None:
    options = pb.PredictOptions(Prompt="a", Metadata=NOTHING_SET)
    setattr(options, field, "[]")
    assert refused_param(options) == CHAT_ONLY_FIELDS[field]


def test_an_embedding_is_of_a_text_or_of_tokens() -> None:
    assert embedding_input(pb.PredictOptions(Embeddings="the river"), LIMITS) == "the river"
    assert embedding_input(pb.PredictOptions(EmbeddingTokens=[0, 99]), LIMITS) == [0, 99]


@pytest.mark.parametrize("options", [pb.PredictOptions(Prompt="the river"), pb.PredictOptions(EmbeddingTokens=[100])])
def test_an_embedding_of_nothing_or_of_unknown_tokens_is_refused(options: pb.PredictOptions) -> None:
    with pytest.raises(CallError) as caught:
        embedding_input(options, LIMITS)
    assert caught.value.trailers == {ERROR_PARAM: "input"}


@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (3, 3), (5000, 100)])
def test_probabilities_are_asked_for_in_the_words_of_each_kind(asked: int, sent: int) -> None:
    chat = generation_request(asking(Logprobs=1, TopLogprobs=asked), LIMITS)
    assert (chat.body["logprobs"], chat.body["top_logprobs"], chat.logprobs) == (True, sent, asked)
    raw = generation_request(pb.PredictOptions(Prompt="a", Logprobs=1, TopLogprobs=asked), LIMITS)
    assert (raw.body["logprobs"], raw.logprobs) == (sent, asked)
    in_form = generation_request(asking(Logprobs=1, TopLogprobs=asked, Grammar="root ::= value"), LIMITS)
    assert in_form.body["logprobs"] == sent


def test_a_raw_prompt_may_be_token_ids() -> None:
    def of_tokens(tokens: str) -> pb.PredictOptions:
        return pb.PredictOptions(Metadata=NOTHING_SET | {TOKENS_KEY: tokens})

    assert generation_request(of_tokens("[5, 99]"), LIMITS).body["prompt"] == [5, 99]
    for wrong in ("[100]", "[-1]", '["a"]', "{}", "no"):
        assert refused_param(of_tokens(wrong)) == "prompt"


def test_settings_reach_a_template_that_reads_them() -> None:
    limits = dataclasses.replace(LIMITS, template_names=names_in("{% if style %}{{ reasoning_effort }}{% endif %}"))

    def settings(**metadata: str) -> object:
        named = {name.replace("__", "."): value for name, value in metadata.items()}
        return generation_request(asking(Metadata=named), limits).body.get("chat_template_kwargs")

    assert settings(gateway__chat_template_kwargs='{"style": 1}', enable_thinking="true") == {
        "style": 1,
        "enable_thinking": True,
    }
    assert settings(reasoning_effort="low") == {"reasoning_effort": "low"}
    assert "chat_template_kwargs" not in generation_request(asking(Metadata={EFFORT_KEY: "low"}), LIMITS).body


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ('{"other": 1}', "chat_template_kwargs.other"),
        ('{"messages": []}', "chat_template_kwargs.messages"),
        ("[]", "chat_template_kwargs"),
        ("no", "chat_template_kwargs"),
    ],
)
def test_a_setting_that_no_template_reads_is_refused_by_name(settings: str, param: str) -> None:
    assert refused_param(asking(Metadata={TEMPLATE_KEY: settings})) == param
