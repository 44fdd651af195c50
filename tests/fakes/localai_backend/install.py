"""Installs the backend as LocalAI does: a folder with run.sh, backend.py, stubs made from the proto, a Python."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PROTO: Final = HERE.parents[2] / "proto"


def install_backend(folder: Path) -> Path:
    """Returns the script that starts it. The files are used as they are; a test sets nothing but options and
    environment."""
    for name in ("run.sh", "backend.py"):
        shutil.copy(HERE / name, folder)
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # No link: a Python that is reached by a link finds no packages of the environment that it belongs to.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    outputs = (f"--python_out={folder}", f"--grpc_python_out={folder}")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, "backend.proto"], check=True)
    return folder / "run.sh"
