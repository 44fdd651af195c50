"""What real llama.cpp reserves for a model: its own report, read from the log of a process that loads it and ends."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from gateway.gguf.cache import LoadSettings

LOAD_SECONDS_MAX: Final = 60.0
PROGRAM: Final = Path(__file__).with_name("llama_load.py")
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
    settings = json.dumps({**asdict(use), "cells": use.cells, "batch": use.batch})
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(path), settings],
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
