"""Compares the models of a configuration with those of their files that are on this machine."""

from collections.abc import Iterator

from gateway.config.model import Config
from gateway.config.problems import format_path
from gateway.domain.model_spec import ModelSpec, context_warning
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.files import read_file
from gateway.worker.artifacts.store import local_file


def read_file_warnings(config: Config) -> Iterator[str]:
    """Yields a sentence for each model whose file says that it will be loaded in another way than configured. A file
    that can't be read gives none: its load will name the fault. It blocks."""
    for index, entry in enumerate(config.models):
        spec = entry.to_spec()
        warning = context_warning(spec, _trained_context_tokens(spec, config))
        if warning is not None:
            yield f"{format_path(('models', index, 'context_size'))}: {warning} (model {spec.name})"


def _trained_context_tokens(spec: ModelSpec, config: Config) -> int | None:
    try:
        path = local_file(spec, config.worker.models_dir) if spec.context_size is not None else None
        header = None if path is None else read_file(path)
    except (OSError, BrokenHeader):
        return None
    found = None if header is None else header.metadata.get(f"{header.architecture}.context_length")
    return found if isinstance(found, int) else None
