"""Random writes on the memory store and on each other store: the same answers, states and audit trails, always."""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.bridge import open_bridge
from gateway.domain.cluster import ClusterState, Demand, LoadFailure, NodeStatus, Progress, Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.peers import PeerState, PendingReason, Use
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Capacity, Gpu, Requirement, VramBudget
from gateway.domain.session import Hello, Registration, Report
from gateway.registry.embedded.memory import open_memory_registry
from gateway.registry.embedded.sqlite import open_sqlite_registry
from gateway.registry.postgres.registry import open_postgres_registry
from gateway.registry.protocol import NodeEdit, NodeOverrides, RegistryError
from gateway.registry.store import MakeId, Store
from tests.amounts import examples_to_run
from tests.contract.samples import SettableClock
from tests.fakes.postgres_server import PostgresServer

OpenStore: TypeAlias = Callable[[SettableClock, MakeId], AbstractAsyncContextManager[Store]]


@dataclass(frozen=True)
class Age:
    """Stands for the session number of a node: that much older than the newest."""

    sessions: int


@dataclass(frozen=True)
class Call:
    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def calls(
    method: str, *arguments: st.SearchStrategy[Any], **keywords: st.SearchStrategy[Any]
) -> st.SearchStrategy[Call]:
    drawn = st.tuples(st.tuples(*arguments), st.fixed_dictionaries(keywords))
    return drawn.map(lambda parts: Call(method, *parts))


# Few ids, so that the calls meet.
gateway_ids = st.sampled_from([GatewayId("g1"), GatewayId("g2")])
FRESH = "made-1"
"""The first id that a store makes for a node."""
node_ids = st.sampled_from([NodeId("n1"), NodeId("n2"), NodeId(FRESH)])
node_names = st.sampled_from(["box", "tower", "b\0x", "b\ud800x"])
boot_ids = st.sampled_from([BootId("b1"), BootId("b2")])


class PresentRevision:
    """Stands for the revision that the model has."""


ages = st.sampled_from([Age(0), Age(0), Age(0), Age(1)])
model_names = st.sampled_from([ModelName("m1"), ModelName("m2"), ModelName("modèle ☃")])
replica_ids = st.sampled_from([ReplicaId(f"r{number}") for number in range(4)])
small = st.integers(0, 3)
seconds = st.floats(0, 4e9, allow_nan=False)
texts = st.text(max_size=5)
any_texts = st.text(st.characters(exclude_categories=()), max_size=5)
"""Lone surrogates too."""
mappings = st.dictionaries(texts, texts, max_size=2)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


specs = st.builds(
    ModelSpec,
    name=model_names,
    backend=st.sampled_from(["llama-cpp", "other"]),
    artifact=texts,
    sha256=maybe(texts),
    context_size=maybe(small),
    gpu_layers=maybe(small),
    parallel=maybe(small),
    options=mappings,
    min_replicas=small,
    max_replicas=small,
    on_every_node=st.booleans(),
    selector=mappings,
    exclusive_group=maybe(texts),
    pinned=st.booleans(),
    load_timeout_seconds=maybe(seconds),
    rollout=st.sampled_from(["replace", "surge"]),
    source=st.sampled_from(["file", "api"]),
)
registrations = st.builds(
    Registration, name=node_names, boot_id=boot_ids, node_id=maybe(node_ids), approved=st.booleans()
)
amounts = maybe(st.integers(0, 2**40))
requirements = st.builds(Requirement, vram_bytes=amounts, ram_bytes=amounts, disk_bytes=amounts, measured=st.booleans())
labels = st.dictionaries(any_texts, any_texts, max_size=2)
gpus = st.builds(
    Gpu,
    vendor=any_texts,
    name=any_texts,
    uuid=any_texts,
    vram_bytes=amounts,
    vram_free_bytes=amounts,
    unified=st.booleans(),
)
capacities = st.builds(
    Capacity,
    gpus=st.lists(gpus, max_size=2).map(tuple),
    ram_bytes=amounts,
    ram_free_bytes=amounts,
    disk_bytes=amounts,
    disk_free_bytes=amounts,
    cpu_count=maybe(small),
    cpu_flags=st.lists(any_texts, max_size=2).map(tuple),
)
budgets = st.builds(VramBudget, amount=amounts, share=maybe(st.floats(0, 1, exclude_min=True)))
overrides = st.builds(NodeOverrides, labels=labels, max_replicas_per_model=maybe(small), vram_budget=maybe(budgets))
edits = st.builds(NodeEdit, approved=maybe(st.booleans()), draining=maybe(st.booleans()), overrides=maybe(overrides))
reports = st.builds(
    Report,
    replica_id=replica_ids,
    observed=st.sampled_from(Observed),
    address=maybe(st.just(Address("127.0.0.1:20100"))),
    pid=maybe(small),
    parallel=maybe(small),
    exit_code=maybe(st.integers(-9, 1)),
    error=maybe(any_texts),
)
capabilities = st.builds(Capabilities, generates=maybe(st.booleans()), context_tokens=maybe(small))
replicas = st.builds(
    Replica,
    id=replica_ids,
    model=model_names,
    node_id=node_ids,
    slot=st.integers(0, 1),
    revision=st.just(Revision("r")),
    desired=st.sampled_from(Desired),
    observed=st.sampled_from(Observed),
    parallel=small,
    since=seconds,
)
failures = st.builds(LoadFailure, cause=texts, attempts=small, retry_at=seconds)


