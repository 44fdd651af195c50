"""What a gateway can tell of how much a model takes, from the model's file on its own machine."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.estimate import estimate_other, requirement_of
from gateway.gguf.files import read_model
from gateway.worker.artifacts.store import local_file

log = structlog.get_logger(__name__)

GGUF: Final = b"GGUF"


async def estimate_requirement(models_dir: Path, spec: ModelSpec) -> Requirement | None:
    """An `EstimateRequirement` once its first argument is given; reads the file in a thread."""
    return await trio.to_thread.run_sync(read_requirement, models_dir, spec, abandon_on_cancel=True)


def read_requirement(models_dir: Path, spec: ModelSpec) -> Requirement | None:
    """None: the file is not here, or is broken, which the load will say."""
    try:
        path = local_file(spec, models_dir)
        return _requirement(path, spec) if path is not None else None
    except (OSError, BrokenHeader) as error:
        log.info("model.not_estimated", model=spec.name, cause=str(error))
        return None


def _requirement(path: Path, spec: ModelSpec) -> Requirement:
    """Raises `OSError`, `BrokenHeader`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_gguf = file.read(len(GGUF)) == GGUF
    found = requirement_of(spec, read_model(path), size) if is_gguf else estimate_other(size)
    # What comes with the package has not to be fetched anywhere.
    return replace(found, disk_bytes=None) if spec.artifact.startswith("builtin:") else found
