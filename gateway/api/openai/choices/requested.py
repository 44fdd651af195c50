"""The choices of one request: several answers to a prompt, and several prompts. Each is a generation of its own.

So they work with every backend, and each of them waits for a slot as a request of its own would.
"""

from collections.abc import Sequence
from dataclasses import replace

from gateway.api.http.json_body import INVALID_VALUE, UNSUPPORTED_VALUE
from gateway.api.openai.parameters import CHOICES_MAX, wire_seed
from gateway.domain.errors import BadRequest
from gateway.domain.inference import Generation


def repeated(generations: Sequence[Generation], copies: int) -> tuple[Generation, ...]:
    """Returns `copies` of each generation. Each copy has a seed of its own, if the request has one, because equal ones
    would give equal answers."""
    return tuple(_copy(generation, index) for generation in generations for index in range(copies))


def _copy(generation: Generation, index: int) -> Generation:
    seed = generation.sampling.seed
    if seed is None or index == 0:
        return generation
    return replace(generation, sampling=replace(generation.sampling, seed=wire_seed(seed + index)))


def check_choices(prompts: Sequence[object], *, n: int | None, best_of: int | None) -> None:
    """Raises `BadRequest` for too many choices, and for answers that would be made and not shown."""
    if len(prompts) * (n or 1) > CHOICES_MAX:
        message = f"Invalid value for 'n': 'n' times the number of prompts must be at most {CHOICES_MAX}."
        raise BadRequest(message, param="n", code=INVALID_VALUE)
    if best_of is not None and best_of != (n or 1):
        message = "Invalid value for 'best_of': only the value of 'n' is supported; no answer is made and not shown."
        raise BadRequest(message, param="best_of", code=UNSUPPORTED_VALUE)


def chat_alternatives(logprobs: bool | None, top: int | None) -> int | None:
    """Returns the number of alternatives to each token, or None for no probabilities. Raises `BadRequest`."""
    if top is not None and not logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise BadRequest(message, param="top_logprobs", code=INVALID_VALUE)
    return (top or 0) if logprobs else None
