"""Loads that were requested without a waiting request. Each counts as demand until it has ended.

A load request ends when a replica serves, when a load has failed since, when an unload was requested since at any
gateway, when the model is gone, or when no replica came up for `REQUEST_SECONDS`: then there is no room for it, and
perhaps nobody wants it any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final, NoReturn

import trio

from gateway.concurrency import Wake
from gateway.domain.cluster import LoadFailure
from gateway.domain.ids import ModelName
from gateway.domain.routability import FleetView, coming_up
from gateway.registry.snapshot import SnapshotStore

REQUEST_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Waiting:
    """The requests that wait for one model at this gateway. A load request counts as one."""

    waiting: int
    oldest_seconds: float


@dataclass
class _LoadRequest:
    since: float
    """The time of the request (Trio's clock, seconds). The next field has the same unit."""
    until: float
    known_failure: LoadFailure | None
    """The failure that was known at the time of the request, which therefore does not answer it."""
    known_unload: float | None
    """The unload that was known at that time (see `ClusterState.unloads`). A different value is a new unload, without
    comparing clocks."""
    over: trio.Event = field(default_factory=trio.Event)


class LoadRequests:
    """The open load requests of this gateway."""

    def __init__(self, views: SnapshotStore[FleetView], changed: Callable[[], None]) -> None:
        """`changed` is called when a load request begins or ends."""
        self._views = views
        self._changed = changed
        self._requests: dict[ModelName, _LoadRequest] = {}
        self.wake = Wake()
        """The wake-up of the loop that ends load requests. It has to be set when the view has changed."""

    def request(self, model: ModelName) -> None:
        """Requests a load of a model of the current view, which contains all earlier writes. A second request extends
        the first."""
        now, view = trio.current_time(), self._views.current
        self._cancel_if_over(model, view, now)
        if view.candidates.get(model):
            return
        known = view.state.failures.get(model), view.state.unloads.get(model)
        request = self._requests.setdefault(model, _LoadRequest(now, now, *known))
        request.until = now + REQUEST_SECONDS
        self.wake.set()
        self._changed()

    def cancel(self, model: ModelName) -> None:
        """Withdraws the load request of the model and wakes `wait_over`. Does nothing if there is none."""
        request = self._requests.pop(model, None)
        if request is not None:
            request.over.set()
            self._changed()

    async def wait_over(self, model: ModelName) -> None:
        """Waits until there is no load request for the model."""
        if (request := self._requests.get(model)) is not None:
            await request.over.wait()

    def _cancel_if_over(self, model: ModelName, view: FleetView, now: float) -> None:
        request = self._requests.get(model)
        if request is not None and _is_over(request, model, view, now):
            self.cancel(model)

    def is_open(self, model: ModelName) -> bool:
        """Returns whether there is an open load request for the model."""
        return model in self._requests

    def waiting(self) -> dict[ModelName, Waiting]:
        """Returns the open load requests, each as if one request waited."""
        now = trio.current_time()
        return {model: Waiting(1, now - request.since) for model, request in self._requests.items()}

    async def run(self) -> NoReturn:
        """Ends load requests that are over, until cancelled. `wake` makes it look again."""
        while True:
            view, now = self._views.current, trio.current_time()
            for model in tuple(self._requests):
                self._cancel_if_over(model, view, now)
            await self.wake.wait_until(min((request.until for request in self._requests.values()), default=inf))


def _is_over(request: _LoadRequest, model: ModelName, view: FleetView, now: float) -> bool:
    if model not in view.state.models or view.candidates.get(model):
        return True
    if view.state.unloads.get(model) != request.known_unload:
        return True
    if coming_up(view, model):
        request.until = now + REQUEST_SECONDS
        return False
    failure = view.state.failures.get(model)
    return (failure is not None and failure != request.known_failure) or now >= request.until
