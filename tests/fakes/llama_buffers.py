"""What real llama.cpp reserves for a model: its own report, read from the log of a process that loads it and ends."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from gateway.gguf.cache import LoadSettings

LOAD_SECONDS_MAX: Final = 60.0
VERBOSE: Final = 4
REAL_LOAD: Final = re.compile(r"no_alloc +=\s*0")
"""llama.cpp loads twice, the first time only to see what would fit."""
BUFFER: Final = re.compile(r"\S+ +(model|KV|RS|compute|output) buffer size = +([0-9.]+) MiB")


@dataclass(frozen=True)
class Buffers:
    """MiB."""

    weights: float
    cache: float
    compute: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.compute


def measure(path: Path, use: LoadSettings) -> Buffers:
    """Raises `AssertionError` with llama.cpp's last words when it does not load."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.llama_buffers", str(path), json.dumps(asdict(use))],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LOAD_SECONDS_MAX,
        check=False,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-2000:]
    return buffers_in(log)


def buffers_in(log: str) -> Buffers:
    begin = REAL_LOAD.search(log)
    assert begin, log[-2000:]
    sizes: defaultdict[str, float] = defaultdict(float)
    for kind, size in BUFFER.findall(log[begin.start() :]):
        sizes[kind] += float(size)
    return Buffers(sizes["model"], sizes["KV"] + sizes["RS"], sizes["compute"] + sizes["output"])


def load(path: str, use: LoadSettings) -> object:
    """As our engine loads it, but without a mapped file, which would count twice what llama.cpp repacks."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = use.parallel
    parameters.n_ctx = use.cells * use.parallel
    parameters.n_batch = parameters.n_ubatch = use.batch
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = xllamacpp.ggml_type[f"GGML_TYPE_{use.cache_type_k.upper()}"]
    parameters.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{use.cache_type_v.upper()}"]
    parameters.embedding = use.embeddings
    pooling = "MEAN" if use.embeddings else "UNSPECIFIED"
    parameters.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{pooling}"]
    flash = "AUTO" if use.flash_attention else "DISABLED"
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.warmup = False  # with weights of zero some models abort
    parameters.verbosity = VERBOSE
    parameters.cache_ram_mib = 0
    parameters.ui = False
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    loaded = load(sys.argv[1], LoadSettings(**json.loads(sys.argv[2])))
    sys.stdout.flush()
    os._exit(0)  # a server that is ended as soon as it is there may never get done
