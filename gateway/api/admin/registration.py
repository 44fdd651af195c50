"""Registers workers of other machines: with the join token a worker gets its node id and the address for its sessions.

A worker that has registered before proves which node it is by the credential of its last start. Without it, it becomes
the node of its name, or a new one (the registry decides).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated

import trio
from pydantic import Field
from pydantic_core import to_json

from gateway.api.admin.body_fields import NodeName, Uuid
from gateway.api.http.auth import Caller, Role
from gateway.api.http.browser_guard import host_name
from gateway.api.http.exchange import Exchange
from gateway.api.http.http_app import Route
from gateway.api.http.json_body import MISSING, JsonBody, parse_json
from gateway.domain.cluster import Node
from gateway.domain.errors import BadRequest, Conflict, Overloaded, Unauthenticated, Unavailable
from gateway.domain.ids import BootId, GatewayId, NodeId
from gateway.domain.pacing import TokenBucket
from gateway.domain.session import Registration
from gateway.registry.protocol import FleetFull, NameTaken, NodeRegistry, StaleCredential
from gateway.transport.node_credentials import is_credential, node_credential

RETRY_AFTER_SECONDS = 1.0
"""The `Retry-After` while the listener for workers is not ready."""
BODY_BYTES_MAX = 16 * 1024
"""The largest body. A registration has five short fields."""
FULL_RETRY_AFTER_SECONDS = 60.0
REGISTRATIONS_PER_SECOND = 5.0
"""The largest rate of one address in the long run, because each registration may be a write that every gateway has to
read."""
REGISTRATIONS_BURST = 100.0
"""How many registrations of one address may come at once, as from a machine room that starts."""
PEERS_MAX = 1024
"""The number of addresses whose registrations are counted separately."""


class RegistrationBody(JsonBody):
    """The body with which a worker registers; its last three fields prove which node it was before."""

    name: NodeName
    boot_id: Uuid
    node_id: Uuid | None = None
    """The node id of an earlier registration. It counts only together with the two fields below."""
    previous_boot_id: Uuid | None = None
    previous_credential: Annotated[str, Field(min_length=1, max_length=256)] | None = None


@dataclass(frozen=True)
class NodeRegistration:
    """Registers workers of other machines, and gives each its node credential and the address to connect to."""

    registry: NodeRegistry
    gateway_id: GatewayId
    cluster_secret: bytes = field(repr=False)
    auto_approve: bool
    advertise_host: str | None
    """The host at which workers can reach this gateway. None means the host at which they registered."""
    worker_port: Callable[[], int | None]
    """Returns the port for sessions, or None if it is not open yet."""
    tls: bool
    _paces: dict[str, TokenBucket] = field(default_factory=dict, init=False, repr=False)
    """The token buckets by address."""

    def routes(self) -> Sequence[Route]:
        """Returns the route of `/api/node/register`, which asks for the join token."""
        return (Route("POST", "/api/node/register", Role.JOIN, self._register, body_bytes_max=BODY_BYTES_MAX),)

    async def _register(self, exchange: Exchange, _caller: Caller, body: bytes) -> None:
        self._check_pace(exchange.peer)
        request = parse_json(RegistrationBody, body)
        session_address = self._session_address(exchange.header("host"))
        proved = proved_node_id(request, self.cluster_secret)
        proof_boot_id = None if proved is None else BootId(request.previous_boot_id or "")
        registration = Registration(request.name, BootId(request.boot_id), proved, self.auto_approve, proof_boot_id)
        node = await self._write(registration)
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

    async def _write(self, registration: Registration) -> Node:
        """Writes the registration. Raises `Conflict`, `Unauthenticated`, `Unavailable`, and the errors of the
        registry."""
        try:
            return await self.registry.register_node(registration)
        except NameTaken as error:
            raise Conflict(f"The node was not registered: {error}.", param="name", code="node_name_taken") from None
        except StaleCredential as error:
            raise _wrong_proof(f"'previous_credential' is out of date: {error}.") from None
        except FleetFull as error:
            raise Unavailable(
                f"The node was not registered: {error}.",
                retry_after_seconds=FULL_RETRY_AFTER_SECONDS,
                code="too_many_nodes",
            ) from None

    def _check_pace(self, peer: str) -> None:
        """Raises `Overloaded` if the address registers too often."""
        now = trio.current_time()
        if peer not in self._paces and len(self._paces) >= PEERS_MAX:
            for idle in [each for each, pace in self._paces.items() if pace.is_untouched(now)]:
                del self._paces[idle]
            if len(self._paces) >= PEERS_MAX:
                peer = ""  # Addresses beyond the limit share one.
        pace = self._paces.setdefault(peer, TokenBucket(REGISTRATIONS_PER_SECOND, REGISTRATIONS_BURST))
        if wait_seconds := pace.try_take(1, now):
            raise Overloaded("Too many registrations come from this address.", retry_after_seconds=ceil(wait_seconds))

    def _session_address(self, host_header: str | None) -> str:
        """Returns the address for sessions. Raises `BadRequest`, `Unavailable`."""
        port = self.worker_port()
        if port is None:
            raise Unavailable("The gateway does not take workers yet.", retry_after_seconds=RETRY_AFTER_SECONDS)
        host = self.advertise_host or host_name(host_header or "")
        if not host:
            raise BadRequest(
                "The request names no Host, so the gateway can't tell where to connect: set its server.advertise."
            )
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proved_node_id(request: RegistrationBody, cluster_secret: bytes) -> NodeId | None:
    """Returns the node that the worker was at its last start, or None if it does not claim to be one. Pure.

    Raises `Unauthenticated` if the proof is wrong, `BadRequest` if a part of it is missing.
    """
    if request.previous_credential is None:
        return None
    if request.node_id is None or request.previous_boot_id is None:
        missing = "node_id" if request.node_id is None else "previous_boot_id"
        raise BadRequest(f"'previous_credential' proves nothing without '{missing}'.", param=missing, code=MISSING)
    node_id = NodeId(request.node_id)
    if not is_credential(cluster_secret, node_id, BootId(request.previous_boot_id), request.previous_credential):
        raise _wrong_proof(
            f"'previous_credential' is not that of node '{node_id}' at this fleet. Register without it to join anew."
        )
    return node_id


def _wrong_proof(message: str) -> Unauthenticated:
    return Unauthenticated(message, param="previous_credential", code="invalid_node_credential")
