"""Text that is filled in by llama.cpp, compared with what its own endpoint for that writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.backends.metadata import SUFFIX_KEY
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.model import Model
from gateway.engines.llama_cpp.options import load_options
from gateway.engines.llama_cpp.requests import generation_request
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import prompt

BEFORE, AFTER = "the blue bird ", " on the stone bridge"


def loaded(folder: Path, *, infill: bool) -> Model:
    write_tiny_model(folder / "m.gguf", infill=infill)
    return Model(load_options(pb.ModelOptions(ModelFile=str(folder / "m.gguf"), ContextSize=512)))


def completed(model: Model, options: pb.PredictOptions) -> tuple[str, int]:
    """The text, and the number of tokens of the prompt."""
    chunks: list[Mapping[str, Any]] = []

    def keep(chunk: Mapping[str, Any]) -> bool:
        chunks.append(chunk)
        return False

    model.generate(generation_request(options, model.limits), keep)
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(texts), chunks[-1]["usage"]["prompt_tokens"]


def test_the_text_between_is_the_one_that_llama_cpp_itself_writes(tmp_path: Path) -> None:
    model = loaded(tmp_path, infill=True)
    assert model.metadata.infill
    options = prompt(BEFORE, {"temperature": 0, "max_tokens": 12, "reproducible": True})
    alone, _ = completed(model, options)
    options.Metadata[SUFFIX_KEY] = AFTER
    filled, prompt_tokens = completed(model, options)
    asked = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 12, "temperature": 0, "cache_prompt": False}
    own = model._ask("POST", "/infill", asked)
    assert filled == own["content"] != alone
    assert prompt_tokens == own["tokens_evaluated"]


def test_a_model_without_the_tokens_says_so(tmp_path: Path) -> None:
    assert not loaded(tmp_path, infill=False).metadata.infill
