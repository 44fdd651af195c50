"""The SQLite registry and its file: urls, broken files, rows of a newer gateway, cancellation in mid-transaction."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing
import trio

from gateway.bridge import open_bridge
from gateway.config.model import RegistrySection
from gateway.domain.cluster import ClusterState, Demand, NodeStatus
from gateway.domain.ids import Address, ModelName
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import PeerState
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import UNKNOWN, Capacity, Gpu, Requirement, VramBudget
from gateway.domain.session import Report
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.embedded.sqlite import SqliteRegistry, open_sqlite_registry
from gateway.registry.embedded.sqlite_file import SqliteFile, migrations
from gateway.registry.open import open_registry
from gateway.registry.postgres.registry import PostgresRegistry
from gateway.registry.protocol import (
    DeclaredInFile,
    NodeEdit,
    NodeOverrides,
    RegistryError,
    RegistryLocked,
    WritesRefused,
)
from gateway.registry.tables import EVENTS_KEPT
from tests.contract.samples import (
    GATEWAY,
    MODEL,
    NODE,
    OTHER_GATEWAY,
    OTHER_REPLICA,
    REPLICA,
    bumping,
    hello,
    join,
    lead,
    place,
    registration,
    replica,
    spec,
    stored,
    stored_node,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def execute(path: Path, sql: str, *parameters: object) -> None:
    """What an operator, or a gateway of another version, does to the closed file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, parameters)


async def read(url: str) -> ClusterState:
    async with open_sqlite_registry(url) as registry:
        return await registry.read_state()


async def fill(url: str) -> ClusterState:
    async with open_sqlite_registry(url) as registry:
        await registry.declare_models([spec()])
        await join(registry, hello(labels={"tier": "gpu"}))
        ready = replica(observed=Observed.READY, address=Address("127.0.0.1:20100"), pid=7)
        await place(registry, ready)
        return await registry.read_state()


async def refusal(url: str) -> str:
    with pytest.raises(RegistryError) as refused:
        await read(url)
    return str(refused.value)


# Opening


async def test_l17_everything_is_there_again_after_a_restart(url: str) -> None:
    assert await fill(url) == await read(url)


