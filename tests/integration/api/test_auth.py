"""Who gets in, over every route that there is: keys, roles, browsers, and a gateway that is open to other machines."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.api.http.auth import Role
from gateway.api.http.http_app import Endpoint
from tests.fakes.api_harness import ApiHarness
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, running_gateway, start_gateway, wait_for

INFERENCE_KEY: Final = "sk-inference-5f2c"
ADMIN_KEY: Final = "sk-admin-77aa"
HASHED_KEY: Final = "sk-hashed-e01b"
WRONG_KEY: Final = "sk-wrong-9d3e"
JOIN_TOKEN: Final = "join-4b1f"
FOR_WORKERS: Final = {Role.JOIN, Role.WORKER}
"""Roles that no API key has."""
KEYS: Final = f"""
[auth]
join_token = "{JOIN_TOKEN}"
api_keys = [
  {{ name = "chat", key = "{INFERENCE_KEY}" }},
  {{ name = "ops", key = "{ADMIN_KEY}", role = "admin" }},
  {{ name = "hashed", key_sha256 = "{hashlib.sha256(HASHED_KEY.encode()).hexdigest()}", role = "admin" }},
]
"""
OPEN: Final = """
[server]
host = "0.0.0.0"
[auth]
allow_anonymous = true
"""


ENDPOINTS: Final[Sequence[Endpoint]] = (
    *ApiHarness().app.endpoints(),
    Endpoint("GET", "/api/nothing", Role.ADMIN),
    Endpoint("GET", "/nothing", Role.INFERENCE),
    Endpoint("POST", "/nothing/either", Role.INFERENCE),
)
"""Every route of the gateway, and paths that are none; the unit tests of endpoint roles have the table of outcomes."""
CLOSED: Final = [endpoint for endpoint in ENDPOINTS if endpoint.role is not Role.PUBLIC]
HEALTH: Final = [endpoint for endpoint in ENDPOINTS if endpoint.role is Role.PUBLIC]


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def knock(gateway: GatewayProcess, endpoint: Endpoint, key: str | None = None, **headers: str) -> httpx.Response:
    credentials = {"authorization": f"Bearer {key}"} if key is not None else {}
    json: Any = {} if endpoint.method == "POST" else None
    # Certificates play no part, and to load them would take longer than all the rest.
    with httpx.Client(base_url=gateway.url, verify=False, timeout=WAIT_SECONDS) as client:
        return client.request(endpoint.method, endpoint.path, headers={**credentials, **headers}, json=json)


def code_of(response: httpx.Response) -> str:
    """Of the error; HEAD has no body to say it."""
    if response.request.method == "HEAD":
        return ""
    code: str = response.json()["error"]["code"]
    return code


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """With keys. At the end none of them, right or wrong, is in its log."""
    with running_gateway(tmp_path_factory.mktemp("locked"), KEYS + '[log]\nlevel = "debug"\n') as process:
        yield process
        assert "/v1/models" in process.log
        for secret in (INFERENCE_KEY, ADMIN_KEY, HASHED_KEY, WRONG_KEY, JOIN_TOKEN):
            assert secret not in process.log
            assert hashlib.sha256(secret.encode()).hexdigest() not in process.log


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("keyless")) as process:
        yield process


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("anonymous"), OPEN) as process:
        process.url = process.url.replace("0.0.0.0", "127.0.0.1")
        yield process


def test_the_table_of_routes_is_not_empty() -> None:
    names = {name_of(endpoint) for endpoint in ENDPOINTS}
    assert names >= {"POST /v1/embeddings", "GET /metrics", "POST /api/node/register", "GET /healthz"}


# Keys


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
def test_without_a_key_nothing_opens(locked: GatewayProcess, endpoint: Endpoint) -> None:
    response = knock(locked, endpoint)
    assert response.status_code == 401
    assert code_of(response) in {"invalid_api_key", "invalid_join_token", "invalid_node_credential", ""}
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize(
    "key", [WRONG_KEY, INFERENCE_KEY[:-1], ADMIN_KEY + "x", hashlib.sha256(HASHED_KEY.encode()).hexdigest()]
)
def test_with_a_wrong_key_nothing_opens_and_it_is_not_repeated(
    locked: GatewayProcess, endpoint: Endpoint, key: str
) -> None:
    response = knock(locked, endpoint, key)
    assert response.status_code == 401
    assert key not in response.text


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
def test_an_inference_key_opens_inference_only(locked: GatewayProcess, endpoint: Endpoint) -> None:
    response = knock(locked, endpoint, INFERENCE_KEY)
    if endpoint.role is Role.ADMIN:
        assert (response.status_code, code_of(response)) in {(403, "forbidden"), (403, "")}
        assert INFERENCE_KEY not in response.text
    elif endpoint.role is Role.JOIN:
        assert (response.status_code, code_of(response)) == (401, "invalid_join_token")
    elif endpoint.role is Role.WORKER:
        assert (response.status_code, code_of(response)) in {(401, "invalid_node_credential"), (401, "")}
    else:
        assert response.status_code not in {401, 403}


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize("key", [ADMIN_KEY, HASHED_KEY])
def test_an_admin_key_opens_all_but_what_is_for_workers(locked: GatewayProcess, endpoint: Endpoint, key: str) -> None:
    refused = knock(locked, endpoint, key).status_code in {401, 403}
    assert refused is (endpoint.role in FOR_WORKERS)


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
def test_a11_the_join_token_opens_joining_and_nothing_else(locked: GatewayProcess, endpoint: Endpoint) -> None:
    response = knock(locked, endpoint, JOIN_TOKEN)
    assert (response.status_code == 401) is (endpoint.role is not Role.JOIN)
    assert JOIN_TOKEN not in response.text


def test_a_worker_registers(locked: GatewayProcess) -> None:
    with locked.client(JOIN_TOKEN) as client:
        worker = {"name": "further", "boot_id": "3f2b8c1e-7d4a-4f0e-9a51-2c6d8e0b7f13"}
        answer = client.post("/api/node/register", json=worker).json()
    assert answer["approved"] is True
    assert answer["session_address"].startswith("127.0.0.1:")
    with locked.client(ADMIN_KEY) as client:
        node = f"/api/nodes/{answer['node_id']}"
        wait_for(lambda: client.get(node).status_code == 200, "the node to be seen")
        assert client.get(node).json()["name"] == "further"


@pytest.mark.parametrize("endpoint", HEALTH, ids=name_of)
@pytest.mark.parametrize("key", [None, WRONG_KEY])
def test_health_is_open(locked: GatewayProcess, endpoint: Endpoint, key: str | None) -> None:
    assert knock(locked, endpoint, key, host="probe.example").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/healthz/../api/status",
        "//api/status",
        "/api//status",
        "/API/status",
        "/%61pi/status",
        "/api/status?x=/healthz",
    ],
)
def test_no_spelling_of_a_path_goes_around_the_key(locked: GatewayProcess, path: str) -> None:
    response = httpx.get(httpx.URL(locked.url).copy_with(raw_path=path.encode()), timeout=WAIT_SECONDS)
    assert response.status_code == 401


def test_a_key_answers_a_real_request(locked: GatewayProcess) -> None:
    with locked.client(INFERENCE_KEY) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_with_keys_any_host_may_be_named(locked: GatewayProcess) -> None:
    endpoint = Endpoint("GET", "/v1/models", Role.INFERENCE)
    assert knock(locked, endpoint, INFERENCE_KEY, host="llm.example", origin="https://app.example").status_code == 200


# Without keys, on loopback


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8080", "192.168.0.1", ""])
def test_a_foreign_host_is_refused(keyless: GatewayProcess, endpoint: Endpoint, host: str) -> None:
    response = knock(keyless, endpoint, host=host)
    assert (response.status_code, code_of(response)) in {(403, "bad_host"), (403, "")}


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:8080", "null", "http://[::1"])
def test_a_foreign_page_is_refused(keyless: GatewayProcess, endpoint: Endpoint, origin: str) -> None:
    response = knock(keyless, endpoint, origin=origin)
    assert (response.status_code, code_of(response)) in {(403, "bad_origin"), (403, "")}


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"])
def test_this_machine_may_do_everything_that_is_not_for_workers(
    keyless: GatewayProcess, endpoint: Endpoint, host: str
) -> None:
    response = knock(keyless, endpoint, host=host, origin="http://localhost:3000")
    if endpoint.role is Role.JOIN:
        assert (response.status_code, code_of(response)) == (403, "join_disabled")
    elif endpoint.role is Role.WORKER:
        assert response.status_code == 401
    else:
        assert response.status_code not in {401, 403}


def test_a_key_that_nobody_asked_for_does_no_harm(keyless: GatewayProcess) -> None:
    assert knock(keyless, Endpoint("GET", "/api/status", Role.ADMIN), WRONG_KEY).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_can_send_nothing(keyless: GatewayProcess, content_type: str) -> None:
    writing = [
        endpoint
        for endpoint in ApiHarness().app.endpoints()
        if endpoint.method in {"POST", "PATCH"} and endpoint.role is not Role.JOIN
    ]
    assert {endpoint.path for endpoint in writing} >= {"/v1/embeddings", "/api/explain", "/api/nodes/<name>/drain"}
    for endpoint in writing:
        assert knock(keyless, endpoint, **{"content-type": content_type}).status_code == 415


# Open to other machines


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
def test_an_open_address_without_keys_does_not_start(tmp_path: Path, host: str) -> None:
    gateway = start_gateway(tmp_path, f'[server]\nhost = "{host}"\n')
    assert gateway.process.wait(WAIT_SECONDS) == 2
    wait_for(lambda: "server.host" in gateway.log, "its complaint")
    assert "Traceback" not in gateway.log


def test_an_open_address_by_argument_does_not_start_either(tmp_path: Path) -> None:
    gateway = start_gateway(tmp_path, args=("--host", "0.0.0.0"))
    assert gateway.process.wait(WAIT_SECONDS) == 2


@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
@pytest.mark.parametrize("key", [None, WRONG_KEY])
def test_anonymous_callers_may_infer_and_never_administer(
    anonymous: GatewayProcess, endpoint: Endpoint, key: str | None
) -> None:
    response = knock(anonymous, endpoint, key, host="llm.example")
    assert (response.status_code == 403) is (endpoint.role not in {Role.INFERENCE, Role.WORKER})
    assert (response.status_code == 401) is (endpoint.role is Role.WORKER)


def test_a_caller_without_a_key_gets_an_answer(anonymous: GatewayProcess) -> None:
    assert anonymous.chat(max_tokens=1).status_code == 200
