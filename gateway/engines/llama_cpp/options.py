"""Reads the ModelOptions of a LoadModel call into the settings of a load. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import LoadError

CONTEXT_TOKENS_DEFAULT: Final = 4096
"""The default context size per request. llama.cpp lowers it to the context that the model was trained for."""
CONTEXT_STEP_TOKENS: Final = 256
"""The multiple to which llama.cpp rounds a slot's context up."""
PARALLEL_DEFAULT: Final = 4
PARALLEL_MAX: Final = 256
THREADS_MAX: Final = 1024
BATCH_TOKENS_DEFAULT: Final = 512
BATCH_TOKENS_MIN: Final = 32
BATCH_TOKENS_MAX: Final = 65_536
PROMPT_CACHE_BYTES_DEFAULT: Final = 256 * 2**20
PROMPT_CACHE_BYTES_MAX: Final = 2**50
BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "false": False}


@dataclass(frozen=True)
class LoadOptions:
    """The validated settings with which llama.cpp loads a model."""

    identity: str
    """The value that `ModelIdentity` of later calls must have, if they set it."""
    file: Path
    context_tokens: int
    """The number of tokens per request, prompt and answer together."""
    gpu_layers: int
    """The number of layers on GPUs. -1 means as many as llama.cpp thinks fit."""
    threads: int
    """The number of threads. 0 means one per physical core."""
    parallel: int
    batch_tokens: int
    """The number of prompt tokens between two chances to cancel. It is also the longest input of an embedding."""
    embeddings: bool
    pooling: str
    """How embeddings are pooled. `auto` means as the model says, or else the mean."""
    flash_attention: str
    """Whether flash attention is used. `auto` means as llama.cpp decides. With `off`, a generation with a seed repeats
    exactly even beside other calls (seen on CPUs), for more memory."""
    prompt_cache_bytes: int
    """The main memory for prompts of past requests, beside what each slot remembers of its last one."""
    reproducible: bool
    """Whether a request computes its whole prompt anew unless it says otherwise (see `sampling`)."""


def load_options(request: pb.ModelOptions) -> LoadOptions:
    """Returns the settings. Raises `LoadError` that names the option; an unknown option is refused, because it may
    matter to its author."""
    given = dict(_split(option) for option in request.Options)
    if unknown := sorted(given.keys() - OPTIONS.keys()):
        known = ", ".join(sorted(OPTIONS))
        raise LoadError(f"unknown option {unknown[0]!r}; known are {known}")
    values = {name: OPTIONS[name](name, text) for name, text in given.items()}
    parallel = values.get("parallel", PARALLEL_DEFAULT)
    return LoadOptions(
        identity=request.Model,
        file=_file(request),
        context_tokens=_round_up(_context_tokens(request), CONTEXT_STEP_TOKENS),
        gpu_layers=request.NGPULayers or -1,
        threads=values.get("threads", max(request.Threads, 0)),
        parallel=parallel,
        # With mean pooling llama.cpp aborts the process when the batch can't be shared evenly among the slots.
        batch_tokens=_round_up(values.get("batch", BATCH_TOKENS_DEFAULT), parallel),
        embeddings=values.get("embeddings", True),
        pooling=values.get("pooling", "auto"),
        flash_attention=values.get("flash_attention", "auto"),
        prompt_cache_bytes=values.get("prompt_cache", PROMPT_CACHE_BYTES_DEFAULT),
        reproducible=values.get("reproducible", False),
    )


def _split(option: str) -> tuple[str, str]:
    name, colon, value = option.partition(":")
    if not colon:
        raise LoadError(f"option {option!r} must be written as key:value")
    return name.strip(), value.strip()


def _file(request: pb.ModelOptions) -> Path:
    file = Path(request.ModelFile)
    if not file.is_absolute():
        raise LoadError(f"ModelFile must be an absolute path, not {request.ModelFile!r}")
    return file


def _context_tokens(request: pb.ModelOptions) -> int:
    if request.ContextSize < 0:
        raise LoadError(f"ContextSize must not be negative: {request.ContextSize}")
    return request.ContextSize or CONTEXT_TOKENS_DEFAULT


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


Reader = Callable[[str, str], Any]


def _integer(minimum: int, maximum: int) -> Reader:
    def read(name: str, text: str) -> int:
        """Returns the number. Raises `LoadError`."""
        if not (text.isascii() and text.isdecimal() and minimum <= int(text) <= maximum):
            raise LoadError(f"option {name} must be a whole number from {minimum} to {maximum}, not {text!r}")
        return int(text)

    return read


def _boolean(name: str, text: str) -> bool:
    if text not in BOOLEANS:
        raise LoadError(f"option {name} must be true or false, not {text!r}")
    return BOOLEANS[text]


def _one_of(*choices: str) -> Reader:
    def read(name: str, text: str) -> str:
        """Returns the text if it is one of the choices. Raises `LoadError`."""
        if text not in choices:
            raise LoadError(f"option {name} must be one of {', '.join(choices)}, not {text!r}")
        return text

    return read


OPTIONS: Final[Mapping[str, Reader]] = {
    "parallel": _integer(1, PARALLEL_MAX),
    "threads": _integer(0, THREADS_MAX),
    "batch": _integer(BATCH_TOKENS_MIN, BATCH_TOKENS_MAX),
    "embeddings": _boolean,
    "pooling": _one_of("auto", "none", "mean", "cls", "last", "rank"),
    "flash_attention": _one_of("auto", "on", "off"),
    "prompt_cache": _integer(0, PROMPT_CACHE_BYTES_MAX),
    "reproducible": _boolean,
}
"""The options that `ModelOptions.Options` may set, as `key:value`."""
