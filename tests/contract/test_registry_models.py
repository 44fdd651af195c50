"""What every registry store guarantees of models that come through the API, and of what is known of a model."""

from dataclasses import replace

import pytest

from gateway.domain.cluster import LoadFailure
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Requirement
from gateway.registry.protocol import DeclaredInFile, Registry
from gateway.registry.writes import models as model_writes
from tests.contract.samples import MODEL, SettableClock, bumping, join, lead, place, replica, spec, stored

FAILURE = LoadFailure(cause="exit code 1", attempts=2, retry_at=1030.5)
CAN = Capabilities(generates=False, embeds=True, context_tokens=256)
ESTIMATE = Requirement(vram_bytes=10, ram_bytes=20, disk_bytes=30)
MEASUREMENT = Requirement(ram_bytes=25, measured=True)
API_SPEC = spec(source="api")
NEXT_SPEC = spec(source="api", context_size=4096)


async def know(registry: Registry, of: ModelSpec = API_SPEC) -> None:
    """Everything that can be known of a model, is."""
    await registry.apply(await lead(registry), ControlWrite(set_failures=((MODEL, FAILURE),)))
    assert await registry.record_requirement(MODEL, of.revision, ESTIMATE)
    assert await registry.unload_model(MODEL)


async def requirement(registry: Registry) -> Requirement | None:
    return (await registry.read_state()).requirements.get(MODEL)


# Adding, replacing, removing


async def test_a_put_model_is_the_apis_whatever_it_says(registry: Registry) -> None:
    async with bumping(registry, 1):
        assert await registry.put_model(spec())
    assert (await registry.read_state()).models == {MODEL: API_SPEC}
    assert [event.kind for event in await registry.read_events(9)] == ["model.declared"]


