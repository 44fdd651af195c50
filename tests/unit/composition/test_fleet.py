"""Two whole gateways of one process on one registry: what each says is what the other does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from grpclib.client import Channel

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.backends.pb import backend_pb2 as pb
from gateway.bridge import Bridge
from gateway.composition.gateway import open_gateway
from gateway.composition.parts import Gateway
from gateway.config.load import parse_config
from gateway.data_dir import StartupError
from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.peers import SlotRequest
from gateway.registry.embedded.memory import MemoryRegistry, open_memory_registry
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream, open_in_memory
from tests.fakes.in_memory_transport import connect_in_memory
from tests.fakes.whole_gateway import CHAT, Handle
from tests.fakes.worker_parts import FakeSpawn

PATIENCE_SECONDS = 20.0
SECRET = "a-secret-that-is-long-enough-for-a-test"


@asynccontextmanager
async def one_registry(registry: MemoryRegistry) -> AsyncIterator[MemoryRegistry]:
    yield registry


class PickingRegistry(MemoryRegistry):
    """Strict mode's: it picks whatever there is."""

    async def reserve_slot(self, _claim: SlotRequest) -> ReplicaId | None:
        return min((await self.read_state()).replicas, default=None)


class Fleet:
    """Gateways over one registry, whose backends are all one in-memory service."""

    def __init__(self, folder: Path, registry: MemoryRegistry) -> None:
        self._folder = folder
        self.registry = registry
        self.service = InMemoryBackend()
        self.service.answer = self._answer
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.spawn = FakeSpawn()

    async def _answer(self, stream: ServerStream, request: Any) -> None:
        match request:
            case pb.HealthMessage():
                await stream.send_message(pb.Reply(message=b"OK"))
            case pb.ModelOptions():
                await stream.send_message(pb.Result(success=True))
            case _:
                while not self.may_answer.is_set():  # noqa: ASYNC110 - the backend's side is asyncio
                    await asyncio.sleep(0.01)
                await stream.send_message(pb.Reply(message=b"hello", tokens=1, prompt_tokens=2))

    @asynccontextmanager
    async def open_gateway(
        self, name: str, *, embedded: bool = False, secret: str = SECRET, mode: str = "snapshot"
    ) -> AsyncIterator[Gateway]:
        channels: list[Channel] = []
        bridges: list[Bridge] = []
        config = parse_config(
            f'[server]\nport = 0\ndata_dir = "{self._folder / name}"\n[auth]\ncluster_secret = "{secret}"\n'
            f'[registry]\nurl = "postgresql://nobody@127.0.0.1/none"\n[routing]\nmode = "{mode}"\n'
            f'[worker]\nname = "box"\nembedded = {str(embedded).lower()}\n',
            {},
        )
        opened = open_gateway(
            config,
            open_registry=lambda _section, _bridge: one_registry(self.registry),
            dial=lambda _address: Handle(channels[0]),
            connect=lambda address: connect_in_memory(bridges[0], self.service)(address),
            spawn=self.spawn,
        )
        async with opened as gateway, open_in_memory(gateway.shared.bridge, self.service) as channel:
            channels.append(channel)
            bridges.append(gateway.shared.bridge)
            yield gateway


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_memory_registry() as registry:
        yield Fleet(tmp_path, registry)


async def eventually(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110 - what another gateway knows has no event here
            await trio.sleep(0.005)


async def chat(gateway: Gateway) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_SECONDS) as client:
        return await client.post("/v1/chat/completions", json=CHAT)


async def test_l14_who_does_not_lead_has_its_models_loaded_by_the_leader(fleet: Fleet) -> None:
    async with fleet.open_gateway("one", embedded=True) as one, fleet.open_gateway("two") as two:
        assert (one.shared.election.epoch, two.shared.election.epoch) == (1, None)
        assert (await chat(two)).status_code == 200
        assert [each.model for each in two.shared.views.current.state.replicas.values()] == ["tiny"]
        assert (await chat(one)).status_code == 200


async def test_leases_of_one_gateway_count_at_the_other_until_they_end(fleet: Fleet) -> None:
    async with fleet.open_gateway("one", embedded=True) as one, fleet.open_gateway("two") as two:
        await chat(one)
        await eventually(lambda: one.shared.peers.has_peers and two.shared.peers.has_peers)
        [replica_id] = one.shared.views.current.state.replicas
        fleet.may_answer = trio.Event()
        async with trio.open_nursery() as requests:
            for _ in range(3):
                requests.start_soon(chat, one)
            await eventually(lambda: two.routing.admission.loads.load_of(replica_id).at_peers == 3)
            assert two.control.reconciler.usage(two.shared.clock())[replica_id].open == 3
            assert one.routing.admission.loads.load_of(replica_id).at_peers == 0
            fleet.may_answer.set()
        await eventually(lambda: two.routing.admission.loads.load_of(replica_id).at_peers == 0)


