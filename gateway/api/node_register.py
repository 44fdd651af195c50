"""How a worker of another machine joins: with the join token it registers, and learns who it is and where to connect.

A worker that was here before proves which node it is by the credential of its last start; without that it is the node
of its name, or a new one (the registry decides).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from pydantic_core import to_json

from gateway.api.auth import Caller, Role
from gateway.api.exchange import Exchange
from gateway.api.fields import NodeName, Uuid
from gateway.api.guard import host_name
from gateway.api.http_app import Route
from gateway.api.json_body import MISSING, JsonBody, parse_json
from gateway.domain.errors import BadRequest, Conflict, Unauthenticated, Unavailable
from gateway.domain.ids import BootId, GatewayId, NodeId
from gateway.domain.session import Registration
from gateway.link.credentials import is_credential, node_credential
from gateway.registry.protocol import NameTaken, Registry

RETRY_AFTER_SECONDS = 1.0
"""While the listener for workers is not up yet."""
BODY_BYTES_MAX = 16 * 1024
"""A registration has five short fields."""


class RegistrationBody(JsonBody):
    name: NodeName
    boot_id: Uuid
    node_id: Uuid | None = None
    """Of an earlier registration. Counts for nothing without the two below."""
    previous_boot_id: Uuid | None = None
    previous_credential: Annotated[str, Field(min_length=1, max_length=256)] | None = None


@dataclass(frozen=True)
class NodeRegister:
    registry: Registry
    gateway_id: GatewayId
    cluster_secret: bytes = field(repr=False)
    auto_approve: bool
    advertise_host: str | None
    """Under which workers reach this gateway. None: the one that they registered at."""
    worker_port: Callable[[], int | None]
    """Where sessions are taken. None: not yet."""
    tls: bool

    def routes(self) -> Sequence[Route]:
        return (Route("POST", "/api/node/register", Role.JOIN, self._register, body_bytes_max=BODY_BYTES_MAX),)

    async def _register(self, exchange: Exchange, _caller: Caller, body: bytes) -> None:
        wish = parse_json(RegistrationBody, body)
        session_address = self._session_address(exchange.header("host"))
        registration = Registration(
            wish.name, BootId(wish.boot_id), proved_node_id(wish, self.cluster_secret), self.auto_approve
        )
        try:
            node = await self.registry.register_node(registration)
        except NameTaken as error:
            raise Conflict(f"The node was not registered: {error}.", param="name", code="node_name_taken") from None
        exchange.notes["node"] = node.name
        answer = {
            "node_id": node.id,
            "credential": node_credential(self.cluster_secret, node.id, registration.boot_id),
            "session_address": session_address,
            "approved": node.approved,
            "gateway_id": self.gateway_id,
            "tls": self.tls,
        }
        await exchange.respond(200, to_json(answer))

    def _session_address(self, host_header: str | None) -> str:
        """Raises `BadRequest`, `Unavailable`."""
        port = self.worker_port()
        if port is None:
            raise Unavailable("The gateway does not take workers yet.", retry_after_seconds=RETRY_AFTER_SECONDS)
        host = self.advertise_host or host_name(host_header or "")
        if not host:
            raise BadRequest(
                "The request names no Host, so the gateway can't tell where to connect: set its server.advertise."
            )
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proved_node_id(wish: RegistrationBody, cluster_secret: bytes) -> NodeId | None:
    """The node that the worker was at its last start; None if it does not claim to be one. Pure.

    Raises `Unauthenticated` when the proof is wrong, `BadRequest` when a part of it is missing.
    """
    if wish.previous_credential is None:
        return None
    if wish.node_id is None or wish.previous_boot_id is None:
        missing = "node_id" if wish.node_id is None else "previous_boot_id"
        raise BadRequest(f"'previous_credential' proves nothing without '{missing}'.", param=missing, code=MISSING)
    node_id = NodeId(wish.node_id)
    if not is_credential(cluster_secret, node_id, BootId(wish.previous_boot_id), wish.previous_credential):
        raise Unauthenticated(
            f"'previous_credential' is not that of node '{node_id}' at this fleet. Register without it to join anew.",
            param="previous_credential",
            code="invalid_node_credential",
        )
    return node_id
