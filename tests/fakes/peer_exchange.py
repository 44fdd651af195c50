"""What gateways tell each other of leases and waiting requests, in memory: published and heard at an interval."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gateway.domain.ids import GatewayId, ReplicaId
from gateway.routing.peer_fairness import RemoteQueue
from tests.fakes.routing_harness import RoutingHarness

SYNC_SECONDS = 0.02


@dataclass
class FakeExchange:
    """Each gateway hears what the others said last; one that is in `gone` says and hears nothing any more."""

    gateways: Sequence[RoutingHarness]
    interval_seconds: float = SYNC_SECONDS
    gone: set[int] = field(default_factory=set)
    leases: dict[int, Mapping[ReplicaId, int]] = field(default_factory=dict)
    lines: dict[int, tuple[RemoteQueue, ...]] = field(default_factory=dict)

    async def run(self) -> None:
        """Gateways take turns, so that they are out of phase."""
        while True:
            for number in range(len(self.gateways)):
                await trio.sleep(self.interval_seconds / len(self.gateways))
                if number not in self.gone:
                    self.meet(number)

    def meet(self, number: int) -> None:
        """One gateway publishes and hears."""
        gateway, now = self.gateways[number], trio.current_time()
        self.leases[number] = gateway.loads.published()
        self.lines[number] = tuple(
            RemoteQueue(
                GatewayId(str(number)), model, queue.waiting, since := now - queue.oldest_seconds, round(since, 6)
            )
            for model, queue in gateway.admission.statistics().items()
        )
        gateway.admission.apply_remote_queues(
            line for other, lines in self.lines.items() if other != number for line in lines
        )
        at_peers = Counter[ReplicaId]()
        for other, leases in self.leases.items():
            if other != number:
                at_peers.update(leases)
        gateway.loads.apply_peers(at_peers)
