"""How other gateways are started in front of the upstream, where they are installed.

Their settings are those with which they do the least: one worker process, no retries, no cache, warnings only.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bench.serving.servers import MODEL, Command

METRICS_PORT_OFFSET: Final = 1
LITELLM_KEY: Final = "sk-bench"
LITELLM_ENVIRONMENT: Final = {
    "LITELLM_MASTER_KEY": LITELLM_KEY,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_ADMIN_UI": "True",
}
LITELLM_CONFIG: Final = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "{upstream}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0, request_timeout: 600, set_verbose: false, json_logs: false}}
general_settings: {{disable_spend_logs: true, disable_error_logs: true}}
"""


class Peer(NamedTuple):
    """A gateway of others, as its package calls it."""

    package: str
    program: str
    make: Callable[[str, int, str, Path], Sequence[str]]
    """Returns the command, by program, port, URL of the upstream and folder."""


def _router(subcommand: Sequence[str], log_level: str) -> Callable[[str, int, str, Path], Sequence[str]]:
    """The three routers in Rust have one origin, and nearly the same options."""

    def make(program: str, port: int, upstream: str, _folder: Path) -> Sequence[str]:
        address = ("--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream)
        metrics = ("--prometheus-port", str(port + METRICS_PORT_OFFSET), "--log-level", log_level)
        return (program, *subcommand, *address, "--policy", "round_robin", *metrics)

    return make


def _litellm(program: str, port: int, upstream: str, folder: Path) -> Sequence[str]:
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(model=MODEL, upstream=upstream))
    address = ("--host", "127.0.0.1", "--port", str(port))
    return (program, "--config", str(config), *address, "--telemetry", "False", "--num_workers", "1")


PEERS: Final = (
    Peer("vllm-router", "vllm-router", _router((), "warning")),
    Peer("sglang-router", "sglang-router", _router(("launch",), "warn")),
    Peer("smg", "smg", _router(("launch",), "warn")),
    Peer("litellm", "litellm", _litellm),
)


def installed_peers(folder: Path, upstream: str) -> Iterator[Command]:
    """Yields the peers that are installed below the folder or on the path, and prints which are not."""
    for peer in PEERS:
        program = find_program(folder, peer.program)
        if program is None:
            print(f"{peer.package} is not installed: left out.")
            continue
        is_litellm = peer.package == "litellm"
        yield Command(
            peer.package,
            _version(Path(program), peer.package),
            partial(_command, peer, program, upstream),
            LITELLM_ENVIRONMENT if is_litellm else {},
            bearer=LITELLM_KEY if is_litellm else "",
        )


def _command(peer: Peer, program: str, upstream: str, port: int, folder: Path) -> Sequence[str]:
    return peer.make(program, port, upstream, folder)


def find_program(folder: Path, name: str) -> str | None:
    """Returns the program in one of the environments below the folder, or else on the path; None if it is nowhere."""
    found = sorted(folder.glob(f"*/bin/{name}"))
    return str(found[0].absolute()) if found else shutil.which(name)


def _version(program: Path, package: str) -> str:
    python = program.parent / "python"
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    if not python.exists():
        return "unknown"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
