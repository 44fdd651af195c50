"""The pick in SQL and the pure picker are one policy: on random fleets both choose alike and agree on free slots.

What the registry does not know (penalties as load, see registry/postgres/pick_sql.py) is absent from these fleets.
"""

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import SlotRequest
from gateway.domain.routability import Candidate, build_view
from gateway.registry import rows
from gateway.registry.postgres import sql
from gateway.registry.postgres.pool import Connection, PostgresTransaction
from gateway.registry.postgres.reserve_slot import Picked, pick_aio
from gateway.registry.rows import SqlValue
from gateway.registry.tables import ModelRow, NodeRow, Tables
from gateway.routing.load_tracker import NEVER, ReplicaLoad
from gateway.routing.picker import Score, consider, pick
from tests.amounts import examples_to_run
from tests.fakes.postgres_server import PostgresServer

Row = Mapping[str, SqlValue]
Value = TypeVar("Value")

MODEL = ModelName("m")
OTHER = ModelName("modèle ☃")
UNKNOWN = ModelName("unknown")
SPEC = ModelSpec(MODEL, "llama-cpp", "builtin:tiny")
NOW = 100.0
ASKING = GatewayId("asking")
OURS = SlotRequest(ASKING, MODEL)


@dataclass(frozen=True)
class Fleet:
    """Rows as they are stored; they hold also what only a newer gateway, or nobody, would write."""

    models: Sequence[Row] = ()
    nodes: Sequence[Row] = ()
    replicas: Sequence[Row] = ()
    gateways: Sequence[Row] = ()
    request: SlotRequest = OURS
    """What the asking gateway says of itself."""


def model_row(name: ModelName = MODEL, selector: Mapping[str, str] = SPEC.selector, rollout: str = "replace") -> Row:
    row = rows.model_to_row(ModelRow(replace(SPEC, name=name, selector=selector)))
    return {**row, "spec": json.dumps({**json.loads(str(row["spec"])), "rollout": rollout})}


def node_row(node_id: str = "n0", labels: Mapping[str, str] = SPEC.selector, vram: int | None = None) -> Row:
    node = Node(NodeId(node_id), node_id, BootId("boot"), NodeStatus.HEALTHY, labels, free_vram_bytes=vram)
    return rows.node_to_row(NodeRow(node))


def replica_row(replica_id: str = "r0", slot: int = 0, parallel: int = 2, **changes: SqlValue) -> Row:
    """A routable one of `MODEL`."""
    run, ready = Desired.RUN, Observed.READY
    replica = Replica(
        ReplicaId(replica_id), MODEL, NodeId("n0"), slot, SPEC.revision, run, ready, parallel, Address("h:1")
    )
    return {**rows.replica_to_row(replica), **changes}


def gateway_row(
    name: str = "g0",
    leases: Mapping[str, Any] | str = "{}",
    uses: Mapping[str, Any] | str = "{}",
    expires_at: float = NOW + 1,
) -> Row:
    """What it has published; a text is stored as it is."""
    texts = {
        column: said if isinstance(said, str) else json.dumps(said)
        for column, said in {"leases": leases, "uses": uses}.items()
    }
    return {"id": name, "expires_at": expires_at, **texts}


# What makes a replica unroutable, by the table whose row is changed.

