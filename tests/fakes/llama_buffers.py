"""What real llama.cpp reserves for a model: its own report, read from the log of a process that loads it."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Final

from gateway.gguf.cache import LoadSettings

LOAD_SECONDS_MAX: Final = 60.0
PROGRAM: Final = Path(__file__).with_name("llama_load.py")
REAL_LOAD: Final = re.compile(r"no_alloc +=\s*0")
"""llama.cpp loads twice, the first time only to see what would fit."""
LOADED: Final = "model loaded"
"""The log says this behind everything about buffers."""
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
    command = [sys.executable, str(PROGRAM), str(path), settings]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        watchdog = Timer(LOAD_SECONDS_MAX, process.kill)
        watchdog.start()
        log = "".join(_lines_until_loaded(process))
        watchdog.cancel()
        process.kill()
    assert LOADED in log, log[-2000:]
    return buffers_in(log)


def _lines_until_loaded(process: "subprocess.Popen[str]") -> Iterator[str]:
    """llama.cpp writes its log from a thread of its own, so the last lines may come after the load has returned."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if LOADED in line:
            return


def buffers_in(log: str) -> Buffers:
    begin = REAL_LOAD.search(log)
    assert begin, log[-2000:]
    sizes: defaultdict[str, float] = defaultdict(float)
    for kind, size in BUFFER.findall(log[begin.start() :]):
        sizes[kind] += float(size)
    return Buffers(sizes["model"], sizes["KV"] + sizes["RS"], sizes["compute"] + sizes["output"])
