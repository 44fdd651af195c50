"""The pick in SQL and the pure picker are one policy: on random fleets both choose alike and agree on free slots.

What the registry does not know (refusals, probes, phantoms: see registry/pick_sql.py) is absent from these fleets.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import Address, BootId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.registry import rows
from gateway.registry.pick_sql import Picked, pick_in_sql
from gateway.registry.rows import SqlValue
from gateway.registry.sqlite import SqliteRegistry
from gateway.registry.sqlite_file import SqliteFile, Transaction
from gateway.registry.tables import ModelRow, NodeRow
from gateway.routing.eligibility import Candidate, build_view
from gateway.routing.load_table import NEVER, ReplicaUse
from gateway.routing.picker import Standing, pick, standing_of

Row = Mapping[str, SqlValue]
Value = TypeVar("Value")

MODEL = ModelName("m")
OTHER = ModelName("modèle ☃")
UNKNOWN = ModelName("unknown")
SPEC = ModelSpec(MODEL, "llama-cpp", "builtin:tiny")
NOW = 100.0


@dataclass(frozen=True)
class Fleet:
    """Rows as they are stored. All tables but `leases` hold also what only a newer gateway, or nobody, would write."""

    models: Sequence[Row] = ()
    nodes: Sequence[Row] = ()
    replicas: Sequence[Row] = ()
    leases: Sequence[Row] = ()


def model_row(name: ModelName = MODEL, selector: Mapping[str, str] = SPEC.selector) -> Row:
    return rows.model_to_row(ModelRow(replace(SPEC, name=name, selector=selector)))


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


def lease_row(replica_id: str, gateway_id: str = "g0", count: int = 1, last_used: float | None = None) -> Row:
    return {"gateway_id": gateway_id, "replica_id": replica_id, "open": count, "last_used": last_used}


# What makes a replica unroutable, by the table whose row is changed.

ODD_REPLICAS: list[Row] = [
    *({"desired": desired} for desired in ("drain", "stop", "hibernate")),
    *({"observed": str(state)} for state in (*Observed, "hibernating") if state != Observed.READY),
    {"revision": "older"},
    {"address": None},
    {"model": "removed"},
]
NOT_SAID = ("not json", "[]", "null", '"x"', '{"per_gpu": {}}', '{"vram_budget": {"share": 0.5, "per_gpu": 1}}')
ODD_NODES: list[Row] = [
    *({"link": str(link)} for link in (*NodeStatus, "hibernating") if link != NodeStatus.HEALTHY),
    {"approved": 0},
    {"draining": 1},
    {"approved": 0, "draining": 1},
    *({column: text} for column in ("declared", "overrides") for text in NOT_SAID),
    *({"labels": text} for text in ("not json", "[]", "null", '"x"', '{"a": 1}', '{"a": null}', '{"a": {"b": "c"}}')),
]
LEAST_SPEC = '"backend": "llama-cpp", "artifact": "builtin:tiny"'
ODD_MODELS: list[Row] = [
    *({"spec": f"{{{LEAST_SPEC}, {added}}}"} for added in ('"vision_tower": "x"', '"selector": []')),
    *({"spec": f'{{{LEAST_SPEC}, "selector": {wanted}}}'} for wanted in ("null", '"x"', '{"a": null}', '{"a": "b"}')),
    *({"spec": text} for text in ('{"backend": "b"}', '{"artifact": ""}', "{}", "[]", "null", '"x"', "not json")),
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
    *({"capacity": text} for text in ("not json", "[]", "null", '{"npus": 1, "ram_bytes": 8}')),
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
    "selected": Fleet([model_row(selector={"zône": "é"})], [node_row(labels={"a": "b", "zône": "é"})], SOUND.replicas),
}


# Random fleets: most rows are as they should be, and examples shrink towards those.


def mostly(plain: Value, odd: Sequence[Value]) -> st.SearchStrategy[Value]:
    """Odd once in eight times."""
    return st.sampled_from([*[plain] * 7 * len(odd), *odd])


label_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
"""No NUL: SQLite's JSON functions end a text there, and PostgreSQL has none in its texts at all."""
usages = st.none() | st.tuples(st.integers(0, 2), st.none() | st.sampled_from([0.0, 1.5, 2.0]))
"""Open leases and last use as one gateway publishes them for one replica, if it does."""


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
        [
            lease_row(replica_id, gateway_id, *usage)
            for replica_id in (*replica_ids, "forgotten")
            for gateway_id in ("g0", "g1")
            if (usage := draw(usages)) is not None
        ],
    )


@st.composite
def models(draw: st.DrawFn, name: ModelName, mappings: st.SearchStrategy[dict[str, str]]) -> Row:
    selector = draw(st.just({}) | mappings)
    return {**model_row(name, selector), **draw(mostly({}, [LEAST_MODEL, *ODD_MODELS]))}


@st.composite
def nodes(draw: st.DrawFn, node_id: str, mappings: st.SearchStrategy[dict[str, str]]) -> Row:
    row = node_row(node_id, draw(mappings), vram=draw(st.none() | st.integers(0, 2)))
    return {**row, **draw(st.sampled_from([{}, *PLAIN_NODES])), **draw(mostly({}, ODD_NODES))}


@st.composite
def replicas(draw: st.DrawFn, replica_id: str, slot: int, node_ids: Sequence[str]) -> Row:
    parallel = draw(st.sampled_from([4, 8, 2, 1, 0]))
    row = replica_row(replica_id, slot, parallel, node_id=draw(st.sampled_from(node_ids)))
    return {**row, "model": draw(mostly(MODEL, [OTHER])), **draw(mostly({}, ODD_REPLICAS))}


