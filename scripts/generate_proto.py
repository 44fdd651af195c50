"""Generates gateway/backends/pb from proto/ with grpc_tools and grpclib's plugin.

`generate_into(folder)` is also what the freshness test calls, so that a check and a generation can't differ.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The package path is part of the virtual proto path, so that generated modules import each other absolutely and our
# descriptor does not collide with another `backend.proto` in one process.
PACKAGE = "gateway/backends/pb"
PROTOS = ("backend.proto",)


def generate_into(folder: Path) -> None:
    """Writes the generated modules below `folder`/gateway/backends/pb."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PACKAGE}={ROOT / 'proto'}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        f"--grpclib_python_out={folder}",
        *(f"{PACKAGE}/{name}" for name in PROTOS),
    ]
    # The grpclib plugin is a script beside the interpreter, which need not be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})  # noqa: S603 - our own arguments


if __name__ == "__main__":
    generate_into(ROOT)
