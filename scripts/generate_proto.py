"""Generates the `pb` folders from proto/ with grpc_tools and grpclib's plugin.

`generate_into(folder)` is also what the freshness test calls, so that a check and a generation can't differ.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gateway/backends/pb": "backend.proto",
        "gateway/transport/pb": "worker.proto",
    }
)
"""Where each file's modules go. The package path is part of the virtual proto path, so that generated modules import
each other absolutely and our descriptor does not collide with another `backend.proto` in one process."""


def generate_into(folder: Path) -> None:
    """Writes the generated modules below `folder`, each into its package."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, proto in PACKAGES.items():
        _generate(folder, package, proto)


def _generate(folder: Path, package: str, proto: str) -> None:
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{package}={ROOT / 'proto'}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        f"--grpclib_python_out={folder}",
        f"{package}/{proto}",
    ]
    # The grpclib plugin is a script beside the interpreter, which need not be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})  # noqa: S603 - our own arguments


if __name__ == "__main__":
    generate_into(ROOT)
