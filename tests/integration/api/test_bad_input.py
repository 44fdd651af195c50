"""Whatever a client sends as a body: a 4xx in OpenAI's envelope that names what is wrong, and the process lives."""

import json
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import httpx
import pytest

from tests.integration.harness import GatewayProcess, running_gateway

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
MAX_BODY: Final = 256 * 1024
CONFIG: Final = f"""
[server]
max_body = {MAX_BODY}
[[models]]
name = "tiny"
backend = "llama-cpp"
artifact = "builtin:tiny"
context_size = 512
"""
"""A short context ends soon what a mutation has freed of its limit."""
JSON: Final[Mapping[str, str]] = MappingProxyType({"content-type": "application/json"})
MESSAGES: Final = [{"role": "user", "content": "hello"}]
GOOD: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        CHAT: {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
        COMPLETIONS: {"model": "tiny", "prompt": "hello", "max_tokens": 2},
        EMBEDDINGS: {"model": "tiny", "input": "hello"},
    }
)
ROUTES: Final = tuple(GOOD)
FUZZ_SEED: Final = 20_260
FUZZ_COUNT: Final = 300
REFUSALS: Final = frozenset({400, 404, 413, 415})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One process for all of it; at the end it still serves, and nothing it met was a surprise."""
    with running_gateway(tmp_path_factory.mktemp("bad_input"), CONFIG) as process:
        yield process
        assert process.process.poll() is None
        assert [process.chat(max_tokens=1).status_code for _ in range(2)] == [200, 200]
        assert process.model()["in_flight"] == 0
        assert "Traceback" not in process.log
        assert '"level": "error"' not in process.log


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as made:
        yield made


def refusal(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, code and param, from an envelope that is as it has to be."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return response.status_code, error["code"], error["param"]


def send(client: httpx.Client, route: str, body: bytes) -> httpx.Response:
    return client.post(route, content=body, headers=JSON)


def send_fields(client: httpx.Client, route: str, **fields: Any) -> httpx.Response:
    """A good body, but for these fields."""
    return send(client, route, json.dumps({**GOOD[route], **fields}).encode())


@pytest.mark.parametrize("route", ROUTES)
def test_the_good_bodies_are_good(client: httpx.Client, route: str) -> None:
    assert send_fields(client, route).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"model": "tiny",}',
        b"{'model': 'tiny'}",
        b"model=tiny&prompt=hello",
        b"\x00\x01\x02",
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b'\xef\xbb\xbf{"model": "tiny"}',
        b'{"model": "tiny", "temperature": NaN}',
        b'{"model": "tiny", "temperature": -Infinity}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model": "tiny"} {"model": "tiny"}',
        b'{"max_tokens": ' + b"9" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json(client: httpx.Client, route: str, body: bytes) -> None:
    assert refusal(send(client, route, body)) == (400, "invalid_json", None)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_nested_too_deeply_is_named(client: httpx.Client, route: str) -> None:
    body = b'{"a":' * 50_000 + b"1" + b"}" * 1000
    assert refusal(send(client, route, body)) == (400, "invalid_json", "a")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b"[{}]"])
def test_what_is_no_object(client: httpx.Client, route: str, body: bytes) -> None:
    assert refusal(send(client, route, body)) == (400, "invalid_type", None)


@pytest.mark.parametrize(("route", "field"), [(route, field) for route in ROUTES for field in list(GOOD[route])[:2]])
def test_a_field_that_is_missing(client: httpx.Client, route: str, field: str) -> None:
    fields = {name: value for name, value in GOOD[route].items() if name != field}
    assert refusal(send(client, route, json.dumps(fields).encode())) == (400, "missing_required_parameter", field)


WRONG_TYPES: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "model": (None, 1, [], {}, True),
        "stream": ("true", 1, []),
        "max_tokens": ("5", 1.5, True, [5]),
        "temperature": ("hot", True, [1]),
        "top_p": ("1", {}),
        "seed": ("1", 0.5),
        "stop": (1, {}, True),
        "logit_bias": ([], "65", 3),
        "user": (1, ["ann"]),
        "stream_options": (True, [], "usage"),
        "n": ("1", 1.5),
    }
)


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value"), [(field, value) for field in WRONG_TYPES for value in WRONG_TYPES[field]])
def test_a_field_of_a_wrong_type(client: httpx.Client, route: str, field: str, value: Any) -> None:
    assert refusal(send_fields(client, route, **{field: value})) == (400, "invalid_type", field)


@pytest.mark.parametrize(
    ("route", "fields", "code", "param"),
    [
        (CHAT, {"messages": "hello"}, "invalid_type", "messages"),
        (CHAT, {"messages": []}, "invalid_value", "messages"),
        (CHAT, {"messages": [1]}, "invalid_type", "messages[0]"),
        (CHAT, {"messages": [{}]}, "missing_required_parameter", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (CHAT, {"messages": [{"role": "king", "content": ""}]}, "invalid_value", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 1}]}, "invalid_type", "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        (
            CHAT,
            {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_value",
            "messages[1].content[0].type",
        ),
        (COMPLETIONS, {"prompt": 1}, "invalid_type", "prompt"),
        (COMPLETIONS, {"prompt": []}, "invalid_value", "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "invalid_type", "prompt[1]"),
        (EMBEDDINGS, {"input": 1}, "invalid_type", "input"),
        (EMBEDDINGS, {"input": ""}, "invalid_value", "input"),
        (EMBEDDINGS, {"input": []}, "invalid_value", "input"),
        (EMBEDDINGS, {"input": ["a", 1]}, "invalid_type", "input[1]"),
        (EMBEDDINGS, {"input": [1, "a"]}, "invalid_type", "input[1]"),
        (EMBEDDINGS, {"input": [-1]}, "invalid_value", "input[0]"),
        (EMBEDDINGS, {"input": [2**31]}, "invalid_value", "input[0]"),
        (EMBEDDINGS, {"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        (EMBEDDINGS, {"model": 1}, "invalid_type", "model"),
        (EMBEDDINGS, {"dimensions": 8}, "unsupported_parameter", "dimensions"),
    ],
)
def test_what_only_one_route_has(
    client: httpx.Client, route: str, fields: dict[str, Any], code: str, param: str
) -> None:
    assert refusal(send_fields(client, route, **fields)) == (400, code, param)


@pytest.mark.parametrize("route", ROUTES)
def test_a_parameter_that_nobody_knows(client: httpx.Client, route: str) -> None:
    assert refusal(send_fields(client, route, no_such_thing=1)) == (400, "unknown_parameter", "no_such_thing")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["nobody", "TINY", "tiny ", "../tiny", "\u202etiny", "t\x00", "a" * 512])
def test_a_model_that_does_not_exist(client: httpx.Client, route: str, name: str) -> None:
    assert refusal(send_fields(client, route, model=name)) == (404, "model_not_found", "model")


@pytest.mark.parametrize("name", ["nobody", "%00", "a%0Ab", "%f0%9f%a6%99", "tiny/", "a" * 5000])
def test_a_model_that_is_asked_for_and_does_not_exist(client: httpx.Client, name: str) -> None:
    assert refusal(client.get(f"/v1/models/{name}")) == (404, "model_not_found", "model")


# Numbers


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", 10**400),
        ("top_p", 1.5),
        ("top_k", -2),
        ("seed", 2**63),
        ("presence_penalty", 3),
        ("n", 0),
        ("logit_bias", {"65": 101}),
        ("stop", ["a"] * 17),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_number_out_of_its_range(client: httpx.Client, route: str, field: str, value: Any) -> None:
    status, code, param = refusal(send_fields(client, route, **{field: value}))
    assert (status, code) == (400, "invalid_value")
    assert (param or "").partition(".")[0] == field


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("tokens", [1_000_000, 2**40, 10**1000])
def test_a_limit_above_the_context_is_an_upper_bound(
    client: httpx.Client, route: str, tokens: int, *, stream: bool
) -> None:
    """Whatever the model says ends at a blank, so that the test does not wait for the end of the context."""
    response = send_fields(client, route, max_tokens=tokens, stop=[" "], stream=stream)
    assert response.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("route", "field"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_a_prompt_that_is_longer_than_the_context(
    client: httpx.Client, route: str, field: str, *, stream: bool
) -> None:
    text = "hello " * 10_000
    prompt: Any = text if field == "prompt" else [{"role": "user", "content": text}]
    response = send_fields(client, route, **{field: prompt, "stream": stream})
    assert refusal(response) == (400, "context_length_exceeded", field)


def test_an_embedding_of_a_text_that_is_too_long(client: httpx.Client) -> None:
    response = send_fields(client, EMBEDDINGS, input="hello " * 10_000)
    assert refusal(response) == (400, "context_length_exceeded", "input")


def test_a_token_that_the_model_does_not_have(client: httpx.Client) -> None:
    status, _, param = refusal(send_fields(client, EMBEDDINGS, input=[1, 999_999]))
    assert (status, param) == (400, "input")


# What JSON allows and nobody means


@pytest.mark.parametrize("route", ROUTES)
def test_the_last_of_two_equal_keys_counts(client: httpx.Client, route: str) -> None:
    twice = json.dumps(GOOD[route])[:-1] + ', "model": "nobody"}'
    assert refusal(send(client, route, twice.encode()))[:2] == (404, "model_not_found")
    twice = json.dumps({**GOOD[route], "model": "nobody"})[:-1] + ', "model": "tiny"}'
    assert send(client, route, twice.encode()).status_code == 200


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "\u2028", "\U0010ffff", "é" * 100, "<|im_start|>", "{{ 7 * 7 }}", ""]
)
def test_odd_text_is_text(client: httpx.Client, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    assert send_fields(client, CHAT, messages=messages).status_code == 200
    assert send_fields(client, CHAT, messages=messages, stream=True).status_code == 200


# Size, type, method, path


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(client: httpx.Client, route: str, *, chunked: bool) -> None:
    body = json.dumps({**GOOD[route], "user": "x" * MAX_BODY}).encode()
    content = (body[start : start + 10_000] for start in range(0, len(body), 10_000)) if chunked else body
    response = client.post(route, content=content, headers=JSON)
    assert refusal(response) == (413, "request_too_large", None)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_as_json(client: httpx.Client, route: str, content_type: str) -> None:
    response = client.post(route, content=json.dumps(GOOD[route]), headers={"content-type": content_type})
    assert refusal(response) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_wrong_method(client: httpx.Client, route: str, method: str) -> None:
    response = client.request(method, route)
    assert refusal(response) == (405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/", "/v2/models", "/v1/chat", "/v1//models", "/%00", "/a" * 5000])
def test_a_path_that_is_not_there(client: httpx.Client, path: str) -> None:
    assert refusal(client.get(path)) == (404, "not_found", None)


# Noise


def test_noise_is_refused_and_breaks_nothing(client: httpx.Client, gateway: GatewayProcess) -> None:
    rng = random.Random(FUZZ_SEED)
    seen: set[int] = set()
    for number in range(FUZZ_COUNT):
        route = rng.choice(ROUTES)
        body = mutated(rng, GOOD[route])
        response = send(client, route, body)
        assert response.status_code in REFUSALS | {200}, (number, route, body)
        if response.status_code != 200:
            refusal(response)
        seen.add(response.status_code)
    assert seen >= {200, 400, 404}, "the mutations are neither all harmless nor all fatal"
    assert "Traceback" not in gateway.log


JUNK: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 2**31, 2**64, 1.5, 1e308, "", "x", "\x00", [], [[]], {}, {"a": 1}, [None], ["a", 1], "9" * 50,
)  # fmt: skip
FIELDS: Final = (
    "model",
    "messages",
    "prompt",
    "input",
    "max_tokens",
    "stop",
    "seed",
    "stream_options",
    "logit_bias",
    "x",
)


def mutated(rng: random.Random, good: Mapping[str, Any]) -> bytes:
    """A good body with one to three things wrong: in its values, or in its bytes."""
    body = json.dumps(junked(rng, good)).encode() if rng.random() < 0.6 else json.dumps(good).encode()
    if rng.random() < 0.5:
        data = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            where = rng.randrange(len(data))
            rng.choice((flip, cut, insert, double))(rng, data, where)
        body = bytes(data)
    return body


def junked(rng: random.Random, value: Any) -> Any:
    """`value` with one part of it, at any depth, replaced; at the top also with a field added."""
    if isinstance(value, Mapping):
        changed = dict(value)
        key = rng.choice([*changed, rng.choice(FIELDS)])
        changed[key] = junked(rng, changed[key]) if key in changed and rng.random() < 0.5 else rng.choice(JUNK)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], junked(rng, value[index]), *value[index + 1 :]]
    return rng.choice(JUNK)


def flip(rng: random.Random, data: bytearray, where: int) -> None:
    if data:
        data[where % len(data)] = rng.randrange(256)


def cut(rng: random.Random, data: bytearray, where: int) -> None:
    del data[where : where + rng.randint(1, 20)]


def insert(rng: random.Random, data: bytearray, where: int) -> None:
    data[where:where] = rng.choice((b"\xff", b"\\ud800", b"{", b"]", b'"', b"\n", b"e999", b"null"))


def double(rng: random.Random, data: bytearray, where: int) -> None:
    data[where:where] = data[where : where + rng.randint(1, 20)]
