"""How much of a prompt llama.cpp computes again when a conversation goes on, or comes back after others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.model import Model
from gateway.engines.llama_cpp.options import load_options
from gateway.engines.llama_cpp.requests import generation_request
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import chat

FIRST_TURN = "the quiet river and the old stone bridge by the mountain road in the early morning light " * 4
SECOND_TURN = FIRST_TURN + "and the long winter night"
ANOTHER = "a red bird " * 40


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt-cache") / "tiny.gguf"
    write_tiny_model(path)
    return path


def loaded(weights: Path, *options: str) -> Model:
    return Model(load_options(pb.ModelOptions(ModelFile=str(weights), Options=["parallel:1", *options])))


def tokens(model: Model, text: str, **sampling: object) -> tuple[int, int]:
    """The tokens of the prompt that were computed, and those that were known."""
    chunks: list[Mapping[str, Any]] = []
    request = generation_request(chat(text, {"max_tokens": 2, **sampling}), model.limits)

    def keep(chunk: Mapping[str, Any]) -> bool:
        chunks.append(chunk)
        return False

    model.generate(request, keep)
    timings = chunks[-1]["timings"]
    return timings["prompt_n"], timings["cache_n"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"seed": 5}, {"temperature": 0, "seed": 5}])
def test_the_second_turn_computes_only_what_is_new(weights: Path, sampling: dict[str, Any]) -> None:
    model = loaded(weights)
    first, _ = tokens(model, FIRST_TURN, **sampling)
    again, known = tokens(model, SECOND_TURN, **sampling)
    assert first > 60
    assert again < 25
    assert known >= first - 20


@pytest.mark.parametrize(
    ("option", "of_request"), [("reproducible:true", {}), ("reproducible:false", {"reproducible": True})]
)
def test_what_has_to_be_reproducible_is_computed_anew(weights: Path, option: str, of_request: dict[str, Any]) -> None:
    model = loaded(weights, option)
    first, _ = tokens(model, FIRST_TURN, temperature=0, **of_request)
    assert tokens(model, FIRST_TURN, temperature=0, **of_request) == (first, 0)


def test_a_request_may_use_the_cache_although_its_model_is_reproducible(weights: Path) -> None:
    model = loaded(weights, "reproducible:true")
    first, _ = tokens(model, FIRST_TURN, reproducible=False)
    assert tokens(model, FIRST_TURN, reproducible=False) == (1, first - 1)


@pytest.mark.parametrize(("size", "is_kept"), [(64 * 2**20, True), (0, False)])
def test_a_conversation_that_comes_back_is_known_if_there_is_memory_for_it(
    weights: Path, size: int, is_kept: bool
) -> None:
    """One slot, so the other conversation has taken its place meanwhile."""
    model = loaded(weights, f"prompt_cache:{size}")
    tokens(model, FIRST_TURN)
    tokens(model, ANOTHER)
    again, _ = tokens(model, SECOND_TURN)
    assert (again < 20) == is_kept


def test_p2_the_memory_for_past_prompts_is_bounded(weights: Path) -> None:
    """1 MiB has no room for both. llama.cpp drops the oldest."""
    model = loaded(weights, f"prompt_cache:{2**20}")
    texts = [f"{number} {ANOTHER * 20}" for number in range(3)]
    first = [tokens(model, text)[0] for text in texts]
    assert tokens(model, texts[0])[0] > first[0] - 20
