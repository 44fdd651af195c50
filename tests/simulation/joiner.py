"""The gateways of a worker's join list, reached without a network: links that are slow, break and fall silent."""

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from gateway.domain.ids import BootId, NodeId, new_id
from gateway.domain.resources import UNKNOWN
from gateway.domain.session import FromWorker, Hello, Registration, ToWorker
from gateway.registry.protocol import RegistryError
from gateway.worker.agent import Agent
from gateway.worker.membership import HoldSession, NoSession
from tests.fakes.worker_harness import HEARTBEAT_SECONDS
from tests.simulation.machine import MESSAGES_MAX

if TYPE_CHECKING:
    from tests.simulation.sim_worker import SimWorker

T = TypeVar("T")

SILENCE_SECONDS: Final = 3 * HEARTBEAT_SECONDS
"""After which a worker looks for another gateway."""
JOIN_SECONDS: Final = 10.0
"""For a registration."""
LAST_WORDS_SECONDS: Final = 1.0
"""For what is still on its way when a session ends."""


class Host(Protocol):
    """A gateway as its workers see it."""

    @property
    def is_well(self) -> bool:
        """It lives, and its registry answers it."""

    async def wait_continued(self) -> None:
        """Returns at once unless it is stopped."""

    async def register(self, registration: Registration) -> None:
        """Raises `RegistryError`."""

    def serve(self, link: "Link", hello: Hello) -> None:
        """Begins a session."""


class Link:
    """The connection of one session, both ways."""

    def __init__(self, gateway: Host) -> None:
        self.gateway = gateway
        self.orders_out, self.orders_late = trio.open_memory_channel[ToWorker](1)
        self.orders_in, self.orders = trio.open_memory_channel[ToWorker](1)
        self.reports_out, self.reports_late = trio.open_memory_channel[FromWorker](MESSAGES_MAX)
        self.reports_in, self.reports = trio.open_memory_channel[FromWorker](MESSAGES_MAX)
        self.last_message_at = trio.current_time()
        """When the worker last heard of the gateway."""
        self.reported_at = self.last_message_at
        """When the gateway last heard of the worker."""
        self.at_worker = trio.CancelScope()
        self.at_gateway = trio.CancelScope()
        self.ended = trio.Event()
        """The gateway has closed its end."""

    def cut(self) -> None:
        """Both sides notice at once."""
        self.at_worker.cancel()
        self.at_gateway.cancel()


class SimJoiner:
    """Opens the sessions of one boot of one machine. A gateway that is None does not answer."""

    def __init__(self, sim_worker: "SimWorker", agent: Agent) -> None:
        self.link: Link | None = None
        """Of the present session."""
        self._sim_worker = sim_worker
        self._agent = agent
        self._boot_id = BootId(new_id())

    async def attend(self, gateway: Host | None, hold: HoldSession) -> None:
        """One session, from the registration to its end. Raises `NoSession`."""
        if gateway is None:
            raise NoSession("it does not answer")
        name, node_id = self._sim_worker.name, NodeId(self._sim_worker.name)
        try:
            with trio.fail_after(JOIN_SECONDS):
                await gateway.register(Registration(name, self._boot_id, node_id))
        except (RegistryError, trio.TooSlowError) as error:
            self._sim_worker.world.note(f"{name} does not join: {error!r}")
            raise NoSession(repr(error)) from error
        replicas, most = self._agent.all_reports(), self._sim_worker.replicas_max
        link = Link(gateway)
        gateway.serve(link, Hello(node_id, name, self._boot_id, max_replicas_per_model=most, replicas=replicas))
        try:
            with link.at_worker:
                await self._carry_session(link, hold)
        finally:
            self.link = None
            link.at_gateway.cancel()
        self._sim_worker.world.note(f"{name} has no session any more")

    async def _carry_session(self, link: Link, hold: HoldSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry_orders, link)
            nursery.start_soon(self._carry_reports, link)
            nursery.start_soon(self._watch_silence, link)
            self.link = link
            await hold(link.reports_out, link.orders, UNKNOWN)
            with trio.move_on_after(LAST_WORDS_SECONDS):
                await link.ended.wait()
            nursery.cancel_scope.cancel()

    async def _carry_orders(self, link: Link) -> None:
        async with link.orders_late, link.orders_in:
            async for order in link.orders_late:
                await self._carry(link, order, link.orders_in)
                link.last_message_at = trio.current_time()

    async def _carry_reports(self, link: Link) -> None:
        async with link.reports_late, link.reports_in:
            async for report in link.reports_late:
                await self._carry(link, report, link.reports_in)
                link.reported_at = trio.current_time()

    async def _carry(self, link: Link, item: T, onward: trio.MemorySendChannel[T]) -> None:
        await trio.sleep(self._sim_worker.lag_seconds)
        await link.gateway.wait_continued()
        try:
            await onward.send(item)
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()  # whoever has closed the other end ends the session

    async def _watch_silence(self, link: Link) -> None:
        while (until := link.last_message_at + SILENCE_SECONDS) > trio.current_time():  # noqa: ASYNC110
            await trio.sleep_until(until)
        self._sim_worker.world.note(f"{self._sim_worker.name} does not hear its gateway any more")
        link.at_worker.cancel()
