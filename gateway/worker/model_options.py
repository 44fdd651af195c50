"""What LoadModel is asked, and how long it may take."""

from typing import Final

from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.model_spec import DEFAULT_PARALLEL, ModelSpec
from gateway.worker.artifacts.store import Artifact

LOAD_SECONDS_BASE: Final = 5 * 60.0
LOAD_SECONDS_PER_GIB: Final = 20.0
LOAD_SECONDS_MAX: Final = 6 * 3600.0
GIB: Final = 1024**3


def model_options(spec: ModelSpec, artifact: Artifact) -> pb.ModelOptions:
    """What is not set stays at the protocol's zero, which backends read as their own default."""
    return pb.ModelOptions(
        Model=spec.name,
        ModelFile=str(artifact.path or ""),
        ContextSize=spec.context_size or 0,
        NGPULayers=spec.gpu_layers or 0,
        Options=[f"{key}:{value}" for key, value in _options(spec).items()],
    )


def _options(spec: ModelSpec) -> dict[str, str]:
    """`parallel` is said to backends that know it, and to others when the operator did: an option that a foreign
    backend has never heard of may make it fail."""
    passes_parallel = spec.parallel is not None or spec.backend in DEFAULT_PARALLEL
    return {**spec.options, **({"parallel": str(spec.slots)} if passes_parallel else {})}


def load_seconds_max(spec: ModelSpec, size_bytes: int) -> float:
    """The time LoadModel may take: what the spec says, else by the artifact's size (L7)."""
    if spec.load_timeout_seconds is not None:
        return spec.load_timeout_seconds
    return min(LOAD_SECONDS_BASE + LOAD_SECONDS_PER_GIB * size_bytes / GIB, LOAD_SECONDS_MAX)
