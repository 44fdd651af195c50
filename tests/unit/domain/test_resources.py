"""What budgets and selectors make of what is known of a machine: unknown stays unknown, a known zero is one (P3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.resources import (
    ALL_VRAM,
    GIB,
    KIB,
    MIB,
    UNKNOWN,
    Capacity,
    Gpu,
    VramBudget,
    automatic_labels,
    format_bytes,
    free_vram_bytes,
)


def gpu(total: int | None, free: int | None, *, unified: bool = False) -> Gpu:
    return Gpu("nvidia", "NVIDIA L4", "GPU-1", total, free, unified)


def machine(total: int | None, free: int | None) -> Capacity:
    return Capacity((gpu(total, free),))


def test_gpus_add_up() -> None:
    capacity = Capacity((gpu(24, 20), gpu(8, 0)))
    assert (capacity.vram_bytes, capacity.vram_free_bytes) == (32, 20)


def test_p3_one_gpu_that_does_not_say_leaves_the_sum_unknown() -> None:
    capacity = Capacity((gpu(24, 20), gpu(8, None)))
    assert (capacity.vram_bytes, capacity.vram_free_bytes) == (32, None)
    assert free_vram_bytes(capacity, ALL_VRAM) is None


def test_the_memory_that_unified_gpus_share_counts_once() -> None:
    capacity = Capacity((gpu(128, 100, unified=True), gpu(24, 20), gpu(128, 100, unified=True)))
    assert (capacity.vram_bytes, capacity.vram_free_bytes) == (152, 120)


@pytest.mark.parametrize(
    "capacity", [UNKNOWN, machine(None, None), machine(24, None), machine(None, 24), Capacity(ram_free_bytes=0)]
)
@pytest.mark.parametrize("budget", [ALL_VRAM, VramBudget(amount=0), VramBudget(share=0.5)])
def test_p3_unknown_stays_unknown(capacity: Capacity, budget: VramBudget) -> None:
    assert free_vram_bytes(capacity, budget) is None


@pytest.mark.parametrize("capacity", [machine(24, 0), machine(0, 0)])
def test_p3_a_known_zero_is_zero(capacity: Capacity) -> None:
    assert free_vram_bytes(capacity, ALL_VRAM) == 0


def test_p6_without_a_budget_all_that_is_free_may_be_taken() -> None:
    assert free_vram_bytes(machine(24 * GIB, 20 * GIB), ALL_VRAM) == 20 * GIB


def test_p6_a_share_is_taken_of_the_total_once() -> None:
    assert VramBudget(share=0.5).of(24 * GIB) == 12 * GIB
    assert free_vram_bytes(machine(24 * GIB, 24 * GIB), VramBudget(share=0.5)) == 12 * GIB


@pytest.mark.parametrize("budget", [VramBudget(amount=12 * GIB), VramBudget(share=0.5)])
def test_p6_what_anybody_uses_counts_against_the_budget(budget: VramBudget) -> None:
    assert free_vram_bytes(machine(24 * GIB, 20 * GIB), budget) == 8 * GIB
    assert free_vram_bytes(machine(24 * GIB, 12 * GIB), budget) == 0
    assert free_vram_bytes(machine(24 * GIB, 4 * GIB), budget) == 0


def test_p6_a_budget_above_what_there_is_adds_nothing() -> None:
    assert free_vram_bytes(machine(24 * GIB, 20 * GIB), VramBudget(amount=80 * GIB)) == 20 * GIB


def test_p6_an_amount_of_zero_is_a_budget() -> None:
    assert free_vram_bytes(machine(24 * GIB, 24 * GIB), VramBudget(amount=0)) == 0


sizes = st.integers(0, 2**48)
budgets = st.builds(
    VramBudget,
    amount=st.none() | sizes,
    share=st.none() | st.floats(0, 1, exclude_min=True),
)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=8), budgets)
def test_p6_a_budget_is_never_exceeded_and_only_ever_takes_away(
    gpus: list[tuple[int, int]], budget: VramBudget
) -> None:
    capacity = Capacity(tuple(gpu(max(pair), min(pair)) for pair in gpus))
    total, free = sum(max(pair) for pair in gpus), sum(min(pair) for pair in gpus)
    allowed = free_vram_bytes(capacity, budget)
    assert allowed is not None
    assert 0 <= allowed <= free
    assert allowed == 0 or (total - free) + allowed <= budget.of(total)
    assert free_vram_bytes(capacity, ALL_VRAM) == free


@given(sizes, budgets)
def test_p6_a_budget_is_within_what_there_is(total: int, budget: VramBudget) -> None:
    assert 0 <= budget.of(total) <= total
    if budget.amount is not None:
        assert budget.of(total) <= budget.amount


def test_labels_of_a_machine_with_gpus() -> None:
    capacity = Capacity((gpu(24 * GIB, 0), gpu(24 * GIB - 1, 0)))
    assert automatic_labels(capacity, "gpu-1") == {
        "node.name": "gpu-1", "gpu.vendor": "nvidia", "gpu.count": "2", "gpu.vram": "47GiB",
    }  # fmt: skip


def test_labels_tell_nothing_that_is_not_known() -> None:
    assert automatic_labels(UNKNOWN, "n1") == {"node.name": "n1"}
    unsized = automatic_labels(machine(None, None), "n1")
    assert unsized == {"node.name": "n1", "gpu.vendor": "nvidia", "gpu.count": "1"}


@given(sizes, sizes)
def test_labels_do_not_change_with_use(free: int, other: int) -> None:
    assert automatic_labels(machine(24 * GIB, free), "n1") == automatic_labels(machine(24 * GIB, other), "n1")


@pytest.mark.parametrize(
    ("amount", "down", "up"),
    [
        (0, "0 bytes", "0 bytes"),
        (1023, "1023 bytes", "1023 bytes"),
        (KIB, "1 KiB", "1 KiB"),
        (200 * MIB, "200 MiB", "200 MiB"),
        (4 * GIB + 1, "4 GiB", "4.1 GiB"),
        (5 * GIB - 1, "4.9 GiB", "5 GiB"),
        (3000 * GIB, "3000 GiB", "3000 GiB"),
    ],
)
def test_amounts_are_written_for_people(amount: int, down: str, up: str) -> None:
    assert (format_bytes(amount), format_bytes(amount, round_up=True)) == (down, up)