async def test_what_a_dead_gateway_said_and_led_is_not_taken_over(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        await registry.sync_peers(PeerState(GATEWAY, demand=(Demand(GATEWAY, MODEL, 1, 1.0),)), 1000)
        assert await registry.acquire_or_renew(GATEWAY, 1000) == 1
    assert (await read(url)).demand == ()
    async with open_sqlite_registry(url) as registry:
        assert await registry.acquire_or_renew(OTHER_GATEWAY, 1000) == 2


async def test_a_relative_url_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await read("sqlite:///data/new/registry.db")
    assert (tmp_path / "data" / "new" / "registry.db").is_file()


@pytest.mark.parametrize("bad", ["sqlite:///", "sqlite:///:memory:", "sqlite://registry.db", "sqlite:registry.db"])
async def test_a_url_without_a_file_is_refused_with_the_right_form(bad: str) -> None:
    assert "write sqlite:///data/registry.db (relative)" in await refusal(bad)


async def test_the_scheme_chooses_the_store(url: str, migrated_postgres_url: str) -> None:
    kinds = {"memory:": MemoryRegistry, url: SqliteRegistry, migrated_postgres_url: PostgresRegistry}
    async with open_bridge() as bridge:
        for each, kind in kinds.items():
            async with open_registry(RegistrySection(url=each), bridge) as registry:
                assert isinstance(registry, kind)


async def test_a_scheme_that_is_not_served_is_named_without_the_password() -> None:
    section = RegistrySection.model_construct(url="redis://u:secret@db")
    async with open_bridge() as bridge:
        with pytest.raises(RegistryError, match="unknown scheme 'redis'") as refused:
            open_registry(section, bridge)
    assert "secret" not in str(refused.value)


async def test_one_file_is_opened_once_by_whatever_name(url: str, tmp_path: Path) -> None:
    (tmp_path / "alias.db").symlink_to(tmp_path / "registry.db")
    async with open_sqlite_registry(url):
        with pytest.raises(RegistryLocked):
            await read(f"sqlite:///{tmp_path}/alias.db")
    await read(f"sqlite:///{tmp_path}/alias.db")


def test_a_folder_that_cant_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    message = trio.run(refusal, f"sqlite:///{tmp_path}/file/sub/registry.db")
    assert f"{tmp_path}/file/sub/registry.db can't be opened" in message
    assert "set registry.url to a file" in message


def test_a_path_that_is_a_folder_is_refused(path: Path, url: str) -> None:
    path.mkdir()
    assert f"registry {path} can't be used: unable to open database file" in trio.run(refusal, url)


def test_a_file_that_is_no_database_is_refused_with_the_remedy_and_kept(path: Path, url: str) -> None:
    path.write_bytes(b"not a database at all\n" * 100)
    assert f"registry {path} is damaged (file is not a database); restore a backup, or move" in trio.run(refusal, url)
    assert path.read_bytes().startswith(b"not a database")


def test_a_file_with_an_overwritten_page_is_refused_before_that_page_is_needed(path: Path, url: str) -> None:
    trio.run(fill, url)
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    assert f"registry {path} is damaged" in trio.run(refusal, url)


def test_another_programs_database_is_left_alone(path: Path, url: str) -> None:
    execute(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    assert "is another program's database" in trio.run(refusal, url)
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused(path: Path, url: str) -> None:
    await fill(url)
    newer = len(migrations()) + 1
    execute(path, f"PRAGMA user_version = {newer}")
    assert f"written by a newer gateway (schema {newer}, this one knows {newer - 1})" in await refusal(url)


def test_a_refused_file_is_not_locked(path: Path, url: str) -> None:
    path.write_bytes(b"not a database at all\n" * 100)
    trio.run(refusal, url)
    path.unlink()
    trio.run(read, url)


# What another version wrote


@pytest.mark.parametrize(
    ("column", "read_as"), [("desired", {"desired": Desired.DRAIN}), ("observed", {"observed": Observed.DRAINING})]
)
async def test_unknown_replica_states_take_no_requests_and_end_nothing(
    path: Path, url: str, column: str, read_as: dict[str, object]
) -> None:
    before = (await fill(url)).replicas[REPLICA]
    execute(path, f"UPDATE replicas SET {column} = 'hibernating'")
    assert (await read(url)).replicas[REPLICA] == replace(before, **read_as)  # type: ignore[arg-type] # named above


NOT_OBJECTS_OF_STRINGS = ["not json", "[]", "null", '{"a": 1}']
NOT_SAID = ["not json", "[]", "null", '{"vision": 1}', '{"labels": 1}', '{"vram_budget": {"per_gpu": 1}}']


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("link", "hibernating"),
        *(("labels", value) for value in NOT_OBJECTS_OF_STRINGS),
        *(("declared", value) for value in NOT_SAID),
    ],
)
async def test_a_node_that_cant_be_read_gets_nothing_new_and_keeps_its_session(
    path: Path, url: str, column: str, value: str
) -> None:
    session = (await fill(url)).nodes[NODE].session
    execute(path, f"UPDATE nodes SET {column} = ?", value)
    async with open_sqlite_registry(url) as registry:
        assert (await stored_node(registry)).status == NodeStatus.UNHEALTHY
        assert await registry.join_node(hello(), GATEWAY) == session + 1
        assert (await stored_node(registry)).status == NodeStatus.HEALTHY


