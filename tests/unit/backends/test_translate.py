"""The domain's words in protobuf's."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.metadata import GRAMMAR_PARAM_KEY, SAMPLING_KEY, replica_token
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.translate import ReplyReader, embedding, embedding_options, predict_options
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import (
    ChatMessage,
    EmbeddingInput,
    FinishReason,
    Generation,
    Sampling,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

MODEL, REQUEST = ModelName("m"), RequestId("r")


def options(sampling: Sampling) -> pb.PredictOptions:
    return predict_options(Generation(MODEL, "hi", sampling), REQUEST)


def explicit(sampling: Sampling) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(options(sampling).Metadata[SAMPLING_KEY])
    return found


def test_nothing_set_is_nothing_said() -> None:
    assert explicit(Sampling()) == {}


def test_zero_is_not_unset() -> None:
    assert explicit(Sampling(temperature=0.0, top_k=0, seed=0)) == {"temperature": 0.0, "top_k": 0, "seed": 0}


def test_everything_set_is_said_and_fills_the_classic_fields() -> None:
    sampling = Sampling(9, 0.5, 0.25, 40, 0.125, 1.5, 0.5, -0.5, 7, ("END",), {5: -100.0}, ignore_end=True)
    request = options(sampling)
    assert explicit(sampling) == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.125,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 7,
        "stop": ["END"],
        "logit_bias": {"5": -100.0},
        "ignore_eos": True,
    }
    assert (request.Tokens, request.Temperature, request.TopP, request.TopK) == (9, 0.5, 0.25, 40)
    assert (request.MinP, request.Penalty, request.PresencePenalty, request.FrequencyPenalty) == (0.125, 1.5, 0.5, -0.5)
    assert (request.Seed, list(request.StopPrompts), request.IgnoreEOS) == (7, ["END"], True)
    assert json.loads(request.LogitBias) == {"5": -100.0}


SOME = st.none() | st.sampled_from([0.0, -0.0, 0.5, 2.0])
COUNTS = st.none() | st.integers(0, 2**31 - 1)
ANY_SAMPLING = st.builds(
    Sampling,
    max_tokens=COUNTS,
    temperature=SOME,
    top_p=SOME,
    top_k=COUNTS,
    min_p=SOME,
    repeat_penalty=SOME,
    presence_penalty=SOME,
    frequency_penalty=SOME,
    seed=COUNTS,
    stop=st.sampled_from([(), ("END",)]),
    logit_bias=st.sampled_from([{}, {5: -1.5}]),
    ignore_end=st.booleans(),
)


@given(ANY_SAMPLING)
def test_setting_only_what_is_set_says_the_same_as_setting_everything(sampling: Sampling) -> None:
    everything = pb.PredictOptions(
        CorrelationId=REQUEST,
        ModelIdentity=MODEL,
        Prompt="hi",
        Metadata=dict(options(sampling).Metadata),
        Tokens=sampling.max_tokens or 0,
        Temperature=sampling.temperature or 0.0,
        TopP=sampling.top_p or 0.0,
        TopK=sampling.top_k or 0,
        MinP=sampling.min_p or 0.0,
        Penalty=sampling.repeat_penalty or 0.0,
        PresencePenalty=sampling.presence_penalty or 0.0,
        FrequencyPenalty=sampling.frequency_penalty or 0.0,
        Seed=sampling.seed or 0,
        StopPrompts=sampling.stop,
        IgnoreEOS=sampling.ignore_end,
        LogitBias=json.dumps({"5": -1.5}) if sampling.logit_bias else "",
    )
    assert options(sampling).SerializeToString() == everything.SerializeToString()


@pytest.mark.parametrize(("seed", "wire"), [(2**31, -(2**31)), (2**32 - 1, -1), (-1, -1), (2**31 - 1, 2**31 - 1)])
def test_a_seed_wraps_into_the_field(seed: int, wire: int) -> None:
    assert options(Sampling(seed=seed)).Seed == wire


def test_a_conversation_uses_the_models_own_template() -> None:
    prompt = (ChatMessage("system", "s"), ChatMessage("tool", "t", name="f", tool_call_id="c"))
    request = predict_options(Generation(MODEL, prompt, Sampling()), REQUEST)
    assert request.UseTokenizerTemplate
    assert request.Prompt == ""
    assert [(m.role, m.content, m.name, m.tool_call_id) for m in request.Messages] == [
        ("system", "s", "", ""),
        ("tool", "t", "f", "c"),
    ]


def test_tools_and_thinking_are_passed_on() -> None:
    generation = Generation(MODEL, (ChatMessage("user", "hi"),), Sampling(), '[{"type":"function"}]', "required", False)
    request = predict_options(generation, REQUEST)
    assert (request.Tools, request.ToolChoice) == ('[{"type":"function"}]', "required")
    assert request.Metadata["enable_thinking"] == "false"


def test_what_is_not_said_of_tools_and_thinking_is_not_there() -> None:
    request = predict_options(Generation(MODEL, (ChatMessage("user", "hi"),), Sampling()), REQUEST)
    assert (request.Tools, request.ToolChoice, request.Messages[0].tool_calls) == ("", "", "")
    assert set(request.Metadata) == {SAMPLING_KEY}


def test_calls_of_earlier_messages_are_one_json_text() -> None:
    calls = (ToolCall("c1", "f", '{"a": "ü"}'), ToolCall("c2", "g", "{}"))
    request = predict_options(Generation(MODEL, (ChatMessage("assistant", "", tool_calls=calls),), Sampling()), REQUEST)
    assert json.loads(request.Messages[0].tool_calls) == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_embedding_text_goes_where_backends_look_for_it() -> None:
    assert embedding_options(EmbeddingInput(MODEL, "text"), REQUEST).Embeddings == "text"
    assert list(embedding_options(EmbeddingInput(MODEL, (3, 4)), REQUEST).EmbeddingTokens) == [3, 4]


def reply_reader(max_tokens: int | None, context_size: int | None = None, *, single_call: bool = False) -> ReplyReader:
    return ReplyReader(Generation(MODEL, "", Sampling(max_tokens=max_tokens), single_call=single_call), context_size)


@given(st.text(), st.data())
def test_text_survives_any_split_into_replies(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parts = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    reader = reply_reader(None)
    read = "".join(reader.delta(pb.Reply(message=part)).text for part in parts) + reader.completion("stop").text
    assert read == text


def test_the_rest_of_a_split_character_is_part_of_what_ends_the_answer() -> None:
    """Nobody sends its end any more; that something was there is told all the same."""
    streamed = reply_reader(None)
    assert streamed.delta(pb.Reply(message="a🙂".encode()[:-1])).text == "a"
    assert streamed.completion("length").text == "\ufffd"
    whole = reply_reader(None)
    part = whole.delta(pb.Reply(message="é".encode()[:1]))
    assert whole.completion("length", text="ab" + part.text).text == "ab\ufffd"


def test_counts_never_go_back() -> None:
    """Some backends send a total in the last reply only, some count up, some send 0 after it."""
    reader = reply_reader(None)
    reader.delta(pb.Reply(tokens=5, prompt_tokens=3))
    reader.delta(pb.Reply())
    completion = reader.completion(None)
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 5)
    assert completion.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("context_size", "finish"),
    [(None, FinishReason.STOP), (11, FinishReason.STOP), (10, FinishReason.LENGTH)],
)
def test_a_backend_that_filled_its_context_has_reached_the_limit(
    context_size: int | None, finish: FinishReason
) -> None:
    reader = reply_reader(100, context_size)
    reader.delta(pb.Reply(message=b"x", tokens=4, prompt_tokens=6))
    assert reader.completion(None).finish_reason is finish


@pytest.mark.parametrize(("context_size", "limit"), [(None, 4096), (8192, 4096), (1024, 1024)])
def test_a_limit_above_the_context_is_the_context(context_size: int | None, limit: int) -> None:
    generation = Generation(ModelName("m"), "hi", Sampling(max_tokens=4096))
    options = predict_options(generation, RequestId("r"), context_size)
    assert (options.Tokens, json.loads(options.Metadata[SAMPLING_KEY])) == (limit, {"max_tokens": limit})


def test_an_unknown_finish_reason_is_none() -> None:
    assert reply_reader(None).completion("content_filter").finish_reason is FinishReason.STOP


def reply(*calls: pb.ToolCallDelta, content: str = "") -> pb.Reply:
    return pb.Reply(message=b"hidden", chat_deltas=[pb.ChatDelta(content=content, tool_calls=calls)])


def test_a_call_comes_in_parts_and_is_whole_at_the_end() -> None:
    """Of two calls at once, of which one begins later; some backends repeat the id and the name."""
    reader = reply_reader(None)
    parts = [
        reader.delta(reply(pb.ToolCallDelta(index=0, id="c1", name="f", arguments='{"a'), content="Well.")),
        reader.delta(reply(pb.ToolCallDelta(index=1, name="g", arguments="{}"))),
        reader.delta(reply(pb.ToolCallDelta(index=0, id="c1", name="f", arguments='": '))),
        reader.delta(reply(pb.ToolCallDelta(index=0, arguments="1}"))),
    ]
    assert [(part.text, part.tool_calls) for part in parts] == [
        ("Well.", (ToolCallDelta(0, "c1", "f", '{"a'),)),
        ("", (ToolCallDelta(1, "", "g", "{}"),)),
        ("", (ToolCallDelta(0, "c1", "f", '": '),)),
        ("", (ToolCallDelta(0, "", "", "1}"),)),
    ]
    completion = reader.completion("tool_calls")
    assert completion.finish_reason is FinishReason.TOOL_CALLS
    assert completion.tool_calls == (ToolCall("c1", "f", '{"a": 1}'), ToolCall("", "g", "{}"))


@pytest.mark.parametrize(
    ("said", "max_tokens", "finish"),
    [
        (None, None, FinishReason.TOOL_CALLS),
        (None, 5, FinishReason.LENGTH),
        ("length", None, FinishReason.LENGTH),
        ("stop", None, FinishReason.STOP),
    ],
)
def test_an_answer_that_calls_says_so_unless_the_backend_knows_better(
    said: str | None, max_tokens: int | None, finish: FinishReason
) -> None:
    reader = reply_reader(max_tokens)
    reader.delta(pb.Reply(tokens=5, chat_deltas=[pb.ChatDelta(tool_calls=[pb.ToolCallDelta(name="f")])]))
    assert reader.completion(said).finish_reason is finish


def test_h5_a_token_belongs_to_one_replica_and_one_cluster() -> None:
    tokens = {replica_token(key, ReplicaId(who)) for key in (b"k1", b"k2") for who in ("a", "b")}
    assert len(tokens) == 4
    assert replica_token(b"k1", ReplicaId("a")) in tokens


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_vector_with_what_is_no_number_is_a_failure_of_the_backend(bad: float) -> None:
    with pytest.raises(BackendFailed, match="no numbers") as failure:
        embedding(pb.EmbeddingResult(embeddings=[0.5, bad, 1.0]))
    assert failure.value.status == 502


def test_a_vector_of_numbers_and_a_count_that_is_none() -> None:
    answer = embedding(pb.EmbeddingResult(embeddings=[0.5, 3.0e38, -3.0e38], prompt_tokens=-7))
    assert (len(answer.vector), answer.prompt_tokens) == (3, 0)


def test_counts_that_can_not_be_are_none() -> None:
    reader = reply_reader(5)
    part = reader.delta(pb.Reply(message=b"x", tokens=-3, prompt_tokens=-(2**31)))
    assert (part.prompt_tokens, part.completion_tokens) == (0, 0)


def deltas_until_endless(reader: ReplyReader, reply: Callable[[int], pb.Reply]) -> int:
    for number in range(1, 10_000_000):
        reader.delta(reply(number))
        if reader.is_endless:
            return number
    raise AssertionError("it never ends")


def test_an_answer_ends_at_what_was_asked_for_and_a_little_more() -> None:
    assert deltas_until_endless(reply_reader(5), lambda number: pb.Reply(message=b"x", tokens=number)) == 5 + 64 + 1
    assert deltas_until_endless(reply_reader(5), lambda _: pb.Reply(message=b"x")) == 5 + 64 + 1


def test_a_backend_that_counts_may_send_a_token_in_parts_but_not_for_ever() -> None:
    halves = reply_reader(100)
    for number in range(1, 201):
        halves.delta(pb.Reply(message=b"x", tokens=(number + 1) // 2))
        assert not halves.is_endless
    assert deltas_until_endless(reply_reader(5), lambda _: pb.Reply(message=b"x", tokens=1)) == 4 * (5 + 64) + 1


def test_without_a_limit_the_context_is_one() -> None:
    assert deltas_until_endless(reply_reader(None, 100), lambda _: pb.Reply(message=b"x")) == 100 + 64 + 1
    assert deltas_until_endless(reply_reader(10_000, 100), lambda _: pb.Reply(message=b"x")) == 100 + 64 + 1


def test_bytes_are_bounded_whatever_the_tokens() -> None:
    large = b"x" * 2**20
    assert deltas_until_endless(reply_reader(None), lambda _: pb.Reply(message=large, tokens=1)) == 64


def test_a_grammar_is_sent_with_the_parameter_that_it_comes_from() -> None:
    generation = Generation(MODEL, "hi", Sampling(), grammar="root ::= value", grammar_param="response_format")
    request = predict_options(generation, REQUEST)
    assert (request.Grammar, request.Metadata[GRAMMAR_PARAM_KEY]) == ("root ::= value", "response_format")
    assert not predict_options(Generation(MODEL, "hi", Sampling()), REQUEST).Grammar


def is_after_call(reader: ReplyReader) -> bool:
    return reader.is_after_call


def call_part(index: int, arguments: str, text: str = "") -> pb.Reply:
    calls = [pb.ToolCallDelta(index=index, name="f", arguments=arguments)]
    return pb.Reply(chat_deltas=[pb.ChatDelta(content=text, tool_calls=calls)])


def test_what_comes_after_the_only_call_that_is_wanted_is_dropped() -> None:
    reader = reply_reader(None, single_call=True)
    assert reader.delta(pb.Reply(message=b"see")).text == "see"
    assert [part.arguments for part in reader.delta(call_part(0, "{")).tool_calls] == ["{"]
    assert [part.arguments for part in reader.delta(call_part(0, "}")).tool_calls] == ["}"]
    assert is_after_call(reader) is False
    assert reader.delta(call_part(1, "{}")).tool_calls == ()
    assert is_after_call(reader) is True
    assert [call.arguments for call in reader.completion(None).tool_calls] == ["{}"]


def test_text_after_the_only_call_ends_it_too() -> None:
    reader = reply_reader(None, single_call=True)
    reader.delta(call_part(3, "{}"))
    assert reader.delta(pb.Reply(message=b"\n")).text == ""
    assert is_after_call(reader) is False
    assert reader.delta(pb.Reply(message=b"more")).text == ""
    assert is_after_call(reader) is True


def test_what_a_request_asks_besides_is_sent_where_our_engine_reads_it() -> None:
    generation = Generation(
        MODEL, (ChatMessage("user", "hi"),), Sampling(), template='{"a":1}', effort="low", logprobs=0
    )
    request = predict_options(generation, REQUEST)
    assert (request.Logprobs, request.TopLogprobs) == (1, 0)
    assert request.Metadata["gateway.chat_template_kwargs"] == '{"a":1}'
    assert request.Metadata["reasoning_effort"] == "low"
    raw = predict_options(Generation(MODEL, "", Sampling(), tokens=(5, 6)), REQUEST)
    assert (raw.Prompt, raw.Metadata["gateway.prompt_tokens"]) == ("", "[5, 6]")


def test_probabilities_are_read_from_openais_form() -> None:
    entry = {"token": "a", "bytes": [97], "logprob": float("-inf")}
    text = json.dumps({"content": [{**entry, "top_logprobs": [{**entry, "logprob": -1}]}]}).encode()
    found = reply_reader(None).delta(pb.Reply(message=b"a", logprobs=text)).logprobs
    assert found == (TokenLogprob("a", -9999.0, (97,), (TokenLogprob("a", -1.0, (97,)),)),)


@pytest.mark.parametrize("text", [b"no", b"[]", b"{}", b'{"content": [{}]}', b'{"content": 5}', b"\xff"])
def test_probabilities_that_cannot_be_read_are_the_backends_fault(text: bytes) -> None:
    with pytest.raises(BackendFailed, match="probabilities"):
        reply_reader(None).delta(pb.Reply(message=b"a", logprobs=text))


@pytest.mark.parametrize(("trailer", "expected"), [("", None), ("12", 12), ("-1", None), ("9" * 20, None)])
def test_cached_tokens_are_those_of_the_trailer(trailer: str, expected: int | None) -> None:
    assert reply_reader(None).completion("stop", cached=trailer).cached_tokens == expected
