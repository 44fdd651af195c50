"""The public pages: what they say, to whom they name models, and that the description of routes is complete."""

import re
from typing import Any, Final

import pytest

from gateway import __version__
from gateway.api.admin.openapi import public_path
from gateway.api.http.auth import Role
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec
from tests.fakes.api_harness import ApiHarness
from tests.fakes.asgi import AsgiRequest

LOCAL: Final = {"host": "localhost:8080"}
HTML: Final = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def ask(
    harness: ApiHarness, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> AsgiRequest:
    return await AsgiRequest(method, path, {**LOCAL, **(headers or {})}).run(harness.app)


async def keyless() -> ApiHarness:
    harness = ApiHarness(keys=())
    await harness.registry.declare_models([ModelSpec(name=ModelName("m<1>'"), backend="other", artifact="")])
    await harness.update_view()
    return harness


async def test_without_keys_it_names_the_models_and_a_request_to_paste() -> None:
    request = await ask(await keyless(), "/")
    assert request.status == 200
    assert (request.json["version"], request.json["models"]) == (__version__, ["m<1>'"])
    assert request.json["api"] == "http://localhost:8080/v1"
    assert request.json["try"].startswith("curl http://localhost:8080/v1/chat/completions ")


async def test_a_browser_gets_a_page_in_which_nothing_is_markup() -> None:
    request = await ask(await keyless(), "/", HTML)
    page = request.body.decode()
    assert request.headers["content-type"].startswith("text/html")
    assert request.headers["vary"] == "Accept"
    assert "m&lt;1&gt;" in page
    assert "m<1>" not in page
    assert "curl " in page


@pytest.mark.parametrize("headers", [{}, HTML])
async def test_with_keys_no_model_is_named(headers: dict[str, str]) -> None:
    harness = ApiHarness()
    await harness.registry.declare_models([ModelSpec(name=ModelName("secret"), backend="other", artifact="")])
    await harness.update_view()
    request = await ask(harness, "/", headers)
    assert request.status == 200
    assert b"secret" not in request.body
    assert b"authorization: Bearer" in request.body


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
async def test_a_page_of_another_origin_learns_no_name(headers: dict[str, str]) -> None:
    request = await ask(await keyless(), "/", headers)
    assert request.status == 200
    assert "models" not in request.json


@pytest.mark.parametrize("path", ["/", "/v1", "/health", "/version", "/openapi.json"])
async def test_all_of_them_answer_without_a_key_and_to_head(path: str) -> None:
    for method in ("GET", "HEAD"):
        request = await ask(ApiHarness(), path, method=method)
        assert request.status == 200
        assert int(request.headers["content-length"]) > 0


async def test_the_version_and_the_health() -> None:
    assert (await ask(ApiHarness(), "/version")).json == {"version": __version__}
    assert (await ask(ApiHarness(), "/health")).json == {"status": "ok"}


async def test_the_description_has_every_route_and_no_other() -> None:
    harness = ApiHarness()
    document = (await ask(harness, "/openapi.json")).json
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    endpoints = {
        (endpoint.method, public_path(endpoint.path)): endpoint
        for endpoint in harness.app.endpoints()
        if endpoint.method not in {"HEAD", "OPTIONS"}
    }
    assert described.keys() == endpoints.keys()
    for key, operation in described.items():
        assert bool(operation["security"]) is (endpoints[key].role is not Role.PUBLIC)
        named = {parameter["name"] for parameter in operation.get("parameters", ())}
        assert named == set(re.findall(r"\{(\w+)\}", key[1]))


async def test_each_reference_of_the_description_leads_somewhere() -> None:
    document = (await ask(ApiHarness(), "/openapi.json")).json
    schemas = document["components"]["schemas"]
    found = list(references(document))
    assert found
    assert [each for each in found if each.removeprefix("#/components/schemas/") not in schemas] == []
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages"} <= chat["properties"].keys()


def references(node: Any) -> Any:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if name == "$ref":
            yield value
        elif isinstance(value, dict | list):
            yield from references(value)