@pytest.mark.parametrize("value", NOT_SAID)
async def test_a_node_whose_overrides_cant_be_read_waits_until_an_admin_has_looked(
    path: Path, url: str, value: str
) -> None:
    await fill(url)
    execute(path, "UPDATE nodes SET overrides = ?", value)
    async with open_sqlite_registry(url) as registry:
        assert (await stored_node(registry)).status == NodeStatus.PENDING
        await registry.join_node(hello(), GATEWAY)
        assert (await stored_node(registry)).status == NodeStatus.PENDING
        await registry.edit_node(NODE, NodeEdit(approved=True, overrides=NodeOverrides()))
        assert (await stored_node(registry)).status == NodeStatus.HEALTHY


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        *((value, UNKNOWN) for value in ("not json", "[]", "null", '{"gpus": 1}', '{"ram_bytes": "much"}')),
        ('{"npus": 2, "ram_bytes": 8}', Capacity(ram_bytes=8)),
    ],
)
async def test_a_capacity_is_read_as_far_as_it_is_understood(
    path: Path, url: str, value: str, read_as: Capacity
) -> None:
    before = (await fill(url)).nodes[NODE]
    execute(path, "UPDATE nodes SET capacity = ?", value)
    assert (await read(url)).nodes[NODE] == replace(before, capacity=read_as)


async def test_everything_that_is_said_of_a_node_survives_a_restart(url: str) -> None:
    gpu = Gpu("nvidia", "RTX 4090", "GPU-1", vram_bytes=24 << 30, vram_free_bytes=20 << 30, unified=True)
    capacity = Capacity((gpu,), 64 << 30, 32 << 30, 1 << 40, 1 << 39, 16, ("avx2", "fma"))
    overrides = NodeOverrides({"tier": "a"}, 4, VramBudget(amount=1 << 30))
    async with open_sqlite_registry(url) as registry:
        said = hello(labels={"zone": "b"}, max_replicas_per_model=2, vram_budget=VramBudget(share=0.5))
        session = await join(registry, replace(said, capacity=capacity))
        await registry.edit_node(NODE, NodeEdit(approved=False, draining=True, overrides=overrides))
        before = await registry.read_state()
    async with open_sqlite_registry(url) as registry:
        assert await registry.read_state() == before
        async with bumping(registry, 0):
            await registry.edit_node(NODE, NodeEdit(approved=False, draining=True, overrides=overrides))
            await registry.record_capacity(NODE, session, capacity)
        await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides()))
        node = await stored_node(registry)
    # What the worker said was kept beneath the overrides: half of the memory, of which 4 GiB are in use.
    assert (node.labels["zone"], node.max_replicas_per_model, node.free_vram_bytes) == ("b", 2, 8 << 30)


@pytest.mark.parametrize(
    "stored_spec",
    [
        '{"backend": "b", "artifact": "", "vision_tower": "x"}',
        '{"backend": "b", "artifact": "", "rollout": "canary"}',
        "{}",
        "[]",
        "not json",
    ],
)
async def test_a_model_that_cant_be_read_is_in_no_state_but_stays_in_the_file(
    path: Path, url: str, stored_spec: str
) -> None:
    await fill(url)
    execute(path, "UPDATE models SET spec = ?, source = 'api'", stored_spec)
    with structlog.testing.capture_logs() as logs:
        async with open_sqlite_registry(url) as registry:
            assert (await registry.read_state()).models == {}
            await registry.declare_models([spec("other")])
            assert list((await registry.read_state()).models) == ["other"]
    assert [line["models"] for line in logs] == [[MODEL]]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT spec FROM models WHERE name = ?", (MODEL,)).fetchall() == [(stored_spec,)]


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        *((value, {}) for value in ("not json", "[]", "null", '{"vram_bytes": "much"}')),
        ('{"npu_bytes": 2, "ram_bytes": 8}', {MODEL: Requirement(ram_bytes=8)}),
    ],
)
async def test_p3_a_requirement_is_read_as_far_as_it_is_understood(
    path: Path, url: str, value: str, read_as: dict[ModelName, Requirement]
) -> None:
    before = await fill(url)
    execute(path, "UPDATE models SET requirement = ?", value)
    assert await read(url) == replace(before, requirements=read_as)


