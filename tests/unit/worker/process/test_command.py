import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.load import parse_config
from gateway.domain.ids import Address, ModelName
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import GIB, MIB
from gateway.worker.artifacts.store import NO_ARTIFACT, Artifact
from gateway.worker.process.command import (
    BackendProgram,
    UnknownBackend,
    command_line,
    environment,
    program_of,
    working_folder,
)
from gateway.worker.settings import backend_programs
from gateway.worker.startup import load_seconds_max, model_options

DRAINS = "drains_on_term = true"
FOREIGN = BackendProgram(("/opt/whisper/run.sh", "-v"), env={"HF_HUB_OFFLINE": "0", "LOCALAI_GRPC_AUTH_TOKEN": "x"})


def test_our_engine_is_run_by_our_own_python() -> None:
    program = program_of("llama-cpp", {})
    line = command_line(program, Address("127.0.0.1:20100"))
    assert line == (sys.executable, "-m", "gateway", "backend", "llama-cpp", "--addr", "127.0.0.1:20100")
    assert program.drains_on_term
    assert working_folder(program) is None


def test_a_configured_program_runs_beside_itself() -> None:
    program = program_of("whisper", {"whisper": FOREIGN})
    assert command_line(program, Address("h:1")) == ("/opt/whisper/run.sh", "-v", "--addr", "h:1")
    assert working_folder(program) == Path("/opt/whisper")
    assert working_folder(BackendProgram(("found-on-path",))) is None


@pytest.mark.parametrize(("said", "drains"), [("", False), ("refuses_when_full = true", False), (DRAINS, True)])
def test_a_configured_program_drains_on_term_only_if_it_is_said(said: str, drains: bool) -> None:
    """That it refuses calls when it is full says nothing of what SIGTERM does to open ones."""
    config = parse_config(f'[backends.whisper]\ncommand = ["/opt/whisper/run.sh"]\n{said}\n', {})
    assert backend_programs(config)["whisper"].drains_on_term is drains


def test_an_operator_may_replace_our_engine() -> None:
    assert program_of("llama-cpp", {"llama-cpp": FOREIGN}) is FOREIGN


def test_an_unknown_backend_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UnknownBackend, match="'piper'; it has llama-cpp, whisper"):
        program_of("piper", {"whisper": FOREIGN})


def test_secrets_go_by_environment_and_ours_stay_here() -> None:
    inherited = {"PATH": "/bin", "GATEWAY_AUTH__CLUSTER_SECRET": "s3cret", "HF_HUB_OFFLINE": "1"}
    variables = environment(FOREIGN, "replica-token", inherited)
    assert variables == {
        "PATH": "/bin",
        "HF_HUB_OFFLINE": "0",
        "PYTHONUNBUFFERED": "1",
        "LOCALAI_GRPC_AUTH_TOKEN": "replica-token",
    }


def test_model_options_say_what_is_set() -> None:
    spec = ModelSpec(
        ModelName("chat"), "llama-cpp", "file:m.gguf", context_size=4096, gpu_layers=99, options={"mirostat": "2"}
    )
    options = model_options(spec, Artifact(Path("/models/m.gguf"), 1))
    assert (options.Model, options.ModelFile) == ("chat", "/models/m.gguf")
    assert (options.ContextSize, options.NGPULayers) == (4096, 99)
    assert list(options.Options) == ["mirostat:2", "parallel:4", f"prompt_cache:{256 * MIB}"]
    asked = model_options(replace(spec, prompt_cache=0, reproducible=True), NO_ARTIFACT)
    assert list(asked.Options) == ["mirostat:2", "parallel:4", "prompt_cache:0", "reproducible:true"]


def test_a_foreign_backend_hears_only_of_what_is_set() -> None:
    silent = ModelSpec(ModelName("m"), "whisper", "")
    assert list(model_options(silent, NO_ARTIFACT).Options) == []
    assert list(model_options(replace(silent, parallel=2), NO_ARTIFACT).Options) == ["parallel:2"]
    assert list(model_options(replace(silent, prompt_cache=5), NO_ARTIFACT).Options) == ["prompt_cache:5"]
    assert model_options(silent, NO_ARTIFACT).ModelFile == ""


@pytest.mark.parametrize(("gib", "seconds"), [(0, 300), (2, 340), (70, 1700), (600, 12_300), (2000, 21_600)])
def test_l7_the_time_for_a_load_grows_with_its_size(gib: int, seconds: float) -> None:
    assert load_seconds_max(ModelSpec(ModelName("m"), "llama-cpp", ""), gib * GIB) == seconds


def test_l7_an_explicit_time_wins_both_ways() -> None:
    for seconds in (1.0, 100_000.0):
        spec = ModelSpec(ModelName("m"), "llama-cpp", "", load_timeout_seconds=seconds)
        assert load_seconds_max(spec, 70 * GIB) == seconds
