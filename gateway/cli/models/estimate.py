"""`gateway estimate`: how much memory a GGUF file takes once it is loaded, without loading it."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from gateway.cli.outcome import FAILED, OK, USAGE, print_error
from gateway.cli.table import table
from gateway.domain.builtin_backends import LLAMA_CPP, default_prompt_cache_bytes
from gateway.domain.resources import MIB
from gateway.gguf.cache import LoadSettings
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.estimate import Estimate, estimate
from gateway.gguf.files import read_model

DEFAULTS: Final = LoadSettings()


def estimate_command(arguments: argparse.Namespace) -> int:
    """Prints how much memory a GGUF file takes. Returns the exit code, 2 for bad arguments and 1 for a bad file."""
    try:
        use = settings_of(arguments)
    except ValueError as error:
        print_error(str(error))
        return USAGE
    try:
        found = estimate(read_model(arguments.file), use, gpu_layers=arguments.gpu_layers)
    except (BrokenHeader, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print_error(f"can't estimate {arguments.file}: {reason}")
        return FAILED
    print(as_json(found) if arguments.json else "\n".join(estimate_lines(found, use)))
    return OK


def settings_of(arguments: argparse.Namespace) -> LoadSettings:
    """Reads the load settings from the command's arguments. Raises `ValueError` for a number out of range."""
    given = {"context": arguments.context, "parallel": arguments.parallel}
    for name, number in given.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, not {number}")
    if arguments.gpu_layers is not None and arguments.gpu_layers < 0:
        raise ValueError(f"--gpu-layers must not be negative: {arguments.gpu_layers}")
    return LoadSettings(
        context_size=given["context"] or DEFAULTS.context_size, parallel=given["parallel"] or DEFAULTS.parallel
    )


def as_json(found: Estimate) -> str:
    """Returns the estimate as a JSON object of bytes, layer counts and notes, with `total_bytes` added."""
    return json.dumps({**asdict(found), "total_bytes": found.total_bytes}, indent=2)


def estimate_lines(found: Estimate, use: LoadSettings) -> Iterator[str]:
    """Yields the lines of the estimate's table, then its notes. Pure."""
    rows = {
        "weights": found.weights_bytes,
        f"cache of {use.parallel} x {use.context_size} tokens": found.kv_bytes,
        "computation": found.compute_bytes,
        "total without a GPU": found.total_bytes,
        f"GPU, with {found.offloaded_layers} of {found.layers} layers": found.vram_bytes,
        "RAM beside it": found.ram_bytes,
        "prompt cache, at most": default_prompt_cache_bytes(LLAMA_CPP),
    }
    yield from table(
        ("what", "memory"), [{"what": name, "memory": f"{size / MIB:,.1f} MiB"} for name, size in rows.items()]
    )
    yield from (f"note: {note}" for note in found.notes)