ODD_REPLICAS: list[Row] = [
    *({"desired": desired} for desired in ("drain", "stop", "hibernate")),
    *({"observed": str(state)} for state in (*Observed, "hibernating") if state != Observed.READY),
    {"revision": "older"},
    {"address": None},
    {"model": "removed"},
]
NOT_SAID = ("[]", "null", '"x"', '{"per_gpu": {}}', '{"vram_budget": {"share": 0.5, "per_gpu": 1}}')
ODD_NODES: list[Row] = [
    *({"link": str(link)} for link in (*NodeStatus, "hibernating") if link != NodeStatus.HEALTHY),
    {"approved": False},
    {"draining": True},
    {"approved": False, "draining": True},
    *({column: text} for column in ("declared", "overrides") for text in NOT_SAID),
    *({"labels": text} for text in ("[]", "null", '"x"', '{"a": 1}', '{"a": null}', '{"a": {"b": "c"}}')),
]
LEAST_SPEC = '"backend": "llama-cpp", "artifact": "builtin:tiny"'
ODD_MODELS: list[Row] = [
    *(
        {"spec": f"{{{LEAST_SPEC}, {added}}}"}
        for added in ('"vision_tower": "x"', '"selector": []', '"rollout": "canary"')
    ),
    *({"spec": f'{{{LEAST_SPEC}, "selector": {wanted}}}'} for wanted in ("null", '"x"', '{"a": null}', '{"a": "b"}')),
    *({"spec": text} for text in ('{"backend": "b"}', '{"artifact": ""}', "{}", "[]", "null", '"x"')),
    {"spec": '{"backend": null, "artifact": ""}'},
    {"source": "another"},
]
SAID = (
    "{}",
    '{"labels": {"per_gpu": "x"}}',
    '{"max_replicas_per_model": 2, "vram_budget": {}}',
    '{"labels": {"vram_budget": "x"}, "vram_budget": {"share": 0.5, "amount": null}}',
)
PLAIN_NODES: list[Row] = [
    *({column: text} for column in ("declared", "overrides") for text in SAID),
    {"overrides": '{"max_replicas_per_model": null, "vram_budget": null}'},
    *({"capacity": text} for text in ("[]", "null", '{"npus": 1, "ram_bytes": 8}')),
]
"""Routable, whatever else they say."""
LEAST_MODEL: Row = {"spec": f"{{{LEAST_SPEC}}}"}
"""As written before the other keys were added: routable."""

SOUND = Fleet([model_row()], [node_row()], [replica_row()])
UNROUTABLE = {
    **{str(odd): replace(SOUND, replicas=[{**replica_row(), **odd}]) for odd in ODD_REPLICAS},
    **{str(odd): replace(SOUND, nodes=[{**node_row(), **odd}]) for odd in ODD_NODES},
    **{str(odd): replace(SOUND, models=[{**model_row(), **odd}]) for odd in ODD_MODELS},
    "no such model": replace(SOUND, models=[]),
    "another value": Fleet([model_row(selector={"a": "b"})], [node_row(labels={"a": "c", "b": "a"})], SOUND.replicas),
    "one label of two": Fleet(
        [model_row(selector={"a": "b", "c": "d"})], [node_row(labels={"a": "b"})], SOUND.replicas
    ),
    "no label, empty value": replace(SOUND, models=[model_row(selector={"a": ""})]),
}
ROUTABLE = {
    "sound": SOUND,
    **{str(plain): replace(SOUND, nodes=[{**node_row(), **plain}]) for plain in PLAIN_NODES},
    "declared by the API": replace(SOUND, models=[{**model_row(), "source": "api"}]),
    "older spec, labelled node": replace(
        SOUND, models=[{**model_row(), **LEAST_MODEL}], nodes=[node_row(labels={"a": "b"})]
    ),
    "an older revision while no newer one serves": replace(
        SOUND, models=[model_row(rollout="surge")], replicas=[replica_row(revision="older")]
    ),
    "an older revision while the newer one only loads": replace(
        SOUND,
        models=[model_row(rollout="surge")],
        replicas=[replica_row(revision="older"), replica_row("r1", 1, observed="loading")],
    ),
    "selected": Fleet([model_row(selector={"zône": "é"})], [node_row(labels={"a": "b", "zône": "é"})], SOUND.replicas),
}


# Random fleets: most rows are as they should be, and examples shrink towards those.


def mostly(plain: Value, odd: Sequence[Value]) -> st.SearchStrategy[Value]:
    """Odd once in eight times."""
    return st.sampled_from([*[plain] * 7 * len(odd), *odd])


