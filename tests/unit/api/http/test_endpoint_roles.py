"""Every way into a gateway with keys, and what each credential finds there: the table of the application itself."""

from typing import Final

import pytest
from trio.testing import MockClock

from gateway.api.http.auth import Role
from gateway.api.http.http_app import Endpoint
from gateway.domain.ids import BootId, NodeId
from gateway.domain.session import Registration
from gateway.transport.node_credentials import BOOT, NODE, node_credential
from tests.fakes.api_harness import ADMIN_KEY, CLUSTER_SECRET, INFERENCE_KEY, JOIN_TOKEN, ApiHarness
from tests.fakes.asgi import AsgiRequest

ENDPOINTS: Final = ApiHarness().app.endpoints()
CLOSED: Final = [endpoint for endpoint in ENDPOINTS if endpoint.role is not Role.PUBLIC]
NODE_ID: Final = NodeId("node-1")
BOOT_ID: Final = BootId("boot-1")
CREDENTIALS: Final = {
    "none": None,
    "wrong": "sk-wrong",
    "inference": INFERENCE_KEY,
    "admin": ADMIN_KEY,
    "join": JOIN_TOKEN,
    "worker": node_credential(CLUSTER_SECRET, NODE_ID, BOOT_ID),
}
OPEN: Final = None
OUTCOMES: Final[dict[Role, dict[str, tuple[int, str] | None]]] = {
    Role.INFERENCE: {
        "none": (401, "invalid_api_key"),
        "wrong": (401, "invalid_api_key"),
        "inference": OPEN,
        "admin": OPEN,
        "join": (401, "invalid_api_key"),
        "worker": (401, "invalid_api_key"),
    },
    Role.ADMIN: {
        "none": (401, "invalid_api_key"),
        "wrong": (401, "invalid_api_key"),
        "inference": (403, "forbidden"),
        "admin": OPEN,
        "join": (401, "invalid_api_key"),
        "worker": (401, "invalid_api_key"),
    },
    Role.JOIN: {
        "none": (401, "invalid_join_token"),
        "wrong": (401, "invalid_join_token"),
        "inference": (401, "invalid_join_token"),
        "admin": (401, "invalid_join_token"),
        "join": OPEN,
        "worker": (401, "invalid_join_token"),
    },
    Role.WORKER: {
        "none": (401, "invalid_node_credential"),
        "wrong": (401, "invalid_node_credential"),
        "inference": (401, "invalid_node_credential"),
        "admin": (401, "invalid_node_credential"),
        "join": (401, "invalid_node_credential"),
        "worker": OPEN,
    },
}
"""The status and code for each role of an endpoint and kind of credential."""
EXPECTED: Final = {
    ("POST", "/v1/chat/completions"): Role.INFERENCE,
    ("POST", "/v1/completions"): Role.INFERENCE,
    ("POST", "/v1/embeddings"): Role.INFERENCE,
    ("POST", "/v1/rerank"): Role.INFERENCE,
    ("POST", "/rerank"): Role.INFERENCE,
    ("POST", "/v1/tokenize"): Role.INFERENCE,
    ("POST", "/tokenize"): Role.INFERENCE,
    ("POST", "/v1/detokenize"): Role.INFERENCE,
    ("POST", "/detokenize"): Role.INFERENCE,
    ("GET", "/v1/models"): Role.INFERENCE,
    ("GET", "/v1/models/"): Role.INFERENCE,
    ("POST", "/api/node/register"): Role.JOIN,
    ("GET", "/api/artifacts/{sha256}"): Role.WORKER,
    ("GET", "/api/replicas/{id}/logs"): Role.ADMIN,
    ("GET", "/"): Role.PUBLIC,
    ("GET", "/v1"): Role.PUBLIC,
    ("GET", "/health"): Role.PUBLIC,
    ("GET", "/version"): Role.PUBLIC,
    ("GET", "/openapi.json"): Role.PUBLIC,
    ("GET", "/healthz"): Role.PUBLIC,
    ("GET", "/readyz"): Role.PUBLIC,
    ("GET", "/metrics"): Role.ADMIN,
    ("GET", "/api/status"): Role.ADMIN,
    ("GET", "/api/decisions/{request_id}"): Role.ADMIN,
    ("POST", "/api/explain"): Role.ADMIN,
    ("GET", "/api/nodes"): Role.ADMIN,
    ("GET", "/api/nodes/<name>"): Role.ADMIN,
    ("PATCH", "/api/nodes/<name>"): Role.ADMIN,
    ("DELETE", "/api/nodes/<name>"): Role.ADMIN,
    ("POST", "/api/nodes/<name>/approve"): Role.ADMIN,
    ("POST", "/api/nodes/<name>/drain"): Role.ADMIN,
    ("POST", "/api/nodes/<name>/resume"): Role.ADMIN,
    ("GET", "/api/models"): Role.ADMIN,
    ("GET", "/api/models/<path:name>"): Role.ADMIN,
    ("PUT", "/api/models/<path:name>"): Role.ADMIN,
    ("DELETE", "/api/models/<path:name>"): Role.ADMIN,
    ("POST", "/api/models/<path:name>/load"): Role.ADMIN,
    ("POST", "/api/models/<path:name>/unload"): Role.ADMIN,
    ("GET", "/api/models/<path:name>/load-status"): Role.ADMIN,
    ("GET", "/api/replicas"): Role.ADMIN,
    ("GET", "/api/replicas/<replica_id>"): Role.ADMIN,
    ("GET", "/api/events"): Role.ADMIN,
}
"""Written down a second time on purpose: a route that is new, or whose role has changed, has to be meant."""


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


