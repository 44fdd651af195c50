"""What the engine says of models of each kind, and how it refuses what they are not made for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status

from gateway.backends.metadata import ERROR_CODE, ERROR_PARAM
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import IDENTITY, Answer, EngineClient, EngineProcess, chat, open_engine, prompt, run
from tests.fakes.tiny_encoder import write_tiny_encoder

EMBEDDING = pb.PredictOptions(Embeddings="the river")


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    with open_engine() as engine:
        yield engine


def load(engine: EngineProcess, file: Path, *options: str) -> None:
    async def ask(client: EngineClient) -> None:
        result = await client.load(file, options=options)
        assert result.success, result.message

    run(engine, ask)


def call(engine: EngineProcess, rpc: str, request: object) -> Answer:
    return run(engine, lambda client: client.call(rpc, request))  # type: ignore[arg-type]


def metadata(engine: EngineProcess) -> pb.ModelMetadataResponse:
    (answer,) = call(engine, "ModelMetadata", pb.ModelOptions()).replies
    assert isinstance(answer, pb.ModelMetadataResponse)
    return answer


def check_refused(engine: EngineProcess, rpc: str, request: object, words: str) -> None:
    answer = call(engine, rpc, request)
    assert answer.error is not None
    assert answer.error.status is Status.INVALID_ARGUMENT
    assert answer.error.message == f"The model '{IDENTITY}' is {words}."
    assert (answer.trailers[ERROR_PARAM], answer.trailers[ERROR_CODE]) == ("model", "unsupported")


def test_a_chat_model_generates_and_embeds(engine: EngineProcess, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf")
    load(engine, tmp_path / "m.gguf")
    stated = metadata(engine)
    assert (stated.generates, stated.embeds, stated.reranks) == (True, True, False)
    assert (stated.context_size, stated.tools, stated.thinking, stated.vision) == (1024, False, False, False)
    assert stated.HasField("tools")
    assert call(engine, "Embedding", EMBEDDING).error is None


def test_a_chat_model_without_embeddings_says_so(engine: EngineProcess, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf")
    load(engine, tmp_path / "m.gguf", "embeddings:false")
    assert not metadata(engine).embeds
    check_refused(engine, "Embedding", EMBEDDING, "a model that generates text and can't embed text")


@pytest.mark.parametrize("options", [chat(), prompt()])
@pytest.mark.parametrize("rpc", ["Predict", "PredictStream"])
def test_an_embedding_model_generates_nothing(
    engine: EngineProcess, tmp_path: Path, rpc: str, options: pb.PredictOptions
) -> None:
    write_tiny_encoder(tmp_path / "m.gguf")
    load(engine, tmp_path / "m.gguf")
    stated = metadata(engine)
    assert (stated.generates, stated.embeds, stated.reranks, stated.context_size) == (False, True, False, 256)
    check_refused(engine, rpc, options, "an embedding model and can't generate text")
    assert call(engine, "Embedding", EMBEDDING).error is None


def test_a_reranking_model_does_nothing_else(engine: EngineProcess, tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "m.gguf", reranks=True)
    load(engine, tmp_path / "m.gguf")
    stated = metadata(engine)
    assert (stated.generates, stated.embeds, stated.reranks) == (False, False, True)
    check_refused(engine, "Predict", chat(), "a reranking model and can't generate text")
    check_refused(engine, "Embedding", EMBEDDING, "a reranking model and can't embed text")


def test_a_reranking_model_ranks_also_without_embeddings(engine: EngineProcess, tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "m.gguf", reranks=True)
    load(engine, tmp_path / "m.gguf", "embeddings:false")
    answer = call(engine, "Rerank", pb.RerankRequest(query="a", documents=["a bird", "snow"]))
    assert answer.error is None
    assert len(answer.replies[0].results) == 2


def test_nothing_is_said_without_a_model(engine: EngineProcess) -> None:
    answer = call(engine, "ModelMetadata", pb.ModelOptions())
    assert answer.error is not None
    assert answer.error.status is Status.FAILED_PRECONDITION
