"""A file that only the gateway has comes to a worker on another machine, whole, also when the worker is killed."""

import hashlib
import re
from pathlib import Path
from typing import Final

import httpx

from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.integration.fleet import Fleet, fleet_config, running_fleet
from tests.integration.harness import FILES_WAIT, SCRIPTED, WAIT_SECONDS, wait_for

MIB: Final = 2**20
LARGE_BYTES: Final = 16 * MIB
HELD_AT_BYTES: Final = 8 * MIB
"""Of the large file: the gateway sends no more before the worker was killed."""
ENOUGH_BYTES: Final = 4 * MIB
"""That have come; the rest is on the way still."""


def put(folder: Path, data: bytes) -> str:
    """Puts it where the gateway of a fleet in `folder` looks for files; its hash."""
    models = folder / "gateway" / "data" / "models"
    models.mkdir(parents=True)
    (models / "weights.gguf").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def model(backend: str, sha256: str | None, more: str = "") -> str:
    named = f'sha256 = "{sha256}"\n' if sha256 is not None else ""
    entry = f'[[models]]\nname = "tiny"\nbackend = "{backend}"\nartifact = "file:weights.gguf"\n'
    return f"\n{entry}{named}{more}"


def cached(fleet: Fleet, worker: str) -> list[Path]:
    return sorted((fleet.folder / worker / "data" / "models" / "cache").glob("*"))


def artifact_statuses(fleet: Fleet) -> list[int]:
    """Of the gateway's answers at the endpoint for files, in order."""
    lines = (line for line in fleet.gateway.lines if '"path": "/api/artifacts/' in line)
    return [int(found[1]) for line in lines if (found := re.search(r'"status": (\d+)', line))]


def test_l23_a_worker_without_the_file_fetches_it_and_serves(tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    write_tiny_model(made)
    sha256 = put(tmp_path, made.read_bytes())
    with running_fleet(tmp_path, fleet_config(model("llama-cpp", sha256)), "w1", "w2") as fleet:
        answer = fleet.gateway.chat()
        assert answer.status_code == 200, answer.text
        (file,) = cached(fleet, answer.headers["x-gateway-node"])
        assert file.read_bytes() == made.read_bytes()
        assert file.suffix == ".gguf"
        assert artifact_statuses(fleet) == [200]


def test_s6_a_worker_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    sha256 = put(tmp_path, bytes(range(256)) * (LARGE_BYTES // 256))
    config = fleet_config(SCRIPTED + model("scripted", sha256, "min_replicas = 1\n"))
    gate = tmp_path / "gate"
    patch = FILES_WAIT.format(gates={HELD_AT_BYTES: str(gate)})
    with running_fleet(tmp_path, config, "w1", patch=patch) as fleet:

        def part() -> Path | None:
            return next(
                (each for each in cached(fleet, "w1") if each.suffix == ".part" and each.stat().st_size > ENOUGH_BYTES),
                None,
            )

        found = wait_for(part, "the file to come")
        assert found is not None
        fleet.workers["w1"].kill()
        kept = found.stat().st_size
        assert ENOUGH_BYTES < kept < LARGE_BYTES
        gate.touch()
        fleet.add_worker("w1")
        fleet.wait_serving("w1")
        (file,) = cached(fleet, "w1")
        assert file.stat().st_size == LARGE_BYTES
        wait_for(lambda: 206 in artifact_statuses(fleet), "the rest to have been asked for")
        assert fleet.gateway.chat().status_code == 200


def test_l23_without_a_hash_the_answer_says_what_would_help(tmp_path: Path) -> None:
    put(tmp_path, b"weights")
    with running_fleet(tmp_path, fleet_config(SCRIPTED + model("scripted", None)), "w1") as fleet:
        error = fleet.gateway.chat().json()["error"]
        assert error["code"] == "model_load_failed"
        assert "with sha256 set, this worker fetches it from its gateway" in error["message"]


def test_a11_only_a_worker_gets_files(tmp_path: Path) -> None:
    sha256 = put(tmp_path, b"weights")
    with running_fleet(tmp_path, fleet_config(model("llama-cpp", sha256))) as fleet:
        url = f"{fleet.gateway.url}/api/artifacts/{sha256}"
        for headers in ({}, {"authorization": "Bearer join-0123456789abcdef", "x-gateway-node": "n"}):
            assert httpx.get(url, headers=headers, timeout=WAIT_SECONDS).status_code == 401
