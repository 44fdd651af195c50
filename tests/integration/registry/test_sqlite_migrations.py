"""Registry files of older gateways: they open under this one and keep what they hold, or stay as they were."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.cluster import LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import UNKNOWN
from gateway.registry.embedded import sqlite_file
from gateway.registry.embedded.sqlite import open_sqlite_registry
from gateway.registry.embedded.sqlite_file import migrations
from gateway.registry.protocol import Event, NodeEdit, NodeOverrides, RegistryError

MODEL = ModelSpec(ModelName("tiny"), "llama-cpp", "builtin:tiny", selector={"gpu": "yes"})
NODE = Node(
    NodeId("n1"),
    "box",
    BootId("b1"),
    NodeStatus.HEALTHY,
    {"gpu": "yes"},
    2,
    free_vram_bytes=8,
    session=3,
    gateway_id=GatewayId("g1"),
)
REPLICA = Replica(
    ReplicaId("r1"),
    MODEL.name,
    NODE.id,
    slot=0,
    revision=Revision("rev1"),
    desired=Desired.RUN,
    observed=Observed.READY,
    parallel=4,
    address=Address("127.0.0.1:20100"),
    pid=7,
    since=2.5,
)

ROWS = """
    INSERT INTO models VALUES (
        'tiny', 'file', 'rev1',
        '{"backend": "llama-cpp", "artifact": "builtin:tiny", "selector": {"gpu": "yes"}}', 'no memory', 2, 70.0);
    INSERT INTO nodes VALUES ('n1', 'box', 'b1', 'healthy', '{"gpu": "yes"}', 2, 8, 3, 'g1');
    INSERT INTO replicas VALUES (
        'r1', 'tiny', 'n1', 0, 'rev1', 'run', 'ready', 4, '127.0.0.1:20100', 7, NULL, NULL, 2.5);
    INSERT INTO demand VALUES ('g1', 'tiny', 1, 2.0);
    INSERT INTO events (at, kind, subject, detail) VALUES (2.0, 'node.joined', 'n1', 'session 3 at gateway g1');
    UPDATE leadership SET gateway_id = 'g1', epoch = 5;
    UPDATE state_version SET version = 41;
    PRAGMA application_id = 1735686009;
"""
"""What a gateway that knew the first migrations only has left behind: literally, since nobody rewrites the past."""


@pytest.fixture(params=[1, 2, 3, 4], ids=["schema 1", "schema 2", "schema 3", "schema 4"])
def schema(request: pytest.FixtureRequest) -> int:
    schema: int = request.param
    return schema


@pytest.fixture
def path(tmp_path: Path, schema: int) -> Path:
    """One of schema 3 was one of schema 2 before."""
    path = tmp_path / "registry.db"
    first, later = migrations()[: min(schema, 2)], migrations()[2:schema]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{''.join(first)} {ROWS} {''.join(later)} PRAGMA user_version = {schema};")
    return path


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def ask(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


async def test_l17_a_file_of_an_earlier_schema_keeps_all_but_the_demand(path: Path, url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        state = await registry.read_state()
        events = await registry.read_events(10)
    assert state.version == 41
    assert state.models == {MODEL.name: MODEL}
    assert state.failures == {MODEL.name: LoadFailure("no memory", attempts=2, retry_at=70.0)}
    assert state.nodes == {NODE.id: replace(NODE, joined_boot_id=NODE.boot_id)}
    assert state.replicas == {REPLICA.id: REPLICA}
    assert (state.demand, state.requirements, state.unloads) == ((), {}, {})
    assert events == (Event(2.0, "node.joined", "n1", "session 3 at gateway g1"),)
    assert ask(path, "PRAGMA user_version") == [(len(migrations()),)]


async def test_l13_sessions_and_epochs_go_on_where_they_were(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        assert await registry.mark_node(NODE.id, 3, NodeStatus.OFFLINE, ended=True)
        assert await registry.acquire_or_renew(GatewayId("g1"), 10) == 5
        assert await registry.apply(5, ControlWrite(delete=(REPLICA.id,)))
        assert await registry.acquire_or_renew(GatewayId("g2"), 10) is None
        await registry.leave(GatewayId("g1"))
        assert await registry.acquire_or_renew(GatewayId("g2"), 10) == 6
        assert registry.statistics().version == 44


async def test_a_node_of_an_earlier_schema_is_what_its_worker_declared(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        await registry.edit_node(NODE.id, NodeEdit(overrides=NodeOverrides({"tier": "a"})))
        node = (await registry.read_state()).nodes[NODE.id]
    assert (node.labels, node.max_replicas_per_model) == ({"node.name": "box", "gpu": "yes", "tier": "a"}, 2)
    assert (node.approved, node.draining, node.capacity, node.since) == (True, False, UNKNOWN, 0.0)


async def test_a_node_whose_labels_nobody_can_read_does_not_keep_the_file_from_opening(path: Path, url: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE nodes SET labels = 'not json'")
    async with open_sqlite_registry(url) as registry:
        node = (await registry.read_state()).nodes[NODE.id]
    assert (node.status, node.labels, node.session) == (NodeStatus.UNHEALTHY, {}, 3)


async def test_a_migrated_file_has_the_schema_of_a_new_one(path: Path, url: str, tmp_path: Path) -> None:
    for each in (url, f"sqlite:///{tmp_path}/new.db"):
        async with open_sqlite_registry(each):
            pass
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert ask(path, schema) == ask(tmp_path / "new.db", schema)


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, url: str, schema: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ask(path, "SELECT name FROM sqlite_master ORDER BY name")
    broken = (*migrations()[:schema], "CREATE TABLE half (a); DELETE FROM replicas; CREATE TABLE models (b);")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "migrations", lambda: broken)
        with pytest.raises(RegistryError, match="table models already exists"):
            async with open_sqlite_registry(url):
                pass
    assert ask(path, "PRAGMA user_version") == [(schema,)]
    assert ask(path, "SELECT name FROM sqlite_master ORDER BY name") == before
    async with open_sqlite_registry(url) as registry:
        assert (await registry.read_state()).replicas == {REPLICA.id: REPLICA}