async def knock(harness: ApiHarness, endpoint: Endpoint, kind: str) -> AsgiRequest:
    harness.tails.ready = ()
    await harness.registry.register_node(Registration("n1", BOOT_ID, NODE_ID))
    await harness.update_view()
    body = b"{}" if endpoint.method in {"POST", "PATCH", "PUT"} else b""
    headers = {NODE: NODE_ID, BOOT: BOOT_ID}
    return await harness.request(endpoint.method, endpoint.path, body, key=CREDENTIALS[kind], headers=headers).run(
        harness.app
    )


def code_of(request: AsgiRequest) -> str:
    code: str = request.error["code"]
    return code


def test_a11_each_route_has_the_role_that_it_should() -> None:
    declared = {
        (endpoint.method, endpoint.path): endpoint.role
        for endpoint in ENDPOINTS
        if endpoint.method not in {"HEAD", "OPTIONS"}
    }
    assert declared == EXPECTED


def test_a11_all_methods_of_a_path_ask_for_one_role() -> None:
    roles = {endpoint.path: endpoint.role for endpoint in ENDPOINTS}
    assert all(endpoint.role is roles[endpoint.path] for endpoint in ENDPOINTS)


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("endpoint", CLOSED, ids=name_of)
async def test_a11_what_each_endpoint_answers_to_each_credential(
    endpoint: Endpoint, kind: str, autojump_clock: MockClock
) -> None:
    request = await knock(ApiHarness(), endpoint, kind)
    refusal = OUTCOMES[endpoint.role][kind]
    if refusal is OPEN:
        assert request.status not in {401, 403, 405, 500, None}
    elif endpoint.method == "HEAD":
        assert request.status == refusal[0]
    else:
        assert (request.status, code_of(request)) == refusal
        assert ("www-authenticate" in request.headers) is (refusal[0] == 401)


@pytest.mark.parametrize("kind", CREDENTIALS)
async def test_a11_without_a_join_token_no_credential_joins(kind: str) -> None:
    register = Endpoint("POST", "/api/node/register", Role.JOIN)
    request = await knock(ApiHarness(join_token=None), register, kind)
    assert (request.status, code_of(request)) == (403, "join_disabled")


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize(
    "path", ["/api/nothing", "/api/node", "/api/node/register/", "/api/nodes/x/y", "/api/replicas/x/y/z"]
)
async def test_a11_what_is_not_there_below_api_is_for_admins(path: str, kind: str) -> None:
    request = await knock(ApiHarness(), Endpoint("GET", path, Role.ADMIN), kind)
    assert (request.status, code_of(request)) == (OUTCOMES[Role.ADMIN][kind] or (404, "not_found"))


async def test_a11_a_web_page_of_another_origin_can_not_join_a_keyless_gateway() -> None:
    harness = ApiHarness(keys=())
    for headers, code in (
        ({"host": "evil.example"}, "bad_host"),
        ({"host": "localhost", "origin": "null"}, "bad_origin"),
    ):
        request = await harness.request("POST", "/api/node/register", b"{}", key=JOIN_TOKEN, headers=headers).run(
            harness.app
        )
        assert (request.status, code_of(request)) == (403, code)