def tuples(*values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.tuples(*values) if len(values) > 1 else values[0]
    return st.lists(parts, max_size=3).map(tuple)


control_writes = st.builds(
    ControlWrite,
    create=tuples(replicas),
    set_desired=tuples(replica_ids, st.sampled_from(Desired)),
    delete=tuples(replica_ids),
    set_failures=tuples(model_names, maybe(failures)),
)
hellos = st.builds(
    Hello,
    node_id=node_ids,
    name=node_names,
    boot_id=boot_ids,
    labels=labels,
    max_replicas_per_model=small,
    capacity=capacities,
    vram_budget=budgets,
    replicas=tuples(reports),
)


def peer_states_of(gateway_id: GatewayId) -> st.SearchStrategy[PeerState]:
    return st.builds(
        PeerState,
        gateway_id=st.just(gateway_id),
        url=st.sampled_from(["", "http://one:8080"]),
        secret_fingerprint=st.sampled_from(["f1", "f2"]),
        seen_version=small,
        leases=st.dictionaries(replica_ids, st.integers(1, 9), max_size=2),
        uses=st.dictionaries(replica_ids, st.builds(Use, seconds), max_size=2),
        demand=st.dictionaries(model_names, st.tuples(small, seconds), max_size=2).map(
            lambda rows: tuple(Demand(gateway_id, model, *rows[model]) for model in sorted(rows))
        ),
        progress=st.dictionaries(replica_ids, st.builds(Progress, amounts, amounts, maybe(seconds)), max_size=2),
        pending=st.dictionaries(model_names, st.builds(PendingReason, st.just("no room"), st.booleans()), max_size=2),
        unsatisfiable=st.dictionaries(model_names, st.just("1 of 2"), max_size=2),
    )


peer_states = gateway_ids.flatmap(peer_states_of)
terms = st.sampled_from([1.0, 5.0, 100.0])

LINKS = [status for status in NodeStatus if status is not NodeStatus.PENDING]

some_call = st.one_of(
    calls("declare_models", tuples(specs)),
    calls("put_model", specs),
    calls("remove_model", model_names),
    calls("unload_model", model_names),
    calls("retry_model", model_names),
    calls("record_capabilities", model_names, st.sampled_from([PresentRevision(), Revision("r")]), capabilities),
    calls("record_requirement", model_names, st.sampled_from([PresentRevision(), Revision("r")]), requirements),
    calls("register_node", registrations),
    calls("join_node", hellos, gateway_ids),
    calls("mark_node", node_ids, ages, st.sampled_from(LINKS), ended=st.booleans()),
    calls("record_capacity", node_ids, ages, capacities),
    calls("edit_node", node_ids, edits),
    calls("remove_node", node_ids),
    calls("record_reports", node_ids, ages, tuples(reports)),
    calls("record_broken", replica_ids, any_texts, lost=st.booleans()),
    calls("acquire_or_renew", gateway_ids, terms),
    calls("leave", gateway_ids),
    calls("apply", st.integers(1, 2), control_writes),
    calls("sync_peers", peer_states, terms),
)
# Most writes need a node in session, and a leader with epoch 1.
beginning = st.tuples(
    calls("register_node", st.just(Registration("box", BootId("b1")))),
    calls(
        "join_node", hellos.map(lambda hello: replace(hello, node_id=NodeId(FRESH), boot_id=BootId("b1"))), gateway_ids
    ),
    calls("acquire_or_renew", gateway_ids, terms),
)
histories = st.tuples(beginning, st.lists(some_call, max_size=12)).map(lambda parts: [*parts[0], *parts[1]])


def ids() -> Callable[[], str]:
    """The ids that a store makes: each the same ones."""
    numbers = count(1)
    return lambda: f"made-{next(numbers)}"


async def with_present(store: Store, call: Call) -> Call:
    """What stands for something of the present state, replaced by that: the age of a session by a number of the node
    that the call is about."""
    match call.arguments:
        case (node_id, Age(sessions=sessions), *rest):
            node = (await store.read_state()).nodes.get(node_id)
            return replace(call, arguments=(node_id, (node.session if node else 0) - sessions, *rest))
        case (name, PresentRevision(), *rest):
            spec = (await store.read_state()).models.get(name)
            return replace(call, arguments=(name, spec.revision if spec else Revision("none"), *rest))
    return call


async def answer(registry: Store, call: Call) -> object:
    try:
        return await getattr(registry, call.method)(*call.arguments, **call.keywords)
    except RegistryError as error:
        return type(error), str(error)


async def compare(history: Sequence[Call], open_other: OpenStore) -> None:
    clock = SettableClock()
    async with open_memory_registry(clock=clock, make_id=ids()) as memory:
        async with open_other(clock, ids()) as other:
            for planned in history:
                clock.seconds += 1.5
                call = await with_present(memory, planned)
                before = await memory.read_state()
                assert await answer(other, call) == await answer(memory, call)
                after = await memory.read_state()
                assert await other.read_state() == after
                assert other.statistics().version == memory.statistics().version
                check(before, after)
            assert await other.read_events(100) == await memory.read_events(100)
            for gateway_id in ("g1", "g2"):
                await memory.leave(GatewayId(gateway_id))
                await other.leave(GatewayId(gateway_id))
        async with open_other(clock, ids()) as reopened:
            assert await reopened.read_state() == await memory.read_state()


def check(before: ClusterState, after: ClusterState) -> None:
    """What no write may break, whichever it was."""
    assert after.version - before.version in (0, 1)
    if after.version == before.version:
        assert replace(after, demand=()) == replace(before, demand=())
    names = [node.name for node in after.nodes.values()]
    assert len(set(names)) == len(names)
    assert {replica.node_id for replica in after.replicas.values()} <= after.nodes.keys()
    for node in after.nodes.values():
        old = before.nodes.get(node.id)
        assert old is None or node.session >= old.session
        assert old is None or (node.since == old.since) == (node.condition == old.condition)
        assert node.condition is not NodeStatus.PENDING


@given(history=histories)
@settings(max_examples=examples_to_run(60), deadline=None)
def test_memory_and_sqlite_agree(history: Sequence[Call]) -> None:
    with tempfile.TemporaryDirectory() as folder:

        def open_sqlite(clock: SettableClock, make_id: MakeId) -> AbstractAsyncContextManager[Store]:
            return open_sqlite_registry(f"sqlite:///{folder}/registry.db", clock=clock, make_id=make_id)

        trio.run(compare, history, open_sqlite)


@given(history=histories)
@settings(max_examples=examples_to_run(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_and_postgres_agree(
    postgres_server: PostgresServer, emptied_postgres_url: str, history: Sequence[Call]
) -> None:
    postgres_server.empty(emptied_postgres_url)

    @asynccontextmanager
    async def open_postgres(clock: SettableClock, make_id: MakeId) -> AsyncIterator[Store]:
        async with (
            open_bridge() as bridge,
            open_postgres_registry(bridge, emptied_postgres_url, clock=clock, make_id=make_id) as registry,
        ):
            yield registry

    trio.run(compare, history, open_postgres)
