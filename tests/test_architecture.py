"""House rules as tests: import directions, purity, who may touch which library, what each module has to say."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "gateway"

MAY_IMPORT: Final[dict[str, frozenset[str]]] = {
    # The vocabulary knows nothing else; the configuration speaks it.
    "domain": frozenset(),
    "concurrency": frozenset(),
    "private_files": frozenset(),
    "frame_meter": frozenset(),
    "field_errors": frozenset(),
    "bridge": frozenset(),
    # A log line escapes what a terminal would obey, as every other text for people does.
    "observability": frozenset({"domain.texts"}),
    "config": frozenset({"domain", "field_errors"}),
    "data_dir": frozenset({"domain", "private_files"}),
    "process_place": frozenset(),
    # Knows files and memory, and nobody who asks.
    "gguf": frozenset({"domain"}),
    # Knows JSON schemas and grammars, and nobody who asks.
    "json_grammar": frozenset(),
    # From the fleet's state to what should change: on the vocabulary alone.
    "planner": frozenset({"domain"}),
    # The three that routing stands on: siblings that do not know each other, except that routing calls backends.
    "registry": frozenset({"domain", "config.model", "bridge", "private_files"}),
    "backends": frozenset({"domain", "bridge", "concurrency"}),
    "routing": frozenset({"domain", "backends.protocol"}),
    # Joins the two sides over the network and knows neither.
    "transport": frozenset({"domain", "bridge", "frame_meter"}),
    # Those that use them: siblings, too. What a gateway tells its peers is what its routing counts, and a silent node
    # is probed in the same way as a replica before a call.
    "control": frozenset(
        {
            "domain",
            "concurrency",
            "planner",
            "registry.clock",
            "registry.protocol",
            "registry.snapshot",
            "routing.admission",
            "routing.load_tracker",
            "routing.peer_fairness",
            "routing.probe_cache",
            "backends.protocol",
        }
    ),
    "worker": frozenset(
        {
            "domain",
            "config.model",
            "config.units",
            "backends.metadata",
            "backends.pb",
            "backends.protocol",
            "private_files",
        }
    ),
    # `transport.node_credentials` is pure: a worker proves itself over HTTP with the same credential as in its session.
    "api.http": frozenset(
        {
            "concurrency",
            "domain",
            "observability",
            "field_errors",
            "frame_meter",
            "transport.node_credentials",
        }
    ),
    "api.openai": frozenset({"domain", "json_grammar", "observability", "routing.router", "api.http"}),
    # A model or a node that comes over HTTP is held against the rules of the configuration file, and the errors use the
    # same words.
    "api.admin": frozenset(
        {
            "domain",
            "config.fields",
            "config.messages",
            "config.model",
            "config.rules",
            "config.units",
            "control.fleet_status",
            "field_errors",
            "observability",
            "registry.protocol",
            "routing.admission",
            "routing.decisions",
            "routing.load_tracker",
            "routing.probe_cache",
            "routing.router",
            "transport.node_credentials",
            "api.http",
        }
    ),
    # Programs of their own; they share the wire with us, and what is known of files and schemas.
    "engines": frozenset({"backends.pb", "backends.metadata", "gguf", "json_grammar", "observability.heap"}),
    # The composition roots of the two programs, and what starts them.
    "composition": frozenset(
        {
            "api",
            "backends",
            "bridge",
            "concurrency",
            "config",
            "control",
            "data_dir",
            "domain",
            "engines.llama_cpp.tiny_model",
            "gguf",
            "observability",
            "planner",
            "process_place",
            "registry",
            "routing",
            "transport",
            "worker",
        }
    ),
    # Starts processes of the program and opens their sockets. It knows nothing of what they do.
    "supervisor": frozenset(
        {
            "api.http.listener.listening_socket",
            "composition.http_sockets",
            "concurrency",
            "config.fields",
            "config.model",
            "data_dir",
            "domain",
            "process_place",
            "worker.process.launcher",
            "worker.process.spawn",
        }
    ),
    # The program starts the roots. Beside them it needs the configuration with its errors, the errors that a root may
    # raise (`data_dir`, `registry.protocol`), logging before anything runs, the engine that `gateway backend` becomes,
    # and for `gateway estimate`, which works without a gateway, `gguf` and the words for sizes.
    "cli": frozenset(
        {
            "api.http.listener.open_files",
            "api.http.listener.retirement",
            "composition",
            "concurrency",
            "config.load",
            "config.model",
            "config.problems",
            "data_dir",
            "domain.builtin_backends",
            "domain.causes",
            "domain.host_port",
            "domain.resources",
            "engines.llama_cpp.main",
            "gguf",
            "observability.heap",
            "observability.logging",
            "observability.task_tree",
            "process_place",
            "registry.protocol",
            "supervisor",
        }
    ),
}
"""Room -> rooms, or modules of rooms, that it may import. `tests/test_house_rules.py` fails on one that is not used."""
PURE: Final = (
    "domain",
    "field_errors.py",
    "frame_meter.py",
    "planner",
    "routing/picker.py",
    "routing/load_index.py",
    "routing/rank_order.py",
    "routing/fair_queue.py",
    "routing/rejections.py",
    "routing/silence.py",
    "control/node_health.py",
    "backends/translate.py",
    "backends/call_errors.py",
    "backends/grpc/answer.py",
    "backends/grpc/connection_state.py",
    "backends/grpc/events.py",
    "backends/grpc/flow.py",
    "backends/grpc/frame_budget.py",
    "backends/grpc/frames.py",
    "backends/grpc/headers.py",
    "backends/grpc/messages.py",
    "backends/grpc/output.py",
    "backends/grpc/peer_settings.py",
    "transport/codec.py",
    "transport/node_credentials.py",
    "worker/artifacts/reference.py",
    "worker/artifacts/http_answer.py",
    "worker/artifacts/disk_space.py",
    "api/http/byte_range.py",
    "api/http/listener/http1_head.py",
    "api/http/listener/http1_parser.py",
    "api/http/listener/http1_response.py",
    "api/http/browser_guard.py",
    "api/admin/documents.py",
    "api/admin/load_status.py",
    "api/admin/model_body.py",
    "api/admin/metrics_source.py",
    "api/http/query_params.py",
    "api/admin/body_fields.py",
    "gguf/tensors.py",
    "gguf/shape.py",
    "gguf/cache.py",
    "gguf/compute.py",
    "gguf/estimate.py",
    "cli/fleet/status_tables.py",
    "config/changes.py",
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


def room_of(path: Path) -> str:
    """Name of the room: a folder or a module of the package, or one of the three folders of `api`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "api" and len(parts) > 2 else parts[0]


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
    room = room_of(path)
    if room in {"__init__", "__main__", "api"}:
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
        "gateway.composition.gateway",
        "gateway.composition.embedded_worker",
        "gateway.composition.services",
        "gateway.composition.session_server",
        "gateway.worker.agent",
        "gateway.api.http.listener.server",
        "gateway.api.http.listener.accepting",
        "gateway.routing.probe_cache",
        "gateway.backends.grpc.pool",
    }
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [arg.arg for arg in node.args.args if arg.annotation and "Nursery" in ast.dump(arg.annotation)]
                assert not taken or name_of(path) in owners, f"{name_of(path)}.{node.name} takes {taken}"
