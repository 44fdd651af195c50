"""What a loaded engine answers: a real process, real llama.cpp, real gRPC."""

import asyncio
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from gateway.backends.metadata import ERROR_CODE, ERROR_PARAM, FINISH_REASON
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import (
    ENDLESS,
    IDENTITY,
    Answer,
    EngineClient,
    EngineProcess,
    chat,
    open_engine,
    prompt,
    run,
)
from tests.integration.harness import WAIT_SECONDS

CONTEXT_TOKENS = 1024
END_TOKEN = "2"
FIRST_BYTE_TOKEN = 5
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    model = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    write_tiny_model(model)
    with open_engine() as engine:

        async def load(client: EngineClient) -> None:
            result = await client.load(model, context_tokens=CONTEXT_TOKENS, options=["parallel:3"])
            assert result.success, result.message

        run(engine, load)
        yield engine


def call(engine: EngineProcess, rpc: str, options: pb.PredictOptions) -> Answer:
    return run(engine, lambda client: client.call(rpc, options))


def stream(engine: EngineProcess, options: pb.PredictOptions) -> Answer:
    answer = call(engine, "PredictStream", options)
    assert answer.error is None
    return answer


def refusal(answer: Answer) -> tuple[Status, str]:
    assert answer.replies == []
    assert answer.error is not None
    return answer.error.status, answer.error.message or ""


@pytest.mark.parametrize("options", [chat, prompt])
def test_a_stream_and_a_unary_answer_are_the_same_and_count_true(
    engine: EngineProcess, options: Callable[..., pb.PredictOptions]
) -> None:
    request = options("the quiet river", {**GREEDY, "max_tokens": 20})
    streamed, unary = stream(engine, request), call(engine, "Predict", request)
    (whole,) = unary.replies
    last = streamed.replies[-1]
    assert streamed.text == unary.text != ""
    assert len(streamed.replies) > 10
    assert last.tokens == whole.tokens == 20
    assert last.prompt_tokens == whole.prompt_tokens > 0
    assert streamed.trailers[FINISH_REASON] == unary.trailers[FINISH_REASON] == "length"
    assert last.timing_prompt_processing > 0
    assert last.timing_token_generation > 0


def test_counts_grow_up_to_the_totals(engine: EngineProcess) -> None:
    replies = stream(engine, prompt("a", {**GREEDY, "max_tokens": 20})).replies
    counts = [reply.tokens for reply in replies]
    assert counts == sorted(counts)
    assert counts[0] < 5
    assert counts[-1] == 20
    assert {reply.prompt_tokens for reply in replies} == {2}


def test_prompt_tokens_are_those_that_the_tokenizer_counts(engine: EngineProcess) -> None:
    text = "the quiet river <|im_start|>"
    answer = call(engine, "TokenizeString", prompt(text))
    (tokens,) = answer.replies
    assert tokens.length == len(tokens.tokens)
    assert stream(engine, prompt(text, {"max_tokens": 1})).replies[-1].prompt_tokens == tokens.length


def test_the_models_end_token_ends_the_answer(engine: EngineProcess) -> None:
    sampling = {**GREEDY, "logit_bias": {END_TOKEN: 100}}
    answer = stream(engine, prompt("a", sampling))
    assert (answer.text, answer.trailers[FINISH_REASON], answer.replies[-1].tokens) == ("", "stop", 1)
    endless = stream(engine, prompt("a", {**sampling, "ignore_eos": True, "max_tokens": 5}))
    assert endless.trailers[FINISH_REASON] == "length"


def test_a_stop_word_ends_the_answer_before_it(engine: EngineProcess) -> None:
    sampling = {**GREEDY, "max_tokens": 40}
    whole = stream(engine, prompt("a", sampling)).text
    word = whole[20:25]
    answer = stream(engine, prompt("a", {**sampling, "stop": ["never said", word]}))
    assert answer.text == whole[: whole.index(word)]
    assert answer.trailers[FINISH_REASON] == "stop"


