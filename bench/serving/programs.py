"""Makes the upstream and the load generator: C programs where a compiler is, else those in Python."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.serving.load_result import LoadResult
from bench.serving.processes import CORE_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]
NATIVE: Final = ROOT / "bench" / "native"
COMPILERS: Final = ("cc", "gcc", "clang")
SOURCES: Final[Mapping[str, Sequence[str]]] = {
    "upstream": ("upstream.c", "upstream_grpc.c"),
    "load": ("load.c",),
    "hpack_dump": ("hpack_dump.c",),
}
LOAD_SECONDS_MAX: Final = 600.0


@dataclass(frozen=True)
class Programs:
    """Commands of upstream and load generator, which run on `core`."""

    language: str
    upstream: Sequence[str]
    load: Sequence[str]
    core: int

    def environment(self) -> dict[str, str]:
        """Returns the variables with which both have to be started."""
        return {CORE_VARIABLE: str(self.core), "PYTHONPATH": str(ROOT)}

    def start_load(self, arguments: Mapping[str, object]) -> "subprocess.Popen[str]":
        """Starts the load generator with these options; `wait_load` returns its result."""
        options = [f"--{name}={value}" for name, value in arguments.items()]
        environment = {**os.environ, **self.environment()}
        return subprocess.Popen([*self.load, *options], stdout=subprocess.PIPE, text=True, env=environment)


def wait_load(process: "subprocess.Popen[str]") -> LoadResult:
    """Raises `RuntimeError` if the load generator failed."""
    try:
        output, _ = process.communicate(timeout=LOAD_SECONDS_MAX)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"The load generator ended with {process.returncode}: {output}")
    return LoadResult.parse(output)


@contextmanager
def open_programs(core: int, *, compiler: str | None = None) -> Iterator[Programs]:
    """Compiles the programs into a folder that is gone afterwards. `compiler`: "" for the programs in Python."""
    found = find_compiler() if compiler is None else compiler
    if not found:
        python = (sys.executable, "-m")
        upstream, load = (*python, "bench.serving.python_upstream"), (*python, "bench.serving.python_load")
        yield Programs("Python", upstream, load, core)
        return
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        compiled = [str(compile_program(found, name, Path(folder))) for name in ("upstream", "load")]
        yield Programs("C", compiled[:1], compiled[1:], core)


def find_compiler() -> str | None:
    """Returns a C compiler, or None if there is none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def compile_program(compiler: str, name: str, folder: Path) -> Path:
    """Returns the compiled program. Raises `CalledProcessError` if the compiler refuses it."""
    target = folder / name
    sources = [str(NATIVE / each) for each in SOURCES[name]]
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(target), *sources], check=True)
    return target