# The same fleet, seen from both sides.


class Stored:
    """A fleet in a registry file."""

    def __init__(self, file: SqliteFile, fleet: Fleet) -> None:
        self._file = file
        with file.transaction() as transaction:
            for table in ("leases", "replicas", "nodes", "models"):
                transaction.rows(f"DELETE FROM {table}")
            for table in ("models", "nodes", "replicas", "leases"):
                _insert(transaction, table, getattr(fleet, table))
            self._leases = transaction.rows("SELECT * FROM leases")
        self._candidates = build_view(trio.run(self._read)).candidates

    async def _read(self) -> ClusterState:
        return await SqliteRegistry(self._file, time.time, version=0).read_state()

    def pick(self, model: ModelName) -> Picked | None:
        with self._file.transaction("DEFERRED") as transaction:
            return pick_in_sql(transaction, model)

    def pick_until_none_is_left(self, model: ModelName) -> list[ReplicaId]:
        found = list[ReplicaId]()
        with self._file.transaction() as transaction:
            while (picked := pick_in_sql(transaction, model)) is not None:
                found.append(picked.replica_id)
                transaction.rows("DELETE FROM replicas WHERE id = ?", picked.replica_id)
        return found

    def candidates(self, model: ModelName) -> tuple[Candidate, ...]:
        return self._candidates.get(model, ())

    def use_of(self, replica_id: ReplicaId) -> ReplicaUse:
        use = ReplicaUse()
        for lease in self._leases:
            if lease["replica_id"] == replica_id:
                use.elsewhere += lease["open"]
                use.last_used = max(use.last_used, NEVER if lease["last_used"] is None else lease["last_used"])
        return use

    def standings(self, model: ModelName) -> dict[ReplicaId, Standing]:
        """By candidate, chance left out: what stands alike is equally good."""
        return {
            each.replica_id: standing_of(each, self.use_of(each.replica_id), NOW, Random(0))._replace(chance=0.0)
            for each in self.candidates(model)
        }


def _insert(transaction: Transaction, table: str, several: Sequence[Row]) -> None:
    for row in several:
        columns = ", ".join(f":{column}" for column in row)
        transaction.write(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({columns})", [row])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteFile]:
    file = SqliteFile.open(Path(tmp_path_factory.mktemp("registry")) / "registry.db")
    yield file
    file.close()


# Properties

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(fleet=fleets(), seed=st.integers())
@settings(unhurried, max_examples=300)
def test_both_choose_alike_up_to_chance(file: SqliteFile, fleet: Fleet, seed: int) -> None:
    stored = Stored(file, fleet)
    for model in (MODEL, OTHER, UNKNOWN):
        in_sql, pure = stored.pick(model), pick(stored.candidates(model), stored.use_of, NOW, Random(seed))
        if in_sql is None or pure is None:
            assert (in_sql, pure) == (None, None)
            continue
        standings = stored.standings(model)
        assert standings[in_sql.replica_id] == standings[pure.candidate.replica_id] == min(standings.values())
        assert in_sql.has_free_slot == pure.has_free_slot


@given(fleet=fleets())
@settings(unhurried, max_examples=200)
def test_the_whole_order_is_one_and_the_id_stands_for_chance(file: SqliteFile, fleet: Fleet) -> None:
    stored = Stored(file, fleet)
    for model in (MODEL, OTHER):
        standings = stored.standings(model)
        expected = sorted(standings, key=lambda replica_id: (standings[replica_id], replica_id))
        assert stored.pick_until_none_is_left(model) == expected


# By example, so that nothing of the above holds only because a case never comes up


@pytest.mark.parametrize("fleet", UNROUTABLE.values(), ids=UNROUTABLE)
def test_r11_r12_a8_what_is_not_routable_is_not_picked(file: SqliteFile, fleet: Fleet) -> None:
    stored = Stored(file, fleet)
    assert stored.candidates(MODEL) == ()
    assert stored.pick(MODEL) is None


@pytest.mark.parametrize("fleet", ROUTABLE.values(), ids=ROUTABLE)
def test_what_is_routable_is_picked(file: SqliteFile, fleet: Fleet) -> None:
    assert Stored(file, fleet).pick(MODEL) == Picked(ReplicaId("r0"), has_free_slot=True)


def test_r2_the_order_part_by_part(file: SqliteFile) -> None:
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
            lease_row("r3", "g0", 0, last_used=0.0),
            lease_row("r3", "g1", 0, last_used=None),
            lease_row("r2", "g0", 0, last_used=-1.0),
            lease_row("r2", "g1", 0, last_used=1.0),
            lease_row("r1", "g0", 2),
            lease_row("r1", "g1", 3),
            lease_row("r0", "g0", 1),
        ],
    )
    assert Stored(file, fleet).pick_until_none_is_left(MODEL) == ["r5", "r6", "r4", "r3", "r2", "r1", "r0"]


def test_all_taken_is_said(file: SqliteFile) -> None:
    fleet = Fleet([model_row()], [node_row()], [replica_row()], [lease_row("r0", "g0"), lease_row("r0", "g1")])
    assert Stored(file, fleet).pick(MODEL) == Picked(ReplicaId("r0"), has_free_slot=False)


def test_an_unknown_model_has_no_replica(file: SqliteFile) -> None:
    assert Stored(file, Fleet()).pick(UNKNOWN) is None