def test_without_a_limit_an_answer_goes_on_until_the_context_is_full(engine: EngineProcess) -> None:
    answer = stream(engine, prompt("a", {**GREEDY, "ignore_eos": True}))
    last = answer.replies[-1]
    assert answer.trailers[FINISH_REASON] == "length"
    assert last.prompt_tokens + last.tokens == CONTEXT_TOKENS


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 42, "temperature": 1.5}])
def test_what_must_repeat_repeats_also_beside_others(engine: EngineProcess, sampling: dict[str, object]) -> None:
    request = prompt("the river and the mountain were old " * 3, {**sampling, "max_tokens": 40})

    async def alone_then_together(client: EngineClient) -> set[str]:
        alone = [await client.call("PredictStream", request) for _ in range(2)]
        together = await asyncio.gather(*(client.call("PredictStream", request) for _ in range(3)))
        return {answer.text for answer in [*alone, *together]}

    assert len(run(engine, alone_then_together)) == 1


def test_another_seed_gives_another_answer(engine: EngineProcess) -> None:
    texts = {stream(engine, prompt("a", {"seed": seed, "max_tokens": 40})).text for seed in (1, 2, 3)}
    assert len(texts) == 3


def test_every_reply_holds_whole_characters(engine: EngineProcess) -> None:
    """Byte tokens 0xE2, 0x82 and 0xAC in any order, whole and broken characters among them; see `Answer.text`."""
    bytes_only = {str(FIRST_BYTE_TOKEN + byte): 100 for byte in "€".encode()}
    texts = set[str]()
    for seed in range(5):
        sampling = {"seed": seed, "temperature": 2, "logit_bias": bytes_only, "max_tokens": 60}
        answer = stream(engine, prompt("a", sampling))
        assert answer.replies[-1].tokens == 60
        texts |= set(answer.text)
    assert texts >= {"€", "\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize(("options", "param"), [(chat, "messages"), (prompt, "prompt")])
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(
    engine: EngineProcess, options: Callable[..., pb.PredictOptions], param: str
) -> None:
    answer = call(engine, "PredictStream", options("river " * CONTEXT_TOKENS))
    status, message = refusal(answer)
    assert status is Status.INVALID_ARGUMENT
    assert str(CONTEXT_TOKENS) in message
    assert answer.trailers[ERROR_CODE] == "context_length_exceeded"
    assert answer.trailers[ERROR_PARAM] == param


def test_an_answer_that_may_be_longer_than_the_context_ends_with_it(engine: EngineProcess) -> None:
    answer = call(engine, "Predict", prompt("a", {**ENDLESS, "max_tokens": 2**31 - 1}))
    (whole,) = answer.replies
    assert answer.trailers[FINISH_REASON] == "length"
    assert CONTEXT_TOKENS - 1 <= whole.prompt_tokens + whole.tokens <= CONTEXT_TOKENS + 1


def test_h5_another_models_name_is_refused(engine: EngineProcess) -> None:
    request = prompt("a", {"max_tokens": 1})
    request.ModelIdentity = "other"
    for rpc in ("Predict", "PredictStream", "Embedding", "TokenizeString"):
        status, message = refusal(call(engine, rpc, request))
        assert status is Status.NOT_FOUND
        assert "model identity mismatch" in message
    request.ModelIdentity = IDENTITY
    assert call(engine, "Predict", request).error is None


def test_an_embedding_of_a_text_is_that_of_its_tokens(engine: EngineProcess) -> None:
    (tokens,) = call(engine, "TokenizeString", prompt("the river")).replies
    (of_text,) = call(engine, "Embedding", pb.PredictOptions(Embeddings="the river")).replies
    (of_tokens,) = call(engine, "Embedding", pb.PredictOptions(EmbeddingTokens=tokens.tokens)).replies
    (of_other,) = call(engine, "Embedding", pb.PredictOptions(Embeddings="the mountain")).replies
    assert of_text == of_tokens
    assert of_text.embeddings != of_other.embeddings
    assert of_text.dim == len(of_text.embeddings) == 64
    assert of_text.layout == pb.EMBEDDING_LAYOUT_FINAL
    assert of_text.prompt_tokens == of_text.tokens == tokens.length
    assert sum(value * value for value in of_text.embeddings) == pytest.approx(1.0, abs=1e-4)


def test_embeddings_beside_answers_are_right_with_an_odd_number_of_slots(engine: EngineProcess) -> None:
    async def mixed(client: EngineClient) -> tuple[Answer, Answer, Answer]:
        return await asyncio.gather(
            client.call("Embedding", pb.PredictOptions(Embeddings="the river")),
            client.call("Embedding", pb.PredictOptions(Embeddings="the old mountain")),
            client.call("Predict", prompt("a", {**GREEDY, "max_tokens": 30})),
        )

    beside = run(engine, mixed)
    alone = call(engine, "Embedding", pb.PredictOptions(Embeddings="the river"))
    assert beside[0].replies[0].embeddings == pytest.approx(alone.replies[0].embeddings, abs=1e-5)
    assert beside[2].text == call(engine, "Predict", prompt("a", {**GREEDY, "max_tokens": 30})).text


def test_embeddings_beside_each_other_are_right(engine: EngineProcess) -> None:
    """Of texts of different lengths: their mean must not be that of a part."""
    requests = [pb.PredictOptions(Embeddings="river " * count) for count in (1, 4, 9)]

    async def together(client: EngineClient) -> list[Answer]:
        return await asyncio.gather(*(client.call("Embedding", request) for request in requests))

    alone = [call(engine, "Embedding", request).replies[0].embeddings for request in requests]
    for _ in range(20):
        for answer, expected in zip(run(engine, together), alone, strict=True):
            assert answer.replies[0].embeddings == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [pb.PredictOptions(Embeddings="river " * 600), pb.PredictOptions(EmbeddingTokens=[300] * 600)],
    ids=["text", "tokens"],
)
def test_an_input_that_is_too_long_to_embed_is_refused(engine: EngineProcess, options: pb.PredictOptions) -> None:
    answer = call(engine, "Embedding", options)
    status, message = refusal(answer)
    assert status is Status.INVALID_ARGUMENT
    assert "at most" in message
    assert (answer.trailers[ERROR_CODE], answer.trailers[ERROR_PARAM]) == ("context_length_exceeded", "input")


