"""The files of examples/: each of them is run as its README says, without a change."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.cli.parser import build_parser
from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.config.units import parse_duration
from tests.integration.harness import ROOT, WAIT_SECONDS, GatewayProcess, running_gateway

EXAMPLES: Final = ROOT / "examples"
UNIT: Final = EXAMPLES / "gateway.service"
REPLICA: Final = "replica"
"""The word on which both chats ask for an answer first."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One that was started in a copy of the repository, as the README says."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("examples", "proto"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    with running_gateway(folder, args=("--config", "examples/config.toml")) as gateway:
        yield gateway


def run(gateway: GatewayProcess, *argv: str) -> str:
    """What the example prints. It has to succeed, and to print no warning."""
    done = subprocess.run(
        argv,
        cwd=gateway.folder,
        env={**os.environ, "GATEWAY_URL": gateway.url},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def streamed_text(lines: list[str]) -> str:
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks: list[dict[str, Any]] = [json.loads(event) for event in events[:-1]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.needs_programs("curl")
def test_curl_gets_a_whole_and_a_streamed_answer(gateway: GatewayProcess) -> None:
    whole, *events = run(gateway, "sh", "examples/chat.sh").splitlines()
    assert REPLICA in json.loads(whole)["choices"][0]["message"]["content"]
    assert "lease" in streamed_text(events)


@pytest.mark.needs_programs("curl")
def test_the_backend_of_the_example_answers(gateway: GatewayProcess) -> None:
    whole, *events = run(gateway, "sh", "examples/chat.sh", "echo").splitlines()
    assert json.loads(whole)["choices"][0]["message"]["content"].strip() == "What is a replica?"
    assert streamed_text(events).strip() == "What is a lease?"


def test_the_official_client_gets_a_whole_and_a_streamed_answer(gateway: GatewayProcess) -> None:
    models, whole, streamed = run(gateway, sys.executable, "examples/chat.py").splitlines()
    assert models == "models: demo, echo"
    assert REPLICA in whole
    assert "lease" in streamed


def test_the_backend_of_the_example_refuses_other_tokens_and_models(gateway: GatewayProcess) -> None:
    """What the protocol asks of every backend, so that nobody starts from an example that lacks it."""
    probe = """
import grpc, sys
sys.path.append("proto")
pb, services = grpc.protos_and_services("backend.proto")
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        services.BackendStub(channel).Health(pb.HealthMessage(), metadata=[("authorization", "Bearer other")])
    except grpc.RpcError as error:
        print(error.code().name)
"""
    gateway.chat("echo").raise_for_status()
    (replica,) = (each for each in gateway.status()["replicas"] if each["model"] == "echo")
    assert run(gateway, sys.executable, "-c", probe, replica["address"]) == "UNAUTHENTICATED\n"


def test_the_backend_of_the_example_is_short(gateway: GatewayProcess) -> None:
    lines = (EXAMPLES / "backend.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 45


def service() -> dict[str, str]:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # systemd's names are case-sensitive
    parser.read(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]
    return dict(parser["Service"])


def test_the_unit_starts_the_program_where_it_may_write() -> None:
    settings = service()
    program, *arguments = settings["ExecStart"].split()
    parsed = build_parser().parse_args(arguments)
    assert (program, parsed.run) == ("/opt/gateway/bin/gateway", "gateway.cli.processes.serve:serve")
    assert Path(settings["WorkingDirectory"]) == Path("/var/lib") / settings["StateDirectory"]
    assert parse_duration(settings["TimeoutStopSec"]) > Config().server.drain_timeout


@pytest.mark.needs_programs("systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/gateway/bin/gateway", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_names_each_file() -> None:
    named = set(re.findall(r"^\| \[([\w.]+)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}


def test_the_configuration_is_one() -> None:
    assert load_config(EXAMPLES / "config.toml", {}).models[0].name == "echo"
