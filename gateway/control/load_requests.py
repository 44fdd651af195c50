"""Loads that somebody asked for without a request that waits: they count as demand until they have come to something.

A wish ends when a replica serves, when a load has failed since, when somebody has wished for the opposite since, at
whatever gateway, when the model is gone, and when for `WISH_SECONDS` nothing came up: then there is no room for it, and
no one may be left who would use it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final, NoReturn

import trio

from gateway.concurrency import Wake
from gateway.domain.cluster import LoadFailure
from gateway.domain.ids import ModelName
from gateway.domain.routability import FleetView
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.rejections import coming_up

WISH_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Waiting:
    """Requests that wait for one model at this gateway; a wish counts as one."""

    waiting: int
    oldest_seconds: float


@dataclass
class _LoadRequest:
    since: float
    """Seconds of Trio's clock, as is the other one."""
    until: float
    known_failure: LoadFailure | None
    """What was known when it was wished for, and so is no answer to it."""
    known_unload: float | None
    """The same, of `ClusterState.unloads`: whether there is another one needs no comparison of clocks."""
    over: trio.Event = field(default_factory=trio.Event)


class LoadRequests:
    """Keeps the loads that were asked for without a request, until each has come to something."""

    def __init__(self, views: SnapshotStore[FleetView], changed: Callable[[], None]) -> None:
        """`changed` is called when a wish begins or ends."""
        self._views = views
        self._changed = changed
        self._wishes: dict[ModelName, _LoadRequest] = {}
        self.wake = Wake()
        """To be set when the view has changed."""

    def want(self, model: ModelName) -> None:
        """A model of the current view, which has all that was written before. To wish twice is one wish, which lasts as
        long as the later, unless the earlier is over by now."""
        now, view = trio.current_time(), self._views.current
        self._drop_if_over(model, view, now)
        if view.candidates.get(model):
            return
        known = view.state.failures.get(model), view.state.unloads.get(model)
        wish = self._wishes.setdefault(model, _LoadRequest(now, now, *known))
        wish.until = now + WISH_SECONDS
        self.wake.set()
        self._changed()

    def drop(self, model: ModelName) -> None:
        """Withdraws the load that was asked for, and wakes those in `wait_over`; does nothing if there is none."""
        wish = self._wishes.pop(model, None)
        if wish is not None:
            wish.over.set()
            self._changed()

    async def wait_over(self, model: ModelName) -> None:
        """Until there is no wish for the model."""
        if (wish := self._wishes.get(model)) is not None:
            await wish.over.wait()

    def _drop_if_over(self, model: ModelName, view: FleetView, now: float) -> None:
        wish = self._wishes.get(model)
        if wish is not None and _is_over(wish, model, view, now):
            self.drop(model)

    def is_open(self, model: ModelName) -> bool:
        """Tells whether a load of the model was asked for and has not come to anything yet."""
        return model in self._wishes

    def waiting(self) -> dict[ModelName, Waiting]:
        """Each as if one request waited."""
        now = trio.current_time()
        return {model: Waiting(1, now - wish.since) for model, wish in self._wishes.items()}

    async def run(self) -> NoReturn:
        """Ends wishes; `wake` has it look again."""
        while True:
            view, now = self._views.current, trio.current_time()
            for model in tuple(self._wishes):
                self._drop_if_over(model, view, now)
            await self.wake.wait_until(min((wish.until for wish in self._wishes.values()), default=inf))


def _is_over(wish: _LoadRequest, model: ModelName, view: FleetView, now: float) -> bool:
    if model not in view.state.models or view.candidates.get(model):
        return True
    if view.state.unloads.get(model) != wish.known_unload:
        return True
    if coming_up(view, model):
        wish.until = now + WISH_SECONDS
        return False
    failure = view.state.failures.get(model)
    return (failure is not None and failure != wish.known_failure) or now >= wish.until
