"""Older requests that wait at other gateways, and the slots that are left to them.

A slot that becomes free while an older request waits elsewhere is left alone until that one has had time to hear of it
and to ask (architecture, "Late binding"). Every gateway that learns of the slot does so, except the one with the
oldest request: that one asks at once. What this costs:

- older means older by more than `yield_seconds`: a slot must not lie idle for longer than it makes the order wrong, and
  two gateways that each take the other's request for the older one would both wait;
- a slot is left for `yield_seconds` at most, and no more slots are than requests wait elsewhere; whoever finds others
  free takes those;
- it ends early as soon as nobody older waits any more, or no slot is free any more;
- a request that waits on although slots were left to it (its gateway is dead or slow, or it has tried the replica in
  vain) is left nothing for `DEAF_SECONDS`, so a dead gateway costs one such pause a second, not one for each slot.

Pure: it is told the time.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.domain.ids import GatewayId, ModelName

DEAF_SECONDS: Final = 1.0
NEVER: Final = float("-inf")
FOREVER: Final = float("inf")


class RemoteQueue(NamedTuple):
    """Requests that wait for one model at one other gateway."""

    gateway_id: GatewayId
    model: ModelName
    waiting: int
    since: float
    """When the oldest of them began to wait (seconds of this gateway's clock)."""
    told: float
    """The same as that gateway said it: it tells whether it is still the same request, however clocks are read."""


@dataclass
class _Heard:
    line: RemoteQueue
    first_at: float
    """Since when this gateway knows that very request as the oldest of its line."""
    deaf_until: float = NEVER


class SlotDeferral:
    """Decides how many free slots this gateway leaves to older requests that wait at other gateways."""

    def __init__(self, yield_seconds: float) -> None:
        self._yield_seconds = yield_seconds
        self._lines: dict[ModelName, dict[GatewayId, _Heard]] = {}
        self._ends: dict[ModelName, Sequence[float]] = {}
        """Until when each slot of a model is left to others, in order. None is empty."""

    def hear(self, lines: Iterable[RemoteQueue], now: float) -> Sequence[ModelName]:
        """Takes in all lines that there are now; the models of which slots are left that may be so no longer."""
        heard: dict[ModelName, dict[GatewayId, _Heard]] = {}
        for line in lines:
            heard.setdefault(line.model, {})[line.gateway_id] = self._note(line, now)
        self._lines, affected = heard, tuple(self._ends)
        for model in self._ends.keys() - heard.keys():
            del self._ends[model]
        return affected

    def _note(self, line: RemoteQueue, now: float) -> _Heard:
        known = self._lines.get(line.model, {}).get(line.gateway_id)
        if known is None or known.line.told != line.told:
            return _Heard(line, now)
        return _Heard(line, known.first_at, known.deaf_until)

    def wait_for(self, model: ModelName) -> bool:
        """Whether anybody does, elsewhere; cheap."""
        return model in self._lines

    def note_free(self, model: ModelName, count: int, free: int, now: float) -> None:
        """So many slots have become free, which makes `free` in all."""
        self._settle(model, FOREVER, max(0, free - count), now)
        self._keep(model, [*self.ends(model), *[now + self._yield_seconds] * count], free)

    def leaves_some(self, model: ModelName) -> bool:
        """Whether any slots are left to others, if there are any others; cheap."""
        return model in self._ends

    def ends(self, model: ModelName) -> Sequence[float]:
        """When each slot that is left is left no longer."""
        return self._ends.get(model, ())

    def left(self, model: ModelName, oldest: float, free: int, now: float) -> int:
        """How many of the free slots are not for the requests here, the oldest of which waits since `oldest`."""
        self._settle(model, oldest, free, now)
        waiting = sum(each.line.waiting for each in self._older(model, oldest) if now >= each.deaf_until)
        return min(len(self.ends(model)), waiting)

    def _settle(self, model: ModelName, oldest: float, free: int, now: float) -> None:
        """Forgets slots that were taken, by whomever, and those that were left for long enough; the latter were not
        wanted by whom they were left to."""
        self._keep(model, self.ends(model), free)
        ends = self.ends(model)
        in_vain = bisect_right(ends, now)
        if in_vain:
            self._keep(model, ends[in_vain:], free)
            self._judge(model, oldest, ends[in_vain - 1] - self._yield_seconds, now)

    def _judge(self, model: ModelName, oldest: float, freed_at: float, now: float) -> None:
        """The oldest request that has known all the time of a slot which is free since `freed_at` does not want it."""
        older = [each for each in self._older(model, oldest) if now >= each.deaf_until]
        eldest = min(older, key=lambda each: each.line.since, default=None)
        if eldest is not None and eldest.first_at <= freed_at:
            eldest.deaf_until = now + DEAF_SECONDS

    def _older(self, model: ModelName, oldest: float) -> Iterator[_Heard]:
        several = self._lines.get(model, {}).values()
        return (each for each in several if each.line.since < oldest - self._yield_seconds)

    def _keep(self, model: ModelName, ends: Sequence[float], free: int) -> None:
        """The newest of them, no more than there are free slots."""
        if ends and free:
            self._ends[model] = ends[-free:]
        else:
            self._ends.pop(model, None)
