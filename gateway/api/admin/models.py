"""The pages of the admin API about models: they show, set, remove, load and unload models, and show how a load goes.

After a write, a page answers from the registry once this gateway's view has the change, too, so the next request sees
it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, Protocol

import trio
from quart import Response, request

from gateway.api.admin.app import AdminApp, json_response, read_object
from gateway.api.admin.documents import StatusSource, model_object, model_objects
from gateway.api.admin.load_status import load_status
from gateway.api.admin.model_body import parse_model
from gateway.api.http.query_params import count_of
from gateway.domain.artifact import is_masked, unmasked
from gateway.domain.cluster import ClusterState
from gateway.domain.errors import Conflict, ModelNotFound
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import build_view
from gateway.registry.protocol import DeclaredInFile, ModelRegistry

WAIT_SECONDS_MAX: Final = 600
"""The longest wait for a load in one request."""
VIEW_SECONDS: Final = 2.0
"""How long an answer waits until this gateway's view has the change."""


class Loads(Protocol):
    """The open load requests of this gateway."""

    def request(self, model: ModelName) -> None:
        """Asks for a load of the model, as a request for it would; nothing happens if a replica already serves."""

    def cancel(self, model: ModelName) -> None:
        """Withdraws the load request."""

    async def wait_over(self, model: ModelName) -> None:
        """Waits until a replica serves, or the load has failed, or it is not asked for any more."""


@dataclass(frozen=True)
class ModelService:
    """Shows and changes models. Every method raises `ModelNotFound` if there is no such model."""

    registry: ModelRegistry
    source: StatusSource
    loads: Loads
    backends: Collection[str]
    """The backends that the configuration declares."""
    models_dir: PurePath
    """The absolute path of the models folder; see `parse_model`."""

    def show(self, name: ModelName) -> Response:
        """Shows the model as this gateway's view has it, without asking the registry."""
        view = self.source.fleet.view
        return json_response(model_object(self.source, view, _found(view.state, name)))

    async def put(self, name: ModelName, body: dict[str, Any]) -> Response:
        """Sets a model. Raises `BadRequest`, and `Conflict` for a model of the configuration file."""
        spec = parse_model(name, await self._with_secrets(name, body), self.backends, self.models_dir)
        try:
            is_new = await self.registry.put_model(spec)
        except DeclaredInFile as error:
            raise _declared_in_file(name) from error
        return await self._answer(name, 201 if is_new else 200)

    async def _with_secrets(self, name: ModelName, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the body with the secrets that were masked when it was shown."""
        artifact = body.get("artifact")
        if not isinstance(artifact, str) or not is_masked(artifact):
            return body
        known = (await self.registry.read_state()).models.get(name)
        return {**body, "artifact": unmasked(artifact, known.artifact if known is not None else None)}

    async def remove(self, name: ModelName) -> Response:
        """Removes a model. Raises `Conflict` for a model of the configuration file."""
        try:
            if not await self.registry.remove_model(name):
                raise ModelNotFound(name)
        except DeclaredInFile as error:
            raise _declared_in_file(name) from error
        self.loads.cancel(name)
        await self._follow(await self.registry.read_state())
        return json_response({"removed": name})

    async def load(self, name: ModelName, wait_seconds: float) -> Response:
        """Requests a load, which is tried at once even if the last one has just failed. It answers 202 while the load
        is in progress, and 200 if `wait` saw it finish."""
        await self.registry.retry_model(name)
        await self._find(name)
        self.loads.request(name)
        is_over = False
        with trio.move_on_after(wait_seconds):
            await self.loads.wait_over(name)
            is_over = True
        return json_response(load_status(self.source, name), 200 if is_over and wait_seconds else 202)

    async def unload(self, name: ModelName) -> Response:
        """Unloads the model, also at a gateway that never served it (W12).

        Raises `Conflict` for one that is always to be loaded.
        """
        spec = await self._find(name)
        if spec.min_replicas or spec.on_every_node:
            raise _always_loaded(spec)
        self.loads.cancel(name)
        if not await self.registry.unload_model(name):
            raise ModelNotFound(name)
        return await self._answer(name)

    async def _find(self, name: ModelName) -> ModelSpec:
        """Returns the spec that the registry has. The view has it then, too."""
        state = await self.registry.read_state()
        spec = _found(state, name)
        await self._follow(state)
        return spec

    async def _answer(self, name: ModelName, status: int = 200) -> Response:
        state = await self.registry.read_state()
        spec, view = _found(state, name), build_view(state)
        await self._follow(state)
        return json_response(model_object(self.source, view, spec), status)

    async def _follow(self, state: ClusterState) -> None:
        with trio.move_on_after(VIEW_SECONDS):
            await self.source.fleet.wait_version(state.version)


def _found(state: ClusterState, name: ModelName) -> ModelSpec:
    spec = state.models.get(name)
    if spec is None:
        raise ModelNotFound(name)
    return spec


def _declared_in_file(name: ModelName) -> Conflict:
    return Conflict(f"The model '{name}' is declared in the gateway's configuration file; change it there.")


def _always_loaded(spec: ModelSpec) -> Conflict:
    key = 'replicas = "all"' if spec.on_every_node else f"min_replicas = {spec.min_replicas}"
    place = "in the configuration file" if spec.source == "file" else f"with PUT /api/models/{spec.name}"
    return Conflict(
        f"The model '{spec.name}' has {key}, so it would be loaded again at once. Set min_replicas = 0 {place} first."
    )


def add_model_routes(admin_app: AdminApp, service: ModelService) -> None:
    """Adds the routes of models (`/api/models` and below) to the Quart application."""

    @admin_app.get("/api/models")
    async def models() -> Response:
        """Answers with all models."""
        return json_response({"models": model_objects(service.source)})

    @admin_app.get("/api/models/<path:name>")
    async def model(name: str) -> Response:
        """Answers with one model."""
        return service.show(ModelName(name))

    @admin_app.put("/api/models/<path:name>")
    async def put_model(name: str) -> Response:
        """Adds or replaces a model."""
        return await service.put(ModelName(name), await read_object())

    @admin_app.delete("/api/models/<path:name>")
    async def remove_model(name: str) -> Response:
        """Removes a model."""
        return await service.remove(ModelName(name))

    @admin_app.post("/api/models/<path:name>/load")
    async def load_model(name: str) -> Response:
        """Requests a load, and waits for it if `wait` says so."""
        return await service.load(ModelName(name), count_of(request.args, "wait", 0, WAIT_SECONDS_MAX))

    @admin_app.post("/api/models/<path:name>/unload")
    async def unload_model(name: str) -> Response:
        """Requests that the model be unloaded."""
        return await service.unload(ModelName(name))

    @admin_app.get("/api/models/<path:name>/load-status")
    async def model_load_status(name: str) -> Response:
        """Answers with how far the load of the model is."""
        return json_response(load_status(service.source, ModelName(name)))