async def test_what_is_known_of_a_model_survives_a_restart(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        await registry.put_model(spec(rollout="surge"))
        await registry.record_requirement(MODEL, spec().revision, Requirement(1, 2, 3, measured=True))
        await registry.unload_model(MODEL)
        before = await registry.read_state()
    assert await read(url) == before


async def test_an_api_model_that_cant_be_read_can_be_replaced_or_removed(path: Path, url: str) -> None:
    await fill(url)
    execute(path, "UPDATE models SET spec = '{}', source = 'api'")
    with structlog.testing.capture_logs():
        async with open_sqlite_registry(url) as registry:
            assert not await registry.put_model(spec())
            assert set((await registry.read_state()).models) == {MODEL}
        execute(path, "UPDATE models SET spec = '{}'")
        async with open_sqlite_registry(url) as registry:
            assert await registry.remove_model(MODEL)
            assert not await registry.remove_model(MODEL)


async def test_a_file_model_that_cant_be_read_is_still_the_files(path: Path, url: str) -> None:
    await fill(url)
    execute(path, "UPDATE models SET spec = '{}'")
    with structlog.testing.capture_logs():
        async with open_sqlite_registry(url) as registry:
            with pytest.raises(DeclaredInFile):
                await registry.put_model(spec())


@pytest.mark.parametrize("declared", [[], [spec()]])
async def test_a_file_model_that_cant_be_read_is_declared_anew_or_removed(
    path: Path, url: str, declared: list[ModelSpec]
) -> None:
    await fill(url)
    execute(path, "UPDATE models SET spec = '{}'")
    with structlog.testing.capture_logs():
        async with open_sqlite_registry(url) as registry:
            await registry.declare_models(declared)
    with structlog.testing.capture_logs() as logs:
        assert list((await read(url)).models.values()) == declared
    assert logs == []


async def test_models_of_the_api_survive_a_declaration_unless_their_name_is_taken(path: Path, url: str) -> None:
    """No method writes such a row yet, so the file is made to hold one."""
    await fill(url)
    execute(path, "UPDATE models SET source = 'api'")
    async with open_sqlite_registry(url) as registry:
        await registry.declare_models([spec("other")])
        assert (await registry.read_state()).models == {MODEL: spec(source="api"), "other": spec("other")}
        await registry.declare_models([spec(min_replicas=1)])
        assert (await registry.read_state()).models == {MODEL: spec(min_replicas=1)}


# Transactions


class GatedClock:
    """Holds the transaction that asks for the time, on its thread, until the test opens the gate."""

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def __call__(self) -> float:
        self.asked.set()
        self.gate.wait()
        return 1.0


@pytest.fixture
def clock() -> Iterator[GatedClock]:
    clock = GatedClock()
    yield clock
    clock.gate.set()


async def test_a_caller_cancelled_in_its_transaction_has_written_wholly_and_woken_the_waiters(
    url: str, clock: GatedClock
) -> None:
    async with open_sqlite_registry(url, clock=clock) as registry, trio.open_nursery() as nursery:
        nursery.start_soon(registry.wait_newer, 0)
        scope = trio.CancelScope()
        async with trio.open_nursery() as writer:
            writer.start_soon(_declare, registry, scope)
            # The loop is free while the transaction stands still.
            await trio.to_thread.run_sync(clock.asked.wait)
            scope.cancel()
            await trio.lowlevel.checkpoint()
            clock.gate.set()
        assert list((await registry.read_state()).models) == [MODEL]
        assert registry.statistics().version == 1


async def test_a_caller_cancelled_in_the_queue_has_written_nothing(url: str, clock: GatedClock) -> None:
    async with open_sqlite_registry(url, clock=clock) as registry:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.register_node, registration())
            await trio.to_thread.run_sync(clock.asked.wait)
            queued = trio.CancelScope()
            nursery.start_soon(_declare, registry, queued)
            await trio.testing.wait_all_tasks_blocked()
            queued.cancel()
            await trio.testing.wait_all_tasks_blocked()
            clock.gate.set()
        state = await registry.read_state()
        assert (state.version, list(state.nodes), list(state.models)) == (1, [NODE], [])