def mostly_of(plain: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Odd once in eight times."""
    return st.integers(0, 7).flatmap(lambda number: odd if number == 7 else plain)


label_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
"""No NUL: PostgreSQL has none in its texts."""
odd_numbers: st.SearchStrategy[Any] = st.sampled_from(["x", None, [], -1, 1.5, "", "9" * 30])
counts = st.integers(0, 2)
times = st.sampled_from([0.0, 1.5, 2.0, 1e9])
ODD_DOCUMENTS = ("[]", "null", '"x"')


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    few_texts = draw(st.lists(label_texts, min_size=1, max_size=2, unique=True))
    mappings = st.dictionaries(st.sampled_from(few_texts), st.sampled_from(few_texts), max_size=2)
    node_ids = ["n0", "n1", "n2"][: draw(st.integers(1, 3))]
    replica_ids = [f"r{number}" for number in range(draw(st.integers(0, 7)))]
    return Fleet(
        [draw(models(name, mappings)) for name in (MODEL, OTHER)],
        [draw(nodes(node_id, mappings)) for node_id in node_ids],
        [draw(replicas(replica_id, slot, node_ids)) for slot, replica_id in enumerate(replica_ids)],
        [draw(gateways(name, replica_ids)) for name in (ASKING, "g0", "g1", "g2")],
        draw(reservations(replica_ids)),
    )


@st.composite
def gateways(draw: st.DrawFn, name: str, replica_ids: Sequence[str]) -> Row:
    """What the asking one has published is never looked at: it brings what it has now."""
    ids = st.sampled_from([*replica_ids, "forgotten"])
    leases = draw(mostly_of(st.dictionaries(ids, mostly_of(counts, odd_numbers)), st.sampled_from(ODD_DOCUMENTS)))
    uses = draw(mostly_of(st.dictionaries(ids, mostly_of(times, odd_numbers)), st.sampled_from(ODD_DOCUMENTS)))
    return gateway_row(name, leases, uses, draw(st.sampled_from([NOW + 1, NOW + 1, NOW + 1, NOW, 0.0])))


@st.composite
def reservations(draw: st.DrawFn, replica_ids: Sequence[str]) -> SlotRequest:
    ids = st.sampled_from([ReplicaId(each) for each in (*replica_ids, "forgotten")])
    few = st.lists(ids, max_size=2)
    return SlotRequest(
        ASKING,
        MODEL,
        leases=draw(st.dictionaries(ids, counts)),
        unused_seconds=draw(st.dictionaries(ids, st.sampled_from([0.0, 98.0, 98.5, 1e3]))),
        excluded=draw(few),
        suspect=draw(few),
        full=draw(few),
        busy=draw(few),
    )


@st.composite
def models(draw: st.DrawFn, name: ModelName, mappings: st.SearchStrategy[dict[str, str]]) -> Row:
    selector = draw(st.just({}) | mappings)
    rollout = draw(st.sampled_from(["replace", "surge"]))
    return {**model_row(name, selector, rollout), **draw(mostly({}, [LEAST_MODEL, *ODD_MODELS]))}


@st.composite
def nodes(draw: st.DrawFn, node_id: str, mappings: st.SearchStrategy[dict[str, str]]) -> Row:
    row = node_row(node_id, draw(mappings), vram=draw(st.none() | st.integers(0, 2)))
    return {**row, **draw(st.sampled_from([{}, *PLAIN_NODES])), **draw(mostly({}, ODD_NODES))}


@st.composite
def replicas(draw: st.DrawFn, replica_id: str, slot: int, node_ids: Sequence[str]) -> Row:
    parallel = draw(st.sampled_from([4, 8, 2, 1, 0]))
    row = replica_row(replica_id, slot, parallel, node_id=draw(st.sampled_from(node_ids)))
    revision = draw(st.sampled_from([SPEC.revision, SPEC.revision, "older"]))
    odd = draw(mostly({}, ODD_REPLICAS))
    return {**row, "model": draw(mostly(MODEL, [OTHER])), "revision": revision, **odd}


# The same fleet, seen from both sides.

GATEWAY_DEFAULTS: Final[Row] = {
    "url": "",
    "secret_fingerprint": "",
    "seen_version": 0,
    "leases_hash": 0,
    "uses_hash": 0,
    "demand": "{}",
    "demand_hash": 0,
    "notes": "{}",
    "notes_hash": 0,
}
NUMBERS: Final = (int, float)


class Database:
    """A registry's tables, on a loop of their own."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._connection = self._runner.run(self._connect_aio(url))

    async def _connect_aio(self, url: str) -> Connection:
        self._pool = await asyncpg.create_pool(url, min_size=1, max_size=1)
        return await self._pool.acquire()

    def store(self, fleet: Fleet) -> None:
        self._runner.run(self._store_aio(fleet))

    async def _store_aio(self, fleet: Fleet) -> None:
        await self._connection.execute(
            "DELETE FROM gateways; DELETE FROM replicas; DELETE FROM nodes; DELETE FROM models"
        )
        for statement, columns, several in (
            (sql.PUT_MODEL, rows.MODEL_COLUMNS, fleet.models),
            (sql.PUT_NODE, rows.NODE_COLUMNS, fleet.nodes),
            (sql.PUT_REPLICA, rows.REPLICA_COLUMNS, fleet.replicas),
        ):
            await self._connection.executemany(statement, [[row[column] for column in columns] for row in several])
        for row in fleet.gateways:
            said = {**GATEWAY_DEFAULTS, **row}
            places = ", ".join(f"${number}" for number in range(1, len(said) + 1))
            insert = f"INSERT INTO gateways ({', '.join(said)}) VALUES ({places})"
            await self._connection.execute(insert, *said.values())

    def pick(self, request: SlotRequest) -> Picked | None:
        return self._runner.run(pick_aio(request, NOW, PostgresTransaction(self._connection)))

    def close(self) -> None:
        self._pool.terminate()
        self._runner.close()


class Stored:
    """A fleet in a database, and as the pure picker sees it."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        database.store(fleet)
        self._database = database
        self._fleet = fleet
        self._alive = [row for row in fleet.gateways if row["id"] != ASKING and float(row["expires_at"] or 0) > NOW]
        self._candidates = build_view(_tables(fleet).state(())).candidates

    def pick(self, model: ModelName, excluded: Collection[ReplicaId] = ()) -> Picked | None:
        request = self._fleet.request
        return self._database.pick(replace(request, model=model, excluded=[*request.excluded, *excluded]))

    def pick_until_none_is_left(self, model: ModelName) -> list[ReplicaId]:
        found = list[ReplicaId]()
        while (picked := self.pick(model, found)) is not None:
            assert picked.replica_id not in found
            found.append(picked.replica_id)
        return found

    def candidates(self, model: ModelName) -> tuple[Candidate, ...]:
        candidates = self._candidates.get(model, ())
        return tuple(each for each in candidates if each.replica_id not in self._fleet.request.excluded)

    def load_of(self, replica_id: ReplicaId) -> ReplicaLoad:
        request = self._fleet.request
        used = [NOW - request.unused_seconds[replica_id]] if replica_id in request.unused_seconds else []
        return ReplicaLoad(
            at_peers=request.leases.get(replica_id, 0) + sum(self._said("leases", replica_id)),
            last_used=max([*used, *self._said("uses", replica_id)], default=NEVER),
            full_until=NOW + 1 if replica_id in request.full else NEVER,
            busy_until=NOW + 1 if replica_id in request.busy else NEVER,
            expiries=[NOW + 1] if replica_id in request.suspect else [],
        )

    def _said(self, column: str, replica_id: ReplicaId) -> Iterator[Any]:
        for row in self._alive:
            said = json.loads(str(row[column]))
            value = said.get(replica_id) if isinstance(said, dict) else None
            if type(value) is int or (column == "uses" and type(value) is float):
                yield value if column == "uses" else max(value, 0)

    def scores(self, model: ModelName) -> dict[ReplicaId, Score]:
        """By candidate, chance left out: what stands alike is equally good."""
        return {
            each.replica_id: consider(each, self.load_of(each.replica_id), NOW, Random(0)).score._replace(chance=0.0)
            for each in self.candidates(model)
        }


def _tables(fleet: Fleet) -> Tables:
    models = [model for row in fleet.models if (model := rows.model_from_row(row)) is not None]
    nodes = [rows.node_from_row(row) for row in fleet.nodes]
    replicas = [rows.replica_from_row(row) for row in fleet.replicas]
    return Tables(
        {each.spec.name: each for each in models},
        {each.node.id: each for each in nodes},
        {each.id: each for each in replicas},
    )


@pytest.fixture(scope="module")
def database(_postgres: PostgresServer, _migrated: str) -> Iterator[Database]:
    with _postgres.open_database(_migrated) as url:
        database = Database(url)
        yield database
        database.close()


# Properties

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(fleet=fleets(), seed=st.integers())
@settings(unhurried, max_examples=examples_to_run(100))
def test_both_choose_alike_up_to_chance(database: Database, fleet: Fleet, seed: int) -> None:
    stored = Stored(database, fleet)
    for model in (MODEL, OTHER, UNKNOWN):
        in_sql, pure = stored.pick(model), pick(stored.candidates(model), stored.load_of, NOW, Random(seed))
        if in_sql is None or pure is None:
            assert (in_sql, pure) == (None, None)
            continue
        scores = stored.scores(model)
        assert scores[in_sql.replica_id] == scores[pure.candidate.replica_id] == min(scores.values())
        assert in_sql.has_free_slot == pure.has_free_slot


@given(fleet=fleets())
@settings(unhurried, max_examples=examples_to_run(100))
def test_the_whole_order_is_one_and_the_id_stands_for_chance(database: Database, fleet: Fleet) -> None:
    stored = Stored(database, fleet)
    for model in (MODEL, OTHER):
        scores = stored.scores(model)
        expected = sorted(scores, key=lambda replica_id: (scores[replica_id], replica_id))
        assert stored.pick_until_none_is_left(model) == expected


# By example, so that nothing of the above holds only because a case never comes up


@pytest.mark.parametrize("fleet", UNROUTABLE.values(), ids=UNROUTABLE)
def test_r11_r12_a8_what_is_not_routable_is_not_picked(database: Database, fleet: Fleet) -> None:
    stored = Stored(database, fleet)
    assert stored.candidates(MODEL) == ()
    assert stored.pick(MODEL) is None


@pytest.mark.parametrize("fleet", ROUTABLE.values(), ids=ROUTABLE)
def test_what_is_routable_is_picked(database: Database, fleet: Fleet) -> None:
    assert Stored(database, fleet).pick(MODEL) == Picked(ReplicaId("r0"), has_free_slot=True)


def test_r2_the_order_part_by_part(database: Database) -> None:
    """Each replica beats the next by one thing only, whatever the ids say."""
    fleet = Fleet(
        [model_row()],
        [node_row("n0"), node_row("n1", vram=1), node_row("n2", vram=2)],
        [
            replica_row("r5", 5, node_id="n2"),
            replica_row("r6", 6, node_id="n1"),
            replica_row("r4", 4, node_id="n0"),
            replica_row("r3", 3, node_id="n2"),
            replica_row("r2", 2, node_id="n2"),
            replica_row("r1", 1, 9, node_id="n2"),
            replica_row("r0", 0, 1, node_id="n2"),
        ],
        [
            gateway_row("g0", {"r1": 2}, {"r3": 0.0, "r2": -1.0}),
            gateway_row("g1", {"r1": 1}, {"r2": 1.0}),
            gateway_row("dead", {"r5": 9}, {"r6": 50.0}, expires_at=NOW),
            gateway_row(ASKING, {"r5": 9}, {"r6": 50.0}),
        ],
        replace(OURS, leases={ReplicaId("r1"): 2, ReplicaId("r0"): 1}),
    )
    assert Stored(database, fleet).pick_until_none_is_left(MODEL) == ["r5", "r6", "r4", "r3", "r2", "r1", "r0"]


def test_all_taken_is_said(database: Database) -> None:
    fleet = replace(SOUND, gateways=[gateway_row("g0", {"r0": 1}), gateway_row("g1", {"r0": 1})])
    assert Stored(database, fleet).pick(MODEL) == Picked(ReplicaId("r0"), has_free_slot=False)


def test_an_unknown_model_has_no_replica(database: Database) -> None:
    assert Stored(database, Fleet()).pick(UNKNOWN) is None


def test_a8_older_revisions_stop_serving_once_a_newer_one_does(database: Database) -> None:
    """Even while that one is taken."""
    fleet = replace(
        SOUND,
        models=[model_row(rollout="surge")],
        replicas=[replica_row("r0", revision="older"), replica_row("r1", 1, parallel=1)],
        gateways=[gateway_row("g0", {"r1": 1})],
    )
    assert Stored(database, fleet).pick_until_none_is_left(MODEL) == ["r1"]


def test_what_the_asking_gateway_knows_of_replicas_counts(database: Database) -> None:
    """Each replica beats the next by one thing only, whatever the ids say; one is excluded."""
    several = [replica_row(f"r{number}", number) for number in range(6)]
    full, suspect, busy, used, unused, failed = (ReplicaId(f"r{number}") for number in range(6))
    request = replace(
        OURS, excluded=[failed], suspect=[suspect], full=[full], busy=[busy], unused_seconds={used: 1.0, unused: 2.0}
    )
    stored = Stored(database, replace(SOUND, replicas=several, request=request))
    assert stored.pick_until_none_is_left(MODEL) == [unused, used, busy, full, suspect]
    assert stored.pick(MODEL, [unused, used, busy]) == Picked(full, has_free_slot=False)


@pytest.mark.parametrize("count", ["x", "", "9" * 30, None, [], -1])
def test_what_can_not_be_read_of_a_peer_state_is_left_out(database: Database, count: object) -> None:
    said = {"r0": count, "r9": 1}
    fleet = replace(SOUND, gateways=[gateway_row("g0", said, said), gateway_row("g1", {"r0": 1})])
    assert Stored(database, fleet).pick(MODEL) == Picked(ReplicaId("r0"), has_free_slot=True)
