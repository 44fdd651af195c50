"""The programs of examples/clients/: each client library gets what people use it for from a gateway with `demo`."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.integration.harness import ROOT, GatewayProcess, running_gateway
from tests.programs import need_installed

CLIENTS: Final = ROOT / "examples" / "clients"
PYTHON: Final = ROOT / ".example-clients" / "bin" / "python"
NODE_MODULES: Final = CLIENTS / "node" / "node_modules"
PATIENCE_SECONDS: Final = 300.0
"""Some libraries take a minute to import on a busy machine."""
FLEET: Final = ("replicas", "size")
PROGRAMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "openai_objects.py": {"parse": FLEET, "stream": FLEET, "call": ("get_weather", "Paris"), "answer": ("Paris",)},
    "langchain_objects.py": {
        "json_schema": FLEET,
        "function_calling": FLEET,
        "json_mode": ("dict",),
        "call": ("get_weather", "Paris", "sunny"),
    },
    "instructor_objects.py": {"tool_call": FLEET, "json_schema_mode": FLEET, "partial": FLEET},
    "pydantic_ai_agent.py": {"object": FLEET, "tool output": FLEET, "called": ("Paris",), "answer": ("Paris",)},
    "llama_index_objects.py": {"object": FLEET, "chat": ("replica",)},
    "node/openai_tools.mjs": {"parse": FLEET, "called": ("Paris",), "answer": ("Paris",)},
    "node/ai_sdk_objects.mjs": {"object": FLEET, "stream": FLEET, "called": ("Paris",), "answer": ("Paris",)},
}
"""Each program, the lines that it prints, and the words of each line."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("clients")) as process:
        yield process


def command(program: str) -> list[str]:
    if program.endswith(".py"):
        need_installed(PYTHON, "make clients")
        return [str(PYTHON), str(CLIENTS / program)]
    need_installed(NODE_MODULES, "make clients")
    return ["node", str(CLIENTS / program)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_library_gets_what_it_asks_for(gateway: GatewayProcess, program: str) -> None:
    done = subprocess.run(
        command(program),
        env={**os.environ, "GATEWAY_URL": gateway.url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(printed) == list(PROGRAMS[program])
    for line, words in PROGRAMS[program].items():
        assert all(word in printed[line] for word in words), printed[line]


def test_each_program_is_run_and_described() -> None:
    programs = {str(path.relative_to(CLIENTS)) for path in (*CLIENTS.glob("*.py"), *CLIENTS.glob("node/*.mjs"))}
    assert programs == PROGRAMS.keys()
    readme = Path(CLIENTS / "README.md").read_text()
    assert all(f"]({program})" in readme for program in programs)
