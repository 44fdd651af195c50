"""Models of each kind behind a real gateway: what it says of them, and how it refuses what they are not made for."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.tiny_encoder import write_tiny_encoder
from tests.integration.harness import GatewayProcess, running_gateway, wait_for

MODEL = """
[[models]]
name = "{name}"
backend = "llama-cpp"
artifact = "file:{file}"
context_size = 512
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("kinds")
    write_tiny_model(folder / "chat.gguf")
    write_tiny_encoder(folder / "embed.gguf")
    write_tiny_encoder(folder / "rank.gguf", reranks=True)
    models = [MODEL.format(name=name, file=folder / f"{name}.gguf") for name in ("chat", "embed", "rank")]
    with running_gateway(folder / "gateway", "".join(models)) as gateway:
        with gateway.client() as client:
            for name in ("chat", "embed", "rank"):
                client.post(f"/api/models/{name}/load").raise_for_status()
        for name in ("chat", "embed", "rank"):
            wait_for(lambda name=name: gateway.model(name)["capabilities"], f"{name} to be loaded")  # type: ignore[misc]
        yield gateway


def refused(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> str:
    with gateway.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "unsupported")
    message: str = error["message"]
    return message


def test_the_list_of_models_says_what_each_can_do(gateway: GatewayProcess) -> None:
    with gateway.client() as client:
        models = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
        assert client.get("/v1/models/embed").json() == models["embed"]
    kinds = {
        name: [models[name]["capabilities"][kind] for kind in ("generates", "embeds", "reranks")] for name in models
    }
    assert kinds == {"chat": [True, True, False], "embed": [False, True, False], "rank": [False, False, True]}
    assert {name: each["max_model_len"] for name, each in models.items()} == {"chat": 512, "embed": 256, "rank": 256}


def test_a_context_that_the_file_cuts_is_shown_where_people_look(gateway: GatewayProcess) -> None:
    warning = "context_size is 512, but the model has a context of 256 tokens only"
    assert gateway.model("embed")["warnings"] == [warning]
    assert gateway.model("chat")["warnings"] == []
    assert warning in gateway.log
    listed = run_program(gateway, "models", "list", "--url", gateway.url)
    assert f"warning: embed: {warning}\n" in listed.stdout
    checked = run_program(gateway, "check-config")
    assert (checked.returncode, checked.stdout) == (0, "ok\n")
    assert f"models[1].context_size: {warning} (model embed)" in checked.stderr
    assert "models[0]" not in checked.stderr


def run_program(gateway: GatewayProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=gateway.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "stream": True}),
        ("/v1/completions", {"prompt": "hello"}),
    ],
)
def test_an_embedding_model_is_refused_for_a_chat(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> None:
    message = refused(gateway, path, {"model": "embed", **body})
    assert message == "The model 'embed' is an embedding model and can't generate text; use it with /v1/embeddings."


def test_a_reranking_model_is_refused_for_embeddings(gateway: GatewayProcess) -> None:
    message = refused(gateway, "/v1/embeddings", {"model": "rank", "input": "a"})
    assert message == "The model 'rank' is a reranking model and can't embed text; use it with /v1/rerank."


def test_what_was_said_outlives_the_load(gateway: GatewayProcess) -> None:
    with gateway.client() as client:
        client.post("/api/models/embed/unload").raise_for_status()
        wait_for(lambda: gateway.model("embed")["status"] == "not_loaded", "it to be unloaded")
        assert json.loads(client.get("/v1/models/embed").text)["max_model_len"] == 256
    assert "an embedding model" in refused(gateway, "/v1/completions", {"model": "embed", "prompt": "a"})
    assert gateway.model("embed")["status"] == "not_loaded"