@pytest.mark.parametrize("mode", ["snapshot", "strict"])
async def test_r3_a_gateway_that_is_alone_tells_its_leases_only_in_strict_mode(tmp_path: Path, mode: str) -> None:
    """There, one that has just come may pick by them before this one has heard of it."""
    fleet = Fleet(tmp_path, PickingRegistry())
    async with fleet.open_gateway("one", embedded=True, mode=mode) as one:
        await chat(one)
        [replica_id] = one.shared.views.current.state.replicas
        fleet.may_answer = trio.Event()
        async with trio.open_nursery() as requests:
            requests.start_soon(chat, one)
            await eventually(lambda: one.routing.admission.loads.in_flight(replica_id) == 1)
            published_leases = one.control.publisher.fast(one.shared.peers.own, one.shared.peers.has_peers).leases
            fleet.may_answer.set()
        assert not one.shared.peers.has_peers
    assert published_leases == ({replica_id: 1} if mode == "strict" else {})


async def test_a_gateway_that_ends_is_followed_as_leader_and_forgotten(fleet: Fleet) -> None:
    async with fleet.open_gateway("two") as two:
        async with fleet.open_gateway("one") as one:
            await eventually(lambda: two.shared.peers.has_peers)
            assert two.shared.election.epoch == 1
            assert one.shared.election.epoch is None
        await eventually(lambda: not two.shared.peers.has_peers)
    async with fleet.open_gateway("three") as three:
        assert three.shared.election.epoch == 2


async def test_a_gateway_with_another_cluster_secret_does_not_start(fleet: Fleet) -> None:
    async with fleet.open_gateway("one") as one:
        await fleet.registry.declare_models([])
        with pytest.raises((StartupError, ExceptionGroup)) as refused:
            async with fleet.open_gateway("two", secret="another-secret-that-is-long-enough-too"):
                pass
        assert (await fleet.registry.read_state()).models == {}  # nor does it change anything
        await eventually(lambda: not one.shared.peers.has_peers)
    assert "has another cluster secret; set auth.cluster_secret" in _words(refused.value)


async def test_two_gateways_in_one_folder_would_end_each_others_backends(fleet: Fleet) -> None:
    async with fleet.open_gateway("one", embedded=True):
        with pytest.raises((StartupError, ExceptionGroup)) as refused:
            async with fleet.open_gateway("one"):
                pass
        assert "another gateway or worker runs in" in _words(refused.value)


async def test_the_embedded_worker_stays_while_the_registry_is_away(fleet: Fleet) -> None:
    async with fleet.open_gateway("one", embedded=True) as one:
        [session] = one.control.sessions.open.values()
        one.control.sync.on_cut_off()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert list(one.control.sessions.open.values()) == [session]
        session.end("a newer session of this node has begun")
        await eventually(lambda: [each.number for each in one.control.sessions.open.values()] == [session.number + 1])
        [node] = one.shared.views.current.state.nodes.values()
        assert node.status is NodeStatus.HEALTHY


async def test_r13_backends_of_a_gateway_that_ends_finish_the_calls_of_the_others(fleet: Fleet) -> None:
    fleet.spawn = FakeSpawn(ignores_term=True)
    async with fleet.open_gateway("two") as two, trio.open_nursery() as nursery:
        ends = trio.Event()
        await nursery.start(_run_one, fleet, ends)
        assert (await chat(two)).status_code == 200
        fleet.may_answer = trio.Event()
        answers: list[httpx.Response] = []
        nursery.start_soon(_keep_answer, two, answers)
        [replica_id] = two.shared.views.current.state.replicas
        await eventually(lambda: two.routing.admission.loads.in_flight(replica_id) == 1)
        [process] = fleet.spawn.started
        ends.set()
        await eventually(lambda: two.shared.views.current.state.replicas[replica_id].observed is Observed.DRAINING)
        await eventually(lambda: bool(process.signals))
        assert [name for _, name in process.signals] == ["SIGTERM"]
        fleet.may_answer.set()
        await eventually(lambda: bool(answers))
        process.end(0)
        await eventually(lambda: not two.shared.peers.has_peers)
    assert answers[0].status_code == 200


async def _run_one(
    fleet: Fleet, ends: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with fleet.open_gateway("one", embedded=True) as one:
        await eventually(lambda: one.shared.peers.has_peers)
        task_status.started()
        await ends.wait()


async def _keep_answer(gateway: Gateway, answers: list[httpx.Response]) -> None:
    answers.append(await chat(gateway))


def _words(error: BaseException) -> str:
    return " ".join(map(_words, error.exceptions)) if isinstance(error, BaseExceptionGroup) else str(error)
