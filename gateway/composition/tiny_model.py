"""Writes `builtin:tiny` with code of our engine, which a worker does not know."""

from pathlib import Path

from gateway.worker.artifacts.reference import ArtifactError


def write_tiny_model(path: Path) -> None:
    """Writes the model file. It blocks. Raises `ArtifactError` if the llama extra is not installed."""
    try:
        from gateway.engines.llama_cpp.tiny_model import write_tiny_model as write  # here, since it needs that extra
    except ImportError as error:
        raise ArtifactError("builtin:tiny needs the llama extra: pip install 'gateway[llama]'") from error
    write(path)
