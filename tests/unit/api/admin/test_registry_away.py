"""What callers are told whose requests need the registry while it is away."""

import json

import pytest

from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError
from tests.fakes.api_harness import JOIN_TOKEN, ApiHarness

SECRET = "PostgreSQL at db.internal:5432/fleet can't be used"


class AwayRegistry(MemoryRegistry):
    async def _transact(self, *_arguments: object, **_keywords: object) -> None:  # type: ignore[override]
        raise RegistryError(SECRET)

    async def read_events(self, newest: int) -> None:  # type: ignore[override]
        raise RegistryError(SECRET)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/api/models/m", {"backend": "llama-cpp", "artifact": "builtin:tiny"}),
        ("DELETE", "/api/models/m", None),
        ("GET", "/api/events", None),
        ("POST", "/api/node/register", {"name": "box", "boot_id": "11111111-1111-4111-8111-111111111111"}),
    ],
)
async def test_they_are_to_come_back_and_learn_nothing_of_our_insides(
    method: str, path: str, body: dict[str, str] | None
) -> None:
    harness = ApiHarness(registry=AwayRegistry())
    data = b"" if body is None else json.dumps(body).encode()
    if path.endswith("register"):
        request = await harness.request(method, path, data, key=JOIN_TOKEN).run(harness.app)
    else:
        request = await harness.ask(method, path, data)
    assert (request.status, request.error["code"]) == (503, "registry_unavailable")
    assert request.headers["retry-after"] == "5"
    assert "db.internal" not in request.error["message"]