async def test_a_model_that_is_put_again_is_replaced(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    async with bumping(registry, 1):
        assert not await registry.put_model(NEXT_SPEC)
    assert (await registry.read_state()).models == {MODEL: NEXT_SPEC}


async def test_the_same_model_put_twice_writes_once(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    async with bumping(registry, 0):
        assert not await registry.put_model(API_SPEC)


async def test_a_put_model_outlives_the_next_reading_of_the_file(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await registry.declare_models([spec("other")])
    assert set((await registry.read_state()).models) == {MODEL, "other"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://user:hunter2@h/x?a=1", "https://***@h/x?a=1"),
        ("https://user:hunt/er2@h/x", "https://***"),
        ("https://h:1/a@b?c=d@e", "https://h:1/a@b?c=d@e"),
        ("hf://o/r/f@v1", "hf://o/r/f@v1"),
        ("file:/a@b", "file:/a@b"),
    ],
)
async def test_a_password_in_an_artifact_is_not_kept(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    await registry.put_model(replace(API_SPEC, artifact=given))
    assert (await registry.read_state()).models[MODEL].artifact == kept
    with monkeypatch.context() as older:
        older.setattr(model_writes, "without_user", lambda artifact: artifact)
        await registry.put_model(replace(API_SPEC, artifact=given))
    assert (await registry.read_state()).models[MODEL].artifact == given
    await registry.declare_models([spec("other")])
    assert (await registry.read_state()).models[MODEL].artifact == kept


async def test_a_file_model_is_neither_replaced_nor_removed(registry: Registry) -> None:
    await registry.declare_models([spec()])
    async with bumping(registry, 0):
        for refused in (registry.put_model(NEXT_SPEC), registry.remove_model(MODEL)):
            with pytest.raises(DeclaredInFile, match="'tiny' is declared in the configuration file"):
                await refused
    assert (await registry.read_state()).models == {MODEL: spec()}


async def test_l17_a_removed_model_leaves_its_replicas_to_the_planner(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await join(registry)
    await place(registry, replica())
    async with bumping(registry, 1):
        assert await registry.remove_model(MODEL)
    assert (await registry.read_state()).models == {}
    assert await stored(registry) == replica()
    async with bumping(registry, 0):
        assert not await registry.remove_model(MODEL)


async def test_a8_what_is_known_of_a_revision_goes_with_it(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await know(registry)
    await registry.put_model(NEXT_SPEC)
    state = await registry.read_state()
    assert (state.failures, state.requirements, state.unloads) == ({}, {}, {MODEL: 1000.0})


async def test_a8_scheduling_alone_changes_nothing_of_what_is_known(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await know(registry)
    await registry.put_model(replace(API_SPEC, min_replicas=1, rollout="surge", pinned=True))
    state = await registry.read_state()
    assert (state.failures, state.requirements, state.unloads) == (
        {MODEL: FAILURE},
        {MODEL: ESTIMATE},
        {MODEL: 1000.0},
    )


async def test_a8_the_file_forgets_what_is_known_of_another_revision_too(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await know(registry, spec())
    await registry.declare_models([spec(min_replicas=1)])
    assert await requirement(registry) == ESTIMATE
    await registry.declare_models([spec(context_size=4096)])
    state = await registry.read_state()
    assert (state.failures, state.requirements) == ({}, {})


async def test_nothing_is_known_of_a_model_that_comes_back(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await know(registry)
    await registry.remove_model(MODEL)
    await registry.put_model(API_SPEC)
    state = await registry.read_state()
    assert (state.failures, state.requirements, state.unloads) == ({}, {}, {})


# Unloading


async def test_w12_an_unload_has_the_registrys_time(registry: Registry, clock: SettableClock) -> None:
    await registry.put_model(API_SPEC)
    clock.seconds = 1500.5
    async with bumping(registry, 1):
        assert await registry.unload_model(MODEL)
    assert (await registry.read_state()).unloads == {MODEL: 1500.5}
    assert (await registry.read_events(1))[0].kind == "model.unloaded"
    clock.seconds = 1600.0
    assert await registry.unload_model(MODEL)
    assert (await registry.read_state()).unloads == {MODEL: 1600.0}


async def test_w12_a_file_model_can_be_unloaded_and_an_unknown_one_can_not(registry: Registry) -> None:
    await registry.declare_models([spec()])
    assert await registry.unload_model(MODEL)
    async with bumping(registry, 0):
        assert not await registry.unload_model(spec("other").name)


async def test_a_retry_ends_the_pause_and_keeps_the_number_of_failures(
    registry: Registry, clock: SettableClock
) -> None:
    clock.seconds = 1000.0
    await registry.put_model(API_SPEC)
    await know(registry)
    async with bumping(registry, 1):
        assert await registry.retry_model(MODEL)
    assert (await registry.read_state()).failures == {MODEL: LoadFailure("exit code 1", 2, 1000.0)}
    assert (await registry.read_events(1))[0].kind == "model.retried"
    async with bumping(registry, 0):
        assert not await registry.retry_model(MODEL)
        assert not await registry.retry_model(spec("other").name)


# Requirements


async def test_an_estimate_is_kept_and_has_no_event(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    async with bumping(registry, 1):
        assert await registry.record_requirement(MODEL, API_SPEC.revision, ESTIMATE)
    assert await requirement(registry) == ESTIMATE
    assert [event.kind for event in await registry.read_events(9)] == ["model.declared"]
    async with bumping(registry, 0):
        assert await registry.record_requirement(MODEL, API_SPEC.revision, ESTIMATE)


async def test_p1_a_measurement_replaces_what_it_has_measured(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await registry.record_requirement(MODEL, API_SPEC.revision, ESTIMATE)
    assert await registry.record_requirement(MODEL, API_SPEC.revision, MEASUREMENT)
    assert await requirement(registry) == replace(ESTIMATE, ram_bytes=25, measured=True)


async def test_p1_an_estimate_does_not_replace_a_measurement(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await registry.record_requirement(MODEL, API_SPEC.revision, MEASUREMENT)
    async with bumping(registry, 0):
        assert not await registry.record_requirement(MODEL, API_SPEC.revision, ESTIMATE)
    assert await registry.record_requirement(MODEL, API_SPEC.revision, replace(MEASUREMENT, ram_bytes=27))
    assert await requirement(registry) == replace(MEASUREMENT, ram_bytes=27)


async def test_a8_a_requirement_of_another_revision_is_void(registry: Registry) -> None:
    await registry.put_model(NEXT_SPEC)
    async with bumping(registry, 0):
        assert not await registry.record_requirement(MODEL, API_SPEC.revision, MEASUREMENT)
        assert not await registry.record_requirement(spec("other").name, API_SPEC.revision, MEASUREMENT)
    assert await requirement(registry) is None


# Capabilities


async def test_what_a_model_can_do_is_kept_and_has_no_event(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    async with bumping(registry, 1):
        assert await registry.record_capabilities(MODEL, API_SPEC.revision, CAN)
    assert (await registry.read_state()).capabilities == {MODEL: CAN}
    assert [event.kind for event in await registry.read_events(9)] == ["model.declared"]
    async with bumping(registry, 0):
        assert await registry.record_capabilities(MODEL, API_SPEC.revision, CAN)


async def test_what_a_model_can_do_is_replaced_as_a_whole(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await registry.record_capabilities(MODEL, API_SPEC.revision, CAN)
    await registry.record_capabilities(MODEL, API_SPEC.revision, Capabilities(tools=True))
    assert (await registry.read_state()).capabilities == {MODEL: Capabilities(tools=True)}


async def test_a8_what_another_revision_can_do_is_void(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await registry.record_capabilities(MODEL, API_SPEC.revision, CAN)
    await registry.put_model(NEXT_SPEC)
    assert (await registry.read_state()).capabilities == {}
    async with bumping(registry, 0):
        assert not await registry.record_capabilities(MODEL, API_SPEC.revision, CAN)
        assert not await registry.record_capabilities(spec("other").name, API_SPEC.revision, CAN)


async def test_l9_a_failure_leaves_the_rest_of_the_row(registry: Registry) -> None:
    await registry.put_model(API_SPEC)
    await know(registry)
    epoch = await lead(registry)
    await registry.apply(epoch, ControlWrite(set_failures=((MODEL, None),)))
    state = await registry.read_state()
    assert (state.failures, state.requirements, state.unloads) == ({}, {MODEL: ESTIMATE}, {MODEL: 1000.0})
