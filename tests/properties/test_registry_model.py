"""Random writes on the memory store and on the sqlite store: the same answers, states and audit trails, always."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.cluster import Demand, LoadFailure, NodeStatus, Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.session import Hello, Report
from gateway.registry.memory import open_memory_registry
from gateway.registry.protocol import ControlWrite, RegistryError
from gateway.registry.sqlite import open_sqlite_registry
from gateway.registry.store import Store
from tests.contract.samples import SettableClock


@dataclass(frozen=True)
class Call:
    method: str
    arguments: tuple[Any, ...]


def calls(method: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.tuples(*arguments).map(lambda drawn: Call(method, drawn))


# Few ids, so that the calls meet.
gateway_ids = st.sampled_from([GatewayId("g1"), GatewayId("g2")])
node_ids = st.sampled_from([NodeId("n1"), NodeId("n2")])
model_names = st.sampled_from([ModelName("m1"), ModelName("m2"), ModelName("modèle ☃")])
replica_ids = st.sampled_from([ReplicaId(f"r{number}") for number in range(4)])
small = st.integers(0, 3)
seconds = st.floats(0, 4e9, allow_nan=False)
texts = st.text(max_size=5)
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
    load_timeout_seconds=maybe(seconds),
    source=st.sampled_from(["file", "api"]),
)
hellos = st.builds(
    Hello,
    node_id=node_ids,
    name=st.sampled_from(["box", "tower"]),
    boot_id=st.sampled_from([BootId("b1"), BootId("b2")]),
    labels=mappings,
    max_replicas_per_model=small,
    free_vram_bytes=maybe(st.integers(0, 2**62)),
)
reports = st.builds(
    Report,
    replica_id=replica_ids,
    observed=st.sampled_from(Observed),
    address=maybe(st.just(Address("127.0.0.1:20100"))),
    pid=maybe(small),
    parallel=maybe(small),
    exit_code=maybe(st.integers(-9, 1)),
    error=maybe(st.text(st.characters(exclude_categories=()), max_size=5)),  # lone surrogates too
)
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
    place=tuples(replicas),
    desire=tuples(replica_ids, st.sampled_from(Desired)),
    forget=tuples(replica_ids),
    failures=tuples(model_names, maybe(failures)),
)
demands = st.builds(Demand, gateway_id=gateway_ids, model=model_names, waiting=small, since=seconds)

some_call = st.one_of(
    calls("declare_models", tuples(specs)),
    calls("join_node", hellos, gateway_ids),
    calls("leave_node", node_ids, small, st.sampled_from(NodeStatus)),
    calls("observe", node_ids, st.integers(1, 2), tuples(reports)),
    calls("lead", gateway_ids),
    calls("apply", st.integers(1, 2), control_writes),
    calls("publish_demand", gateway_ids, tuples(demands)),
)
# Most writes need a node, and a leader with epoch 1.
beginning = st.tuples(calls("join_node", hellos, gateway_ids), calls("lead", gateway_ids))
histories = st.tuples(beginning, st.lists(some_call, max_size=12)).map(lambda parts: [*parts[0], *parts[1]])


async def answer(registry: Store, call: Call) -> object:
    try:
        return await getattr(registry, call.method)(*call.arguments)
    except RegistryError as error:
        return type(error), str(error)


async def compare(history: Sequence[Call], url: str) -> None:
    clock = SettableClock()
    async with open_memory_registry(clock=clock) as memory:
        async with open_sqlite_registry(url, clock=clock) as sqlite:
            for call in history:
                clock.seconds += 1.5
                assert await answer(sqlite, call) == await answer(memory, call)
                assert await sqlite.read_state() == await memory.read_state()
                assert sqlite.statistics().version == memory.statistics().version
            assert await sqlite.read_events(100) == await memory.read_events(100)
        for gateway_id in ("g1", "g2"):
            await memory.publish_demand(GatewayId(gateway_id), [])
        async with open_sqlite_registry(url, clock=clock) as reopened:
            assert await reopened.read_state() == await memory.read_state()


@given(history=histories)
@settings(max_examples=60, deadline=None)
def test_both_stores_agree(history: Sequence[Call]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(compare, history, f"sqlite:///{folder}/registry.db")
