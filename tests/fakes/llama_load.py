"""A program that loads a model into llama.cpp: `llama_load.py FILE SETTINGS`, with the settings as JSON. It is killed
when its log has told what it is asked for.

It is run by its path and imports nothing of ours, because the imports would take longer than the load of a small model.
"""

import json
import signal
import sys
from typing import Any, Final

import xllamacpp

VERBOSE: Final = 4


def load(path: str, settings: dict[str, Any]) -> object:
    """As our engine loads it, but without a mapped file, which would count twice what llama.cpp repacks."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = settings["parallel"]
    parameters.n_ctx = settings["cells"] * settings["parallel"]
    parameters.n_batch = parameters.n_ubatch = settings["batch"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = xllamacpp.ggml_type[f"GGML_TYPE_{settings['cache_type_k'].upper()}"]
    parameters.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{settings['cache_type_v'].upper()}"]
    parameters.embedding = settings["embeddings"]
    pooling = "MEAN" if settings["embeddings"] else "UNSPECIFIED"
    parameters.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{pooling}"]
    flash = "AUTO" if settings["flash_attention"] else "DISABLED"
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.warmup = False  # with weights of zero some models abort
    parameters.verbosity = VERBOSE
    parameters.cache_ram_mib = 0
    parameters.ui = False
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    loaded = load(sys.argv[1], json.loads(sys.argv[2]))
    signal.pause()
