"""The files of deploy/ and the examples of docs/: they fit together, and what they set is what the program takes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.cli import main
from gateway.cli.outcome import OK
from gateway.cli.parser import build_parser
from gateway.config.load import load_config, parse_config
from gateway.config.model import Config
from gateway.config.units import parse_duration
from gateway.worker.membership import LEAVE_SECONDS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "config.toml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLACK_SECONDS = 10.0
"""Beyond the drain: backends that have to be killed, goodbyes."""


def toml_blocks() -> Iterator[Any]:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for number, text in enumerate(TOML_BLOCK.findall(page.read_text()), 1):
            yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.mark.parametrize("text", list(toml_blocks()))
def test_examples_of_the_guides_are_configurations(text: str, tmp_path: Path) -> None:
    for name in ("join-token", "cluster-secret"):
        (tmp_path / name).write_text("change-me\n")
    parse_config(text, {}, folder=tmp_path)


def test_the_guide_of_the_fleet_has_an_example() -> None:
    assert TOML_BLOCK.search((ROOT / "docs" / "fleet.md").read_text())


def test_the_configuration_of_the_fleet_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(FILE)]) == OK
    assert capsys.readouterr().out == "ok\n"


def variables(path: Path) -> dict[str, str]:
    """Of an environment file, as systemd and compose read it: quotes around a value are not of it."""
    pairs = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value.strip("'") for name, _, value in pairs}


def configured(arguments: list[str], environ: Mapping[str, str]) -> Config:
    """What a command of the program would run with, with the configuration file of deploy/. Fails on bad usage."""
    parsed = build_parser().parse_args(arguments)
    assert parsed.config == Path("/etc/gateway/config.toml")
    return load_config(FILE, environ, {"server.host": getattr(parsed, "host", None)})


def assert_is_gateway_of_a_fleet(config: Config) -> None:
    assert config.registry.url.startswith("postgresql://")
    assert not config.server.is_loopback
    assert not config.worker.embedded
    assert None not in (config.auth.cluster_secret, config.auth.join_token)


# Compose


@pytest.fixture
def compose() -> Any:
    yaml = pytest.importorskip("yaml")
    given = variables(DEPLOY / ".env.example")
    text = re.sub(r"\$\{(\w+):\?\}", lambda match: given[match[1]], (DEPLOY / "compose.yaml").read_text())
    assert "${" not in text
    return yaml.safe_load(text)


def test_compose_starts_gateways_that_are_one_fleet(compose: Any) -> None:
    services = {name: each for name, each in compose["services"].items() if name.startswith("gateway-")}
    configs = [configured(each["command"], each["environment"]) for each in services.values()]
    assert len(configs) == 2
    for config in configs:
        assert_is_gateway_of_a_fleet(config)
        assert {key.role for key in config.auth.api_keys} == {"inference", "admin"}
        database = urlsplit(config.registry.url)
        assert database.hostname == "db"
        assert database.password == compose["services"]["db"]["environment"]["POSTGRES_PASSWORD"]


def test_composes_workers_know_all_gateways_and_no_secret_but_their_own(compose: Any) -> None:
    services = compose["services"]
    workers = {name: each for name, each in services.items() if name.startswith("worker-")}
    assert len(workers) == 3
    for name, each in workers.items():
        joined = build_parser().parse_args(each["command"]).join.split(",")
        assert {urlsplit(url).hostname for url in joined} == {one for one in services if one.startswith("gateway-")}
        config = configured(each["command"], each["environment"])
        assert {urlsplit(url).port for url in joined} == {config.server.port}
        assert each["environment"].keys() == {"GATEWAY_JOIN_TOKEN"}
        assert f"{name}:{config.server.data_dir}" in each["volumes"], "it would forget who it is"
        assert name in compose["volumes"]


def test_compose_lets_requests_finish(compose: Any) -> None:
    for name, each in compose["services"].items():
        if name.startswith(("gateway-", "worker-")):
            assert parse_duration(each["stop_grace_period"]) > Config().server.drain_timeout + SLACK_SECONDS


def test_compose_names_files_that_are_there(compose: Any) -> None:
    for each in compose["services"].values():
        mounted = [volume.partition(":")[0] for volume in each.get("volumes", ()) if volume.startswith(".")]
        assert all((DEPLOY / path).is_file() for path in mounted)
    assert (ROOT / compose["services"]["gateway-1"]["build"]["dockerfile"]).is_file()


# The load balancer


def lines_of(name: str) -> list[str]:
    return [line.strip() for line in (DEPLOY / name).read_text().splitlines()]


def test_the_balancer_knows_the_gateways_and_waits_longer_than_they_do(compose: Any) -> None:
    lines = lines_of("haproxy.cfg")
    servers = {line.split()[2] for line in lines if line.startswith("server ")}
    assert servers == {f"{name}:{Config().server.port}" for name in compose["services"] if name.startswith("gateway-")}
    assert any(line.startswith("http-check send meth GET uri /readyz") for line in lines)
    waits = Config().routing.load_wait + Config().routing.queue_timeout
    for side in ("client", "server"):
        (limit,) = (line.split()[2] for line in lines if line.startswith(f"timeout {side} "))
        assert parse_duration(limit) > waits
    assert "retry-on conn-failure" in lines, "it would send again what a gateway has had"


# Units of systemd


def settings_of(unit: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in unit.read_text().splitlines() if not line.startswith(("#", "[")))
    return {name: value for name, _, value in pairs if name}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_the_program_with_their_environment(unit: Path) -> None:
    settings = settings_of(unit)
    name = Path(settings["EnvironmentFile"]).name
    environ = variables(DEPLOY / "systemd" / f"{name}.example")
    command = [part.replace("${GATEWAY_URLS}", environ.get("GATEWAY_URLS", "")) for part in _command(settings)]
    config = configured(command, environ)
    assert Path(settings["WorkingDirectory"]) == config.server.data_dir == Path("/var/lib") / settings["StateDirectory"]
    if command[0] == "serve":
        assert_is_gateway_of_a_fleet(config)
    else:
        assert len(build_parser().parse_args(command).join.split(",")) == 2
        assert environ.keys() == {"GATEWAY_URLS", "GATEWAY_JOIN_TOKEN"}


def _command(settings: Mapping[str, str]) -> list[str]:
    program, *arguments = shlex.split(settings["ExecStart"])
    assert program == "/opt/gateway/bin/gateway"
    return arguments


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_let_requests_finish_and_end_only_the_program(unit: Path) -> None:
    settings = settings_of(unit)
    longest = Config().server.drain_timeout + LEAVE_SECONDS + SLACK_SECONDS
    assert parse_duration(settings["TimeoutStopSec"]) > longest
    assert settings["KillMode"] == "mixed"
    assert settings["Restart"] == "always"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@pytest.mark.needs_programs("systemd-analyze")
def test_systemd_understands_units(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/gateway/bin/gateway", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_units() -> None:
    assert [unit.name for unit in UNITS] == ["gateway-worker.service", "gateway.service"]
