"""House rules as tests: import directions, purity, who may touch which library, what each module has to say."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "gateway"

FOUNDATION: Final = frozenset({"domain", "config", "observability", "bridge", "wake", "private_files", "frame_meter"})
PARTS: Final = FOUNDATION | {
    "api", "control", "worker", "routing", "registry", "backends", "local_state", "link", "gguf",
}  # fmt: skip
MAY_IMPORT: Final[dict[str, frozenset[str]]] = {
    # The vocabulary knows nothing else; the configuration speaks it.
    "domain": frozenset(),
    "wake": frozenset(),
    "private_files": frozenset(),
    "frame_meter": frozenset(),
    "bridge": frozenset(),
    "observability": frozenset({"domain.texts"}),
    "config": frozenset({"domain"}),
    "local_state": frozenset({"domain", "private_files"}),
    # Knows files and memory, and nobody who asks.
    "gguf": frozenset({"domain"}),
    # The three that routing stands on: siblings that do not know each other, except that routing calls backends.
    "registry": FOUNDATION,
    "backends": FOUNDATION,
    "routing": FOUNDATION | {"backends"},
    # The three that use them: siblings, too.
    "api": FOUNDATION | {"routing", "registry", "link.credentials", "gguf"},
    "control": FOUNDATION | {"routing", "registry", "backends.protocol", "gguf"},
    "worker": FOUNDATION | {"backends", "engines", "gguf"},
    # Joins the two sides over the network and knows neither.
    "link": FOUNDATION,
    # Programs of their own; they share the wire with us, and nothing more.
    "engines": frozenset({"backends.pb", "backends.metadata", "domain.ids", "gguf"}),
    # The composition roots of the two programs, and what starts them.
    "assembly": PARTS,
    "app_workers": PARTS | {"assembly"},
    "app_estimates": FOUNDATION | {"worker", "gguf"},
    "app": PARTS | {"assembly", "app_workers", "app_estimates"},
    "worker_app": FOUNDATION | {"worker", "link", "backends", "local_state"},
    "cli": FOUNDATION | {"app", "assembly", "worker_app", "engines", "local_state", "registry", "link", "gguf"},
}
PURE: Final = (
    "domain",
    "frame_meter.py",
    "routing/eligibility.py",
    "routing/picker.py",
    "routing/fair_queue.py",
    "routing/waiting.py",
    "routing/lease.py",
    "routing/usage.py",
    "routing/silence.py",
    "control/plan.py",
    "control/placement.py",
    "control/retire.py",
    "control/entries.py",
    "control/draft.py",
    "control/ground.py",
    "control/remembered.py",
    "control/room.py",
    "control/tally.py",
    "control/evict.py",
    "control/scale.py",
    "control/node_health.py",
    "backends/translate.py",
    "backends/call_errors.py",
    "link/wire.py",
    "link/credentials.py",
    "worker/fetch/reference.py",
    "worker/fetch/answer.py",
    "worker/fetch/room.py",
    "api/byte_range.py",
    "api/guard.py",
    "api/status.py",
    "api/load_status.py",
    "api/model_body.py",
    "api/readings.py",
    "api/query.py",
    "api/fields.py",
    "gguf/tensors.py",
    "gguf/shape.py",
    "gguf/cache.py",
    "gguf/compute.py",
    "gguf/estimate.py",
    "cli/fleet.py",
    "api/openai/schema.py",
    "api/openai/encode.py",
    "api/openai/chunks.py",
    "engines/llama_cpp/sampling.py",
    "engines/llama_cpp/options.py",
    "engines/llama_cpp/requests.py",
    "engines/llama_cpp/tools.py",
    "api/openai/tools.py",
)
"""No I/O, no clock, no waiting: they take `now` and `rng` as arguments."""
IMPURE_MODULES: Final = frozenset({"trio", "asyncio", "time", "socket", "os", "random", "threading", "subprocess"})
LINES_MAX: Final = 400


def modules(*below: str) -> list[Path]:
    roots = [PACKAGE / each for each in below] or [PACKAGE]
    found = [path for root in roots for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return [path for path in found if "pb" not in path.parts]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(path: Path) -> set[str]:
    """What it imports of the gateway, as `room.module`."""
    return {name.removeprefix("gateway.") for name in imports(path) if name.startswith("gateway.")}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    room = (path.relative_to(PACKAGE).with_suffix("")).parts[0]
    if room in {"__init__", "__main__"}:
        return
    allowed = MAY_IMPORT[room] | {room, "__version__"}
    for name in inner_imports(path):
        assert any(name == each or name.startswith(f"{each}.") or each.startswith(f"{name}.") for each in allowed), (
            f"{name_of(path)} may not import gateway.{name}"
        )


def test_only_the_bridge_imports_trio_asyncio() -> None:
    users = [name_of(path) for path in modules() if any(name.startswith("trio_asyncio") for name in imports(path))]
    assert users == ["gateway.bridge"]


@pytest.mark.parametrize("path", modules(*PURE), ids=name_of)
def test_pure_modules_do_not_touch_the_world(path: Path) -> None:
    """No await, no clock, no chance of their own. `random.Random` may be named as a type."""
    tree = ast.parse(path.read_text())
    waits = [node for node in ast.walk(tree) if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
    assert not waits
    used = {name for name in imports(path) if name.partition(".")[0] in IMPURE_MODULES}
    assert used <= {"random", "random.Random"}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no opening sentence"
    assert text.count("\n") <= LINES_MAX, "split it along a seam"


def test_no_nursery_is_passed_around() -> None:
    """Passing a nursery breaks the causality that it stands for; the exceptions own a task set on purpose."""
    owners = {
        "gateway.app",
        "gateway.app_workers",
        "gateway.worker.agent",
        "gateway.api.server",
        "gateway.routing.probe_cache",
    }
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [arg.arg for arg in node.args.args if arg.annotation and "Nursery" in ast.dump(arg.annotation)]
                assert not taken or name_of(path) in owners, f"{name_of(path)}.{node.name} takes {taken}"
