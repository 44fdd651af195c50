"""The description of every route for tools, by the OpenAPI Specification 3.1. Pure.

It is made from the table of routes, so no route can be missing. It needs no key: it says nothing that the documents do
not say, and tools read it before they have a key.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.api.http.auth import Role
from gateway.api.http.http_app import Endpoint

SUMMARIES: Final[Mapping[str, str]] = {
    "GET /": "Says what this is, as a page or as JSON",
    "GET /v1": "Says what this is",
    "GET /health": "Answers that the process lives",
    "GET /healthz": "Answers that the process lives",
    "GET /readyz": "Answers whether this gateway can serve, and which parts work",
    "GET /version": "Tells the version",
    "GET /openapi.json": "Describes every route",
    "GET /metrics": "Tells the metrics in the format of Prometheus",
    "POST /v1/chat/completions": "Answers a chat",
    "POST /v1/completions": "Continues a text",
    "POST /v1/embeddings": "Computes embeddings",
    "GET /v1/models": "Lists the models",
    "GET /v1/models/{name}": "Describes a model",
    "GET /api/status": "Tells the status of the fleet",
    "POST /api/explain": "Tells where a request would go now, and why",
    "GET /api/decisions/{request_id}": "Tells where a request went, and why",
    "POST /api/node/register": "Registers a worker, with the join token",
    "GET /api/artifacts/{sha256}": "Sends an artifact to a worker",
}
"""The purposes of routes whose methods and paths do not say it."""
REFERENCE: Final = "#/components/schemas/{model}"
"""The place of a part of a schema, as pydantic writes it."""
_VARIABLE: Final = re.compile(r"<(?:\w+:)?(\w+)>")
_NAME: Final = re.compile(r"\{(\w+)\}")
_IMPLIED: Final = frozenset({"HEAD", "OPTIONS"})
ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document(
    endpoints: Iterable[Endpoint], schemas: Mapping[str, Mapping[str, Any]], *, version: str
) -> dict[str, Any]:
    """Returns the document. `schemas` are those of request bodies, by the path that takes them."""
    paths: dict[str, dict[str, Any]] = {}
    parts: dict[str, Any] = {"Error": ERROR}
    for schema in schemas.values():
        parts.update(schema.get("$defs", {}))
    for endpoint in endpoints:
        if endpoint.method not in _IMPLIED:
            path = public_path(endpoint.path)
            paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schemas.get(path))
    return {
        "openapi": "3.1.0",
        "info": {"title": "gateway", "version": version},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": parts, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def public_path(path: str) -> str:
    """Returns a path of the table of routes in the spelling of OpenAPI."""
    named = _VARIABLE.sub(r"{\1}", path)
    return f"{named}{{name}}" if named.endswith("/") and named != "/" else named


def _operation(endpoint: Endpoint, path: str, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    operation: dict[str, Any] = {
        "summary": SUMMARIES.get(f"{endpoint.method} {path}", f"{endpoint.method} {path}"),
        "tags": [endpoint.role.value],
        "security": [] if endpoint.role is Role.PUBLIC else [{"key": []}],
        "responses": {
            "200": {"description": "The answer"},
            "default": {"description": "An error", "content": {"application/json": {"schema": error}}},
        },
    }
    if names := _NAME.findall(path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.method in {"POST", "PUT", "PATCH"}:
        body = {name: value for name, value in (schema or {"type": "object"}).items() if name != "$defs"}
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return operation
