"""The backend programs that come with the gateway, and what the rest of it may rely on with each. Pure."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gateway.domain.resources import MIB

LLAMA_CPP: Final = "llama-cpp"


@dataclass(frozen=True)
class BuiltinBackend:
    """The properties of one built-in backend program. None of them is assumed of a program under `[backends.NAME]`."""

    default_parallel: int
    """The number of requests that one replica serves at a time if the model does not say."""
    prompt_cache_bytes: int
    """The main memory for prompts of past requests if the model does not say."""
    refuses_when_full: bool = True
    """Whether it refuses a call at once while all its slots are taken."""
    drains_on_term: bool = True
    """Whether it finishes its open calls after SIGTERM and then ends."""


BUILTIN_BACKENDS: Final[Mapping[str, BuiltinBackend]] = MappingProxyType(
    {LLAMA_CPP: BuiltinBackend(default_parallel=4, prompt_cache_bytes=256 * MIB)}
)
REFUSING: Final = frozenset(name for name, backend in BUILTIN_BACKENDS.items() if backend.refuses_when_full)
DEFAULT_PARALLEL: Final = 1
"""The number of parallel requests of a program that is not built in."""


def default_parallel(backend: str) -> int:
    """Returns how many requests a replica on that backend serves at a time if its model does not say."""
    ours = BUILTIN_BACKENDS.get(backend)
    return DEFAULT_PARALLEL if ours is None else ours.default_parallel


def default_prompt_cache_bytes(backend: str) -> int:
    """Returns how much main memory a replica on that backend keeps for past prompts if its model does not say."""
    ours = BUILTIN_BACKENDS.get(backend)
    return 0 if ours is None else ours.prompt_cache_bytes


def refusing_backends(configured: Container[str], refusing: frozenset[str]) -> frozenset[str]:
    """Returns the backends that refuse calls when they are full: `refusing`, and ours that no section replaces."""
    return refusing | {name for name in REFUSING if name not in configured}
