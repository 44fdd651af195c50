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
NAMES = ("chat", "embed", "rank", "code")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("kinds")
    write_tiny_model(folder / "chat.gguf")
    write_tiny_model(folder / "code.gguf", infill=True)
    write_tiny_encoder(folder / "embed.gguf")
    write_tiny_encoder(folder / "rank.gguf", reranks=True)
    models = [MODEL.format(name=name, file=folder / f"{name}.gguf") for name in NAMES]
    with running_gateway(folder / "gateway", "".join(models)) as gateway:
        with gateway.client() as client:
            for name in NAMES:
                client.post(f"/api/models/{name}/load").raise_for_status()
        for name in NAMES:
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
    chats, embeds, ranks = [True, True, False], [False, True, False], [False, False, True]
    assert kinds == {"chat": chats, "code": chats, "embed": embeds, "rank": ranks}
    sizes = {name: each["max_model_len"] for name, each in models.items()}
    assert sizes == {"chat": 512, "code": 512, "embed": 256, "rank": 256}
    assert {name: each["capabilities"]["infill"] for name, each in models.items() if name != "rank"} == {
        "chat": False, "code": True, "embed": False,
    }  # fmt: skip


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


DOCUMENTS = ["a blue bird", "the old stone bridge", "snow", "the river"]


def ask(gateway: GatewayProcess, path: str, **body: Any) -> dict[str, Any]:
    with gateway.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_documents_are_ordered_by_their_scores(gateway: GatewayProcess, path: str) -> None:
    found = ask(gateway, path, model="rank", query="the bird", documents=DOCUMENTS)
    scores = [each["relevance_score"] for each in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(each["index"] for each in found["results"]) == [0, 1, 2, 3]
    assert all(each.keys() == {"index", "relevance_score"} for each in found["results"])
    assert (found["object"], found["model"]) == ("list", "rank")
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > len(DOCUMENTS)


def test_the_best_documents_come_with_their_texts_if_asked(gateway: GatewayProcess) -> None:
    everything = ask(gateway, "/v1/rerank", model="rank", query="the bird", documents=DOCUMENTS)["results"]
    wanted = {"query": "the bird", "documents": [{"text": text} for text in DOCUMENTS], "top_n": 2}
    found = ask(gateway, "/v1/rerank", model="rank", return_documents=True, **wanted)["results"]
    assert [each["index"] for each in found] == [each["index"] for each in everything[:2]]
    assert [each["document"] for each in found] == [{"text": DOCUMENTS[each["index"]]} for each in found]


def test_the_score_of_a_document_does_not_depend_on_the_others(gateway: GatewayProcess) -> None:
    """Also if there are more than the model has slots."""
    many = ask(gateway, "/v1/rerank", model="rank", query="the bird", documents=DOCUMENTS * 3)["results"]
    for each in many:
        alone = ask(gateway, "/v1/rerank", model="rank", query="the bird", documents=[DOCUMENTS[each["index"] % 4]])
        assert alone["results"][0]["relevance_score"] == pytest.approx(each["relevance_score"], abs=1e-4)


@pytest.mark.parametrize(("model", "kind"), [("chat", "a model that generates text"), ("embed", "an embedding model")])
def test_other_models_are_refused_for_a_ranking(gateway: GatewayProcess, model: str, kind: str) -> None:
    message = refused(gateway, "/v1/rerank", {"model": model, "query": "a", "documents": ["b"]})
    assert message.startswith(f"The model '{model}' is {kind} and can't rerank documents; use it with /v1/")


def test_a_document_that_is_too_long_is_named_with_the_numbers(gateway: GatewayProcess) -> None:
    with gateway.client() as client:
        body = {"model": "rank", "query": "a", "documents": ["b", "bird " * 600]}
        answer = client.post("/v1/rerank", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "documents", "context_length_exceeded")
    assert "at most 256 at once" in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
def test_a_text_becomes_tokens_and_a_text_again(gateway: GatewayProcess, path: str) -> None:
    found = ask(gateway, path, model="chat", content="the blue bird", add_special=False)
    assert found["count"] == len(found["tokens"]) > 2
    assert found["max_model_len"] == 512
    again = ask(gateway, path.replace("tokenize", "detokenize"), model="chat", tokens=found["tokens"])
    assert again == {"content": "the blue bird", "prompt": "the blue bird"}


def test_special_tokens_are_added_as_each_server_does_it(gateway: GatewayProcess) -> None:
    plain = ask(gateway, "/tokenize", model="chat", content="a bird")["tokens"]
    assert ask(gateway, "/tokenize", model="chat", prompt="a bird")["tokens"] == [1, *plain]
    assert ask(gateway, "/tokenize", model="chat", prompt="a bird", add_special_tokens=False)["tokens"] == plain
    assert ask(gateway, "/tokenize", model="chat", content="a bird", add_special=True)["tokens"] == [1, *plain]


def test_the_text_of_a_token_may_be_bytes(gateway: GatewayProcess) -> None:
    found = ask(gateway, "/tokenize", model="chat", content="a \u20ac", with_pieces=True)["tokens"]
    texts = [each["piece"] for each in found]
    joined = b"".join(bytes(text) if isinstance(text, list) else text.encode() for text in texts)
    assert joined.decode() == "a \u20ac"
    assert [226] in texts


def test_a_model_of_any_kind_has_tokens(gateway: GatewayProcess) -> None:
    for model in ("embed", "rank"):
        assert ask(gateway, "/tokenize", model=model, content="a bird")["count"] > 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "content"),
        ("/detokenize", {"tokens": [1, 10_000]}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1]"),
        ("/v1/rerank", {"query": "", "documents": ["b"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ],
)
def test_what_is_wrong_is_named(gateway: GatewayProcess, path: str, body: dict[str, Any], param: str) -> None:
    with gateway.client() as client:
        answer = client.post(path, json={"model": "rank" if "rerank" in path else "chat", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_text_before_a_suffix_is_filled_in(gateway: GatewayProcess) -> None:
    asked = {"model": "code", "prompt": "the blue bird ", "temperature": 0, "max_tokens": 8}
    plain = ask(gateway, "/v1/completions", **asked)
    filled = ask(gateway, "/v1/completions", suffix=" on the bridge", **asked)
    assert filled["choices"][0]["text"] != plain["choices"][0]["text"]
    assert filled["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 3
    streamed = gateway.openai().completions.create(stream=True, suffix=" on the bridge", **asked)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in streamed) == filled["choices"][0]["text"]
    assert ask(gateway, "/v1/completions", suffix="", **asked)["choices"] == plain["choices"]


def test_a_model_without_infill_tokens_refuses_a_suffix_by_name(gateway: GatewayProcess) -> None:
    with gateway.client() as client:
        answer = client.post("/v1/completions", json={"model": "chat", "prompt": "a", "suffix": "b"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "suffix", "unsupported")
    assert error["message"] == "The model 'chat' can't fill in text before a suffix."