async def _declare(registry: SqliteRegistry, scope: trio.CancelScope) -> None:
    with scope:
        await registry.declare_models([spec()])


async def test_a_transaction_that_fails_is_rolled_back_and_the_next_one_works(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        await join(registry)
        epoch = await lead(registry)
        too_large = replica(OTHER_REPLICA, slot=2**70)
        with pytest.raises(RegistryError, match="can't store a value"):
            await registry.apply(epoch, ControlWrite(create=(replica(slot=1), too_large)))
        state = await registry.read_state()
        assert (state.version, state.replicas) == (3, {})
        await place(registry, replica())
        assert await stored(registry) == replica()


async def test_a_database_that_another_program_holds_says_so(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registry.embedded.sqlite_file.BUSY_SECONDS", 0.0)
    async with open_sqlite_registry(url) as registry:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(RegistryError, match=r"database is locked; close the program that has it open"):
                await registry.declare_models([spec()])
        await registry.declare_models([spec()])


async def test_the_audit_trail_keeps_the_newest_lines(url: str) -> None:
    async with open_sqlite_registry(url) as registry:
        await registry.declare_models([spec(f"m{number}") for number in range(EVENTS_KEPT)])
        await registry.declare_models([])
        events = await registry.read_events(2 * EVENTS_KEPT)
    assert len(events) == EVENTS_KEPT
    assert {event.kind for event in events} == {"model.removed"}


def test_every_migration_has_its_number_and_there_is_no_gap() -> None:
    folder = Path(__file__).parents[3] / "gateway" / "registry" / "migrations" / "sqlite"
    names = sorted(file.name for file in folder.iterdir())
    assert [int(name.partition("_")[0]) for name in names] == list(range(1, len(names) + 1))
    assert len(migrations()) == len(names)


def refuse_writes(file: SqliteFile, *, refused: bool) -> None:
    with file.transaction("DEFERRED") as transaction:
        transaction.rows(f"PRAGMA query_only = {int(refused)}")


async def test_h15_reports_are_read_while_the_file_refuses_them(path: Path) -> None:
    file = SqliteFile.open(path)
    with closing(file):
        registry = SqliteRegistry(file, lambda: 1000.0, 0)
        await registry.declare_models([spec()])
        session = await join(registry)
        await place(registry, replica())
        before = await registry.read_state()
        refuse_writes(file, refused=True)
        ended = [Report(REPLICA, Observed.GONE, exit_code=-9)]
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(WritesRefused, match="readonly"):
                    await registry.record_reports(NODE, session, ended)
            during = await registry.read_state()
            with trio.fail_after(5):
                await registry.wait_newer(before.version)
            refuse_writes(file, refused=False)
            assert await registry.record_reports(NODE, session, ended)
        after = await registry.read_state()
        assert (before.replicas[REPLICA].observed, before.writes_refused) == (Observed.PLACED, None)
        assert (during.replicas[REPLICA].observed, during.replicas[REPLICA].exit_code) == (Observed.GONE, -9)
        assert during.writes_refused is not None
        assert str(path) not in during.writes_refused
        assert (after.replicas[REPLICA].observed, after.writes_refused) == (Observed.GONE, None)
        assert before.version < during.version < after.version
        assert [entry["event"] for entry in logs] == ["registry.writes_refused", "registry.writes_accepted"]


async def test_h15_a_leader_finds_out_that_writes_work_again(path: Path) -> None:
    file = SqliteFile.open(path)
    with closing(file):
        registry = SqliteRegistry(file, lambda: 1000.0, 0)
        await lead(registry)
        refuse_writes(file, refused=True)
        with pytest.raises(WritesRefused):
            await registry.put_model(spec())
        assert await registry.acquire_or_renew(GATEWAY, 10) is not None
        assert (await registry.read_state()).writes_refused is not None
        refuse_writes(file, refused=False)
        assert await registry.acquire_or_renew(GATEWAY, 10) is not None
        assert (await registry.read_state()).writes_refused is None
