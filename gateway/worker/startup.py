"""Brings a started process to a loaded model: it calls Health until the process answers, then loads, each within its
time limit."""

from dataclasses import dataclass
from typing import Final

import trio

from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import BackendControl, BackendNotReady, LoadFailed
from gateway.domain.builtin_backends import BUILTIN_BACKENDS
from gateway.domain.ids import Address
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.resources import GIB, format_bytes
from gateway.worker.artifacts.store import Artifact

HEALTH_TIMEOUT_SECONDS: Final = 2.0
HEALTH_INTERVAL_SECONDS: Final = 0.05
HEALTH_INTERVAL_GROWTH: Final = 1.5
HEALTH_INTERVAL_SECONDS_MAX: Final = 0.5
"""The longest pause between two questions. Backends written in Python come up in half a second or in a minute, so
they are asked often first, then less."""
METADATA_SECONDS_MAX: Final = 10.0
LOAD_SECONDS_BASE: Final = 5 * 60.0
LOAD_SECONDS_PER_GIB: Final = 20.0
LOAD_SECONDS_MAX: Final = 6 * 3600.0


def model_options(spec: ModelSpec, artifact: Artifact) -> pb.ModelOptions:
    """Returns the request that loads the model. A value that is not set stays zero, which backends read as their own
    default."""
    return pb.ModelOptions(
        Model=spec.name,
        ModelFile=str(artifact.path or ""),
        ContextSize=spec.context_tokens or 0,
        NGPULayers=spec.gpu_layers or 0,
        Options=[f"{key}:{value}" for key, value in _options(spec).items()],
    )


def _options(spec: ModelSpec) -> dict[str, str]:
    """Returns the options for a backend. A foreign backend gets only keys that the operator set, because an unknown
    option may make it fail."""
    ours = spec.backend in BUILTIN_BACKENDS
    keys = {
        "parallel": str(spec.slots) if ours or spec.parallel is not None else None,
        "prompt_cache": str(spec.prompt_cache_bytes) if ours or spec.prompt_cache is not None else None,
        "reproducible": "true" if spec.reproducible else None,
    }
    return {**spec.options, **{name: value for name, value in keys.items() if value is not None}}


def load_seconds_max(spec: ModelSpec, size_bytes: int) -> float:
    """Returns the seconds that LoadModel may take: the spec's value, or else a time that follows from the artifact's
    size (L7)."""
    if spec.load_timeout_seconds is not None:
        return spec.load_timeout_seconds
    return min(LOAD_SECONDS_BASE + LOAD_SECONDS_PER_GIB * size_bytes / GIB, LOAD_SECONDS_MAX)


def capabilities_of(metadata: pb.ModelMetadataResponse) -> Capabilities:
    """Returns what the backend says. LocalAI's own field can say only that a model thinks, never that it does not."""
    return Capabilities(
        generates=metadata.generates if metadata.HasField("generates") else None,
        embeds=metadata.embeds if metadata.HasField("embeds") else None,
        reranks=metadata.reranks if metadata.HasField("reranks") else None,
        context_tokens=metadata.context_size or None,
        tools=metadata.tools if metadata.HasField("tools") else None,
        thinking=metadata.thinking if metadata.HasField("thinking") else metadata.supports_thinking or None,
        schema=metadata.schema if metadata.HasField("schema") else None,
        vision=metadata.vision if metadata.HasField("vision") else None,
        infill=metadata.infill if metadata.HasField("infill") else None,
    )


@dataclass(frozen=True)
class BackendClient:
    """The worker's client of one backend process."""

    control: BackendControl
    address: Address
    token: str

    async def wait_healthy(self, timeout_seconds: float) -> None:
        """Waits until Health answers. Raises `BackendNotReady` after `timeout_seconds`, with the last answer (L21)."""
        interval, last_answer = HEALTH_INTERVAL_SECONDS, "no answer"
        with trio.move_on_after(timeout_seconds):
            while (answer := await self._ask_health()) is not None:
                last_answer = answer
                await trio.sleep(interval)
                interval = min(interval * HEALTH_INTERVAL_GROWTH, HEALTH_INTERVAL_SECONDS_MAX)
            return
        raise BackendNotReady(f"the backend was not ready within {timeout_seconds:g} s of its start ({last_answer})")

    async def _ask_health(self) -> str | None:
        """Calls Health. Returns None if the backend is healthy, or else what is wrong."""
        with trio.move_on_after(HEALTH_TIMEOUT_SECONDS):
            try:
                await self.control.health(self.address, self.token, HEALTH_TIMEOUT_SECONDS)
            except BackendNotReady as error:
                return str(error)
            return None
        return f"Health did not answer within {HEALTH_TIMEOUT_SECONDS:g} s"

    async def load(self, spec: ModelSpec, artifact: Artifact) -> None:
        """Loads the model. Raises `LoadFailed`, also when the time for a model of this size is over (L7). It makes no
        Health calls meanwhile, because an engine may block everything, signals included, for the whole load (pitfall
        34)."""
        seconds = load_seconds_max(spec, artifact.size_bytes)
        with trio.move_on_after(seconds):
            await self.control.load_model(self.address, self.token, model_options(spec, artifact), seconds)
            return
        raise LoadFailed(
            f"loading timed out after {seconds:g} s (budget for {format_bytes(artifact.size_bytes, round_up=True)}); "
            "raise the model's load_timeout"
        )

    async def ask_capabilities(self, spec: ModelSpec, artifact: Artifact) -> Capabilities | None:
        """Asks what the loaded model can do. Returns None if the backend does not say."""
        options = model_options(spec, artifact)
        metadata = await self.control.model_metadata(self.address, self.token, options, METADATA_SECONDS_MAX)
        return None if metadata is None else capabilities_of(metadata)
