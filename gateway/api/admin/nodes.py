"""The pages of the admin API about the fleet: nodes and replicas as in `/api/status`, and the audit trail.

A node is named by its id or its name. After a write, a page answers from the registry. The other pages answer from this
gateway's view, which follows the registry with a small delay.
"""

from dataclasses import asdict
from typing import Final

from quart import Response, request

from gateway.api.admin.app import AdminApp, json_response, read_json
from gateway.api.admin.body_fields import Budget, Labels, PositiveCount
from gateway.api.admin.documents import StatusSource, node_object, node_objects, replica_objects
from gateway.api.http.json_body import JsonBody
from gateway.api.http.query_params import count_of, flag_of
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.errors import Conflict, NotFound
from gateway.domain.ids import NodeId
from gateway.domain.texts import quoted
from gateway.registry.protocol import NodeEdit, NodeOverrides, NodeRegistry, StateReader

EVENTS_DEFAULT: Final = 100
EVENTS_MAX: Final = 1000
LOST: Final = frozenset({NodeStatus.OFFLINE, NodeStatus.UNHEALTHY})
"""The states of nodes that are silent, so that nothing is lost when one is removed."""


class NodePatch(JsonBody):
    """An admin's settings of a node. A missing field stays as it is, and null removes an earlier setting, so that the
    worker's own value counts again. Labels are replaced as a whole."""

    labels: Labels | None = None
    vram_budget: Budget | None = None
    max_replicas_per_model: PositiveCount | None = None

    def to_edit(self) -> NodeEdit:
        """Returns the patch as an edit for the registry; overrides that the body does not name are kept."""
        return NodeEdit(
            overrides=NodeOverrides(
                labels=self.labels or {},
                max_replicas_per_model=self.max_replicas_per_model,
                vram_budget=self.vram_budget,
            ),
            kept=frozenset(type(self).model_fields.keys() - self.model_fields_set),
        )


class NodeService:
    """Finds and changes nodes. Every method raises `NotFound` if there is no such node."""

    def __init__(self, registry: NodeRegistry, source: StatusSource) -> None:
        self._registry = registry
        self._source = source

    def show(self, name: str) -> Response:
        """Shows the node as this gateway's view has it, without asking the registry."""
        return self._answer(find_node(self._source.fleet.view.state, name))

    async def edit(self, name: str, edit: NodeEdit) -> Response:
        """Changes a node and returns it. Repeating the same change has no effect."""
        node = await self._find(name)
        if not await self._registry.edit_node(node.id, edit):
            raise node_not_found(name)
        return self._answer(await self._find(node.id))

    async def remove(self, name: str, *, force: bool) -> Response:
        """Removes a node. Raises `Conflict` for a node whose worker is there, because it would come back."""
        node = await self._find(name)
        if node.condition not in LOST and not force:
            raise Conflict(
                f"The node '{node.name}' is {node.condition.value}. Stop its worker first, or remove it with "
                f"force=true: "
                "its replicas are then forgotten while they may still run."
            )
        if not await self._registry.remove_node(node.id):
            raise node_not_found(name)
        return json_response({"removed": node.id})

    async def _find(self, name: str) -> Node:
        return find_node(await self._registry.read_state(), name)

    def _answer(self, node: Node) -> Response:
        return json_response(node_object(node, self._source.clock()))


def find_node(state: ClusterState, name: str) -> Node:
    """Returns the node that has `name` as its id, else as its name. Raises `NotFound`."""
    found = state.nodes.get(NodeId(name))
    if found is None:
        found = next((node for node in state.nodes.values() if node.name == name), None)
    if found is None:
        raise node_not_found(name)
    return found


def node_not_found(name: str) -> NotFound:
    """Returns the error for a node that does not exist; `name` is the id or name that was asked for."""
    return NotFound(
        f"No node has the id or name '{quoted(name)}'. GET /api/nodes lists those there are.", code="node_not_found"
    )


def replica_not_found(replica_id: str) -> NotFound:
    """Returns the error for a replica that does not exist."""
    message = f"No replica has the id '{quoted(replica_id)}'. GET /api/replicas lists those there are."
    return NotFound(message, code="replica_not_found")


def add_node_routes(admin_app: AdminApp, registry: NodeRegistry, source: StatusSource) -> None:
    """Adds the routes of nodes (`/api/nodes` and below) to the Quart application."""
    service = NodeService(registry, source)

    @admin_app.get("/api/nodes")
    async def nodes() -> Response:
        """Answers with all nodes."""
        return json_response({"nodes": node_objects(source)})

    @admin_app.get("/api/nodes/<name>")
    async def node(name: str) -> Response:
        """Answers with one node."""
        return service.show(name)

    @admin_app.patch("/api/nodes/<name>")
    async def patch_node(name: str) -> Response:
        """Changes settings of a node."""
        return await service.edit(name, (await read_json(NodePatch)).to_edit())

    @admin_app.delete("/api/nodes/<name>")
    async def remove_node(name: str) -> Response:
        """Removes a node, also a living one if `force` says so."""
        return await service.remove(name, force=flag_of(request.args, "force"))

    @admin_app.post("/api/nodes/<name>/approve")
    async def approve_node(name: str) -> Response:
        """Approves a node."""
        return await service.edit(name, NodeEdit(approved=True))

    @admin_app.post("/api/nodes/<name>/drain")
    async def drain_node(name: str) -> Response:
        """Drains a node."""
        return await service.edit(name, NodeEdit(draining=True))

    @admin_app.post("/api/nodes/<name>/resume")
    async def resume_node(name: str) -> Response:
        """Ends the drain of a node."""
        return await service.edit(name, NodeEdit(draining=False))


def add_fleet_routes(admin_app: AdminApp, registry: StateReader, source: StatusSource) -> None:
    """Adds the routes of replicas and of the audit trail (`/api/events`) to the Quart application."""

    @admin_app.get("/api/replicas")
    async def replicas() -> Response:
        """Answers with all replicas."""
        return json_response({"replicas": replica_objects(source)})

    @admin_app.get("/api/replicas/<replica_id>")
    async def replica(replica_id: str) -> Response:
        """Answers with one replica."""
        found = next((each for each in replica_objects(source) if each["id"] == replica_id), None)
        if found is None:
            raise replica_not_found(replica_id)
        return json_response(found)

    @admin_app.get("/api/events")
    async def events() -> Response:
        """Answers with the newest events."""
        limit = count_of(request.args, "limit", EVENTS_DEFAULT, EVENTS_MAX)
        return json_response({"events": [asdict(event) for event in await registry.read_events(limit)]})
