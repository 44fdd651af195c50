"""What a process keeps in memory and walks over: each check runs in a process of its own, because it changes that."""

import subprocess
import sys

import pytest


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_what_is_there_at_the_start_is_not_collected_again() -> None:
    printed = run(
        "import gc, weakref\n"
        "from gateway.observability.heap import COLLECTION_THRESHOLDS, freeze_startup_objects\n"
        "class Ring: pass\n"
        "def ring():\n"
        "    made = Ring(); made.itself = made\n"
        "    return weakref.ref(made)\n"
        "early = ring()\n"
        "freeze_startup_objects()\n"
        "frozen = gc.get_freeze_count()\n"
        "late = ring()\n"
        "gc.collect()\n"
        "print(early() is None, late() is None, frozen > 1000, gc.get_threshold() == COLLECTION_THRESHOLDS)"
    )
    assert printed.split() == ["True"] * 4


@pytest.mark.parametrize("rare", ["asyncpg", "numpy", "gateway.registry.postgres", "xllamacpp"])
def test_a_gateway_without_postgresql_or_a_model_does_not_import_what_these_need(rare: str) -> None:
    program = (
        f"import sys, gateway.composition.gateway as all_parts\nprint({rare!r} in sys.modules, all_parts.__name__)"
    )
    assert run(program).split() == ["False", "gateway.composition.gateway"]
