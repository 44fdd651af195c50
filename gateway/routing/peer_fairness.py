"""Leaves free slots to older requests that wait at other gateways.

When a slot becomes free while an older request waits at a peer, it is left alone until that peer has had time to learn
of it and to ask (decision 0001, late binding). Every gateway that learns of the slot does so, except the one with the
oldest request, which asks at once. The costs are limited:

- A request counts as older only if it is older by more than `yield_seconds`. A slot must not be idle for longer than
  the error in the order that it repairs, and two gateways must not wait for each other.
- A slot is left for `yield_seconds` at most, and no more slots are left than requests wait at peers. Further free slots
  can be taken at once.
- A deferral ends early if no older request waits any more, or no slot is free any more.
- A request may keep waiting although slots were left to it, because its gateway is dead or slow, or because it has
  tried the replica in vain. It is left nothing for `IGNORED_SECONDS`, so a dead gateway costs one such pause per second
  and not one per slot.

Pure: it gets the time as an argument.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.domain.ids import GatewayId, ModelName
from gateway.routing.load_tracker import FOREVER, NEVER

IGNORED_SECONDS: Final = 1.0


class RemoteQueue(NamedTuple):
    """The requests that wait for one model at one peer."""

    gateway_id: GatewayId
    model: ModelName
    waiting: int
    since: float
    """The time when the oldest of them began to wait (seconds of this gateway's clock)."""
    published_since: float
    """The same time as the peer published it. It identifies the request, however clocks are converted."""


@dataclass
class _KnownQueue:
    queue: RemoteQueue
    first_at: float
    """The time since which this gateway knows this request as the oldest of its queue."""
    ignored_until: float = NEVER


class SlotDeferral:
    """Decides how many free slots this gateway leaves to older requests that wait at other gateways."""

    def __init__(self, yield_seconds: float) -> None:
        self._yield_seconds = yield_seconds
        self.queues: dict[ModelName, dict[GatewayId, _KnownQueue]] = {}
        """The requests that wait at peers, by model."""
        self.ends: dict[ModelName, Sequence[float]] = {}
        """The end of each deferral by model, in order. No list is empty: a model that is not there defers nothing."""

    def apply(self, queues: Iterable[RemoteQueue], now: float) -> Sequence[ModelName]:
        """Replaces all queues of peers. Returns the models whose deferrals may have ended by that."""
        known_queues: dict[ModelName, dict[GatewayId, _KnownQueue]] = {}
        for queue in queues:
            known_queues.setdefault(queue.model, {})[queue.gateway_id] = self._update(queue, now)
        self.queues, affected = known_queues, tuple(self.ends)
        for model in self.ends.keys() - known_queues.keys():
            del self.ends[model]
        return affected

    def _update(self, queue: RemoteQueue, now: float) -> _KnownQueue:
        known = self.queues.get(queue.model, {}).get(queue.gateway_id)
        if known is None or known.queue.published_since != queue.published_since:
            return _KnownQueue(queue, now)
        return _KnownQueue(queue, known.first_at, known.ignored_until)

    def record_free(self, model: ModelName, count: int, free: int, now: float) -> None:
        """Records that `count` slots have become free, which makes `free` in all."""
        self._settle(model, FOREVER, max(0, free - count), now)
        self._set_ends(model, [*self.deferred_until(model), *[now + self._yield_seconds] * count], free)

    def deferred_until(self, model: ModelName) -> Sequence[float]:
        """Returns the end of each deferral of the model, in order."""
        return self.ends.get(model, ())

    def deferred_slots(self, model: ModelName, oldest: float, free: int, now: float) -> int:
        """Returns how many of the free slots are left to peers. `oldest` is the time since which the oldest request
        here waits."""
        self._settle(model, oldest, free, now)
        waiting = sum(each.queue.waiting for each in self._older(model, oldest) if now >= each.ignored_until)
        return min(len(self.deferred_until(model)), waiting)

    def _settle(self, model: ModelName, oldest: float, free: int, now: float) -> None:
        """Forgets slots that were taken by any gateway, and those whose deferral is over. The requests that they were
        left to did not want the latter."""
        self._set_ends(model, self.deferred_until(model), free)
        ends = self.deferred_until(model)
        expired = bisect_right(ends, now)
        if expired:
            self._set_ends(model, ends[expired:], free)
            self._ignore_unresponsive(model, oldest, ends[expired - 1] - self._yield_seconds, now)

    def _ignore_unresponsive(self, model: ModelName, oldest: float, freed_at: float, now: float) -> None:
        """Records that a peer's oldest request does not want a slot, if it has known of the slot since `freed_at`."""
        older = [each for each in self._older(model, oldest) if now >= each.ignored_until]
        oldest_queue = min(older, key=lambda each: each.queue.since, default=None)
        if oldest_queue is not None and oldest_queue.first_at <= freed_at:
            oldest_queue.ignored_until = now + IGNORED_SECONDS

    def _older(self, model: ModelName, oldest: float) -> Iterator[_KnownQueue]:
        several = self.queues.get(model, {}).values()
        return (each for each in several if each.queue.since < oldest - self._yield_seconds)

    def _set_ends(self, model: ModelName, ends: Sequence[float], free: int) -> None:
        """Keeps the newest deferrals, and no more of them than there are free slots."""
        if ends and free:
            self.ends[model] = ends[-free:]
        else:
            self.ends.pop(model, None)