def test_an_empty_input_is_refused(engine: EngineProcess) -> None:
    answer = call(engine, "Embedding", pb.PredictOptions())
    assert refusal(answer)[0] is Status.INVALID_ARGUMENT
    assert answer.trailers[ERROR_PARAM] == "input"


@pytest.mark.parametrize("rpc", ["Score", "AudioToAudioStream", "StoresSet", "GetMetrics"])
def test_whatever_else_is_unimplemented(engine: EngineProcess, rpc: str) -> None:
    """A call that streams its request, too, and without waiting for a message."""

    async def begin(client: EngineClient) -> None:
        async with client.open(rpc) as opened:
            await opened.send_request()
            await opened.recv_initial_metadata()

    with pytest.raises(GRPCError) as caught:
        run(engine, begin)
    assert caught.value.status is Status.UNIMPLEMENTED


def test_the_listener_of_llama_itself_needs_a_key_that_nobody_has(engine: EngineProcess) -> None:
    ports = {connection.laddr.port for connection in listeners(engine)} - {engine.port}
    assert len(ports) == 1
    assert {connection.laddr.ip for connection in listeners(engine)} == {"127.0.0.1"}
    assert http_status(ports.pop(), "/tokenize") == 401


def listeners(engine: EngineProcess) -> "list[psutil._ntuples.pconn]":
    connections = psutil.Process(engine.process.pid).net_connections()
    return [connection for connection in connections if connection.status == psutil.CONN_LISTEN]


def http_status(port: int, path: str) -> int:
    return httpx.post(f"http://127.0.0.1:{port}{path}", json={"content": "a"}, timeout=WAIT_SECONDS).status_code
