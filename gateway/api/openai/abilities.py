"""Refuses parameters that need a backend that comes with the gateway.

The rule: a built-in backend is asked for everything. A program under `[backends.NAME]` is asked only for what the
classic fields of the protocol say (messages, tools, sampling, thinking). Nothing tells whether such a program reads the
other fields, and one that does not would ignore them, so these parameters are refused by name.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.domain.builtin_backends import BUILTIN_BACKENDS
from gateway.domain.errors import BadRequest
from gateway.domain.inference import EmbeddingInput, Generation, Text
from gateway.domain.model_spec import ModelSpec

UNSUPPORTED: Final = "unsupported_parameter"


def check_abilities(spec: ModelSpec, generations: Sequence[Generation]) -> None:
    """Raises `BadRequest` for a parameter that the model's backend, which is not built in, may not understand."""
    param = next((param for generation in generations for param in _special(generation)), None)
    if param is not None:
        raise unsupported_by(spec, param)


def check_inputs(spec: ModelSpec | None, inputs: Sequence[EmbeddingInput]) -> None:
    """Raises `BadRequest` for token ids that the model's backend may not read. It would embed an empty text then."""
    if spec is None or spec.backend in BUILTIN_BACKENDS or all(isinstance(item.text, Text) for item in inputs):
        return
    raise unsupported_by(spec, "input")


def unsupported_by(spec: ModelSpec, param: str) -> BadRequest:
    """Returns the error for a parameter that a program under `[backends.NAME]` is not asked for."""
    message = f"'{param}' is not supported for the model '{spec.name}': its backend '{spec.backend}' may not know it."
    return BadRequest(message, param=param, code=UNSUPPORTED)


def _special(generation: Generation) -> Iterator[str]:
    """Yields the parameters of a request that have no classic field."""
    if generation.grammar is not None:
        yield generation.grammar_param
    if generation.logprobs is not None:
        yield "logprobs"
    if generation.template is not None:
        yield "chat_template_kwargs"
    if generation.tokens:
        yield "prompt"
