"""Reads everything that is fixed for users from outside: from the program's own output, its files and its tables.

Nothing in here imports a module of the gateway, so that no change of the inner structure needs a change of the guard.
`python -m tests.golden.surface FILE` records the present state.
"""

import ast
import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, Final

import asyncpg
import httpx
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT: Final = Path(__file__).resolve().parents[2]
START_SECONDS: Final = 60.0
CALL_SECONDS: Final = 60.0

Facts = dict[str, Any]
"""Name of a thing -> what is fixed about it, as JSON."""

KEYS: Final = {"inference": "sk-golden-inference", "admin": "sk-golden-admin", "join": "golden-join-token"}
CONFIG: Final = f"""
[server]
port = 0
worker_port = 0
[auth]
api_keys = [
  {{ name = "app", key = "{KEYS["inference"]}" }},
  {{ name = "ops", key = "{KEYS["admin"]}", role = "admin" }},
]
join_token = "{KEYS["join"]}"
[routing]
expose_replica_header = true
"""

ROUTES: Final = {
    "inference": (
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/embeddings",
        "GET /v1/models",
        "GET /v1/models/tiny",
    ),
    "public": ("GET /healthz", "GET /readyz"),
    "admin": (
        "GET /metrics",
        "GET /api/status",
        "GET /api/nodes",
        "GET /api/nodes/absent",
        "PATCH /api/nodes/absent",
        "DELETE /api/nodes/absent",
        "POST /api/nodes/absent/approve",
        "POST /api/nodes/absent/drain",
        "POST /api/nodes/absent/resume",
        "GET /api/models",
        "GET /api/models/absent",
        "PUT /api/models/absent",
        "DELETE /api/models/absent",
        "POST /api/models/absent/load",
        "POST /api/models/absent/unload",
        "GET /api/models/absent/load-status",
        "GET /api/replicas",
        "GET /api/replicas/absent",
        "GET /api/replicas/absent/logs",
        "GET /api/decisions/absent",
        "GET /api/events",
        "POST /api/explain",
    ),
    "join": ("POST /api/node/register",),
    "worker": ("GET /api/artifacts/" + "0" * 64,),
}
"""Role -> one call of each route that this role opens."""


# -- the command line


def command_line() -> Facts:
    """Command (`models set`) -> its options and positional arguments, as its help shows them."""
    found: Facts = {}
    for command in _commands([]):
        for path in [[command, action] for action in _commands([command])] or [[command]]:
            found[" ".join(path)] = sorted(_arguments(_help(path)))
    return found


def _help(path: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    argv = [sys.executable, "-m", "gateway", *path, "--help"]
    return subprocess.run(
        argv, capture_output=True, text=True, check=True, env=environment, timeout=CALL_SECONDS
    ).stdout


def _commands(path: list[str]) -> list[str]:
    """The names below a COMMAND or ACTION; none for a command without any."""
    text = _help(path)
    if not re.search(r"^usage:.* (COMMAND|ACTION) \.\.\.$", text, re.MULTILINE):
        return []
    return re.findall(r"^    ([a-z][\w-]*)(?: |$)", text, re.MULTILINE)


def _arguments(text: str) -> Iterator[str]:
    for line in re.findall(r"^  (\S.*)$", text, re.MULTILINE):
        yield from re.findall(r"(?<![\w-])--?[a-z][\w-]*", line.split("  ")[0]) or [line.split("  ")[0]]


# -- the configuration


def configuration() -> Facts:
    """`section.key` -> its default as config.example.toml shows it; null for a key without a fixed default."""
    found: Facts = {}
    for section, key, value, is_set in _example_keys():
        found.setdefault(f"{section}.{key}", value if is_set else None)
    return found


def all_keys_file() -> str:
    """A file with each key that the example shows, set to the value that it shows."""
    tables: dict[str, dict[str, str]] = {}
    for section, key, value, _is_set in _example_keys():
        tables.setdefault(section, {}).setdefault(key, value)
    heads = {"models": "[[models]]", "backends": "[backends.mine]"}
    return "\n".join(
        "\n".join([heads.get(name, f"[{name}]"), *(f"{key} = {value}" for key, value in keys.items())])
        for name, keys in tables.items()
    )


def _example_keys() -> Iterator[tuple[str, str, str, bool]]:
    section = ""
    for line in (ROOT / "config.example.toml").read_text().splitlines():
        if head := re.fullmatch(r"(?:# )?\[+(\w+)(?:\.[\w-]+)?\]+", line):
            section = head[1]
        elif (entry := re.fullmatch(r"(# )?(\w+) = (\S.*)", line)) and section:
            yield section, entry[2], entry[3], entry[1] is None


def problems_of(config: str) -> str:
    """What `gateway check-config` says of a file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(config)
        argv = [sys.executable, "-m", "gateway", "check-config"]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd=folder, timeout=CALL_SECONDS, env=_environment()
        )
        return done.stdout + done.stderr


# -- a running gateway


class Running:
    """A gateway with keys and a join token, in a folder of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def call(self, route: str, key: str | None = None, **options: Any) -> httpx.Response:
        method, path = route.split(" ", 1)
        headers = {"authorization": f"Bearer {KEYS[key]}"} if key else {}
        return httpx.request(method, self.url + path, headers=headers, timeout=CALL_SECONDS, **options)

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, **fields}
        return self.call("POST /v1/chat/completions", "inference", json=body)


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**inherited, "PYTHONPATH": str(ROOT)}


@contextmanager
def running_gateway() -> Iterator[Running]:
    """Ended with the context, together with its backends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.toml").write_text(CONFIG)
        argv = [sys.executable, "-m", "gateway", "serve"]
        with subprocess.Popen(argv, cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True) as process:
            urls: Queue[str | None] = Queue()
            reader = threading.Thread(target=_read_log, args=(process, urls))
            reader.start()
            try:
                url = urls.get(timeout=START_SECONDS)
                assert url is not None, "the gateway ended before it listened"
                yield Running(folder, url)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(CALL_SECONDS)
                reader.join()


def _read_log(process: "subprocess.Popen[str]", urls: "Queue[str | None]") -> None:
    """To its end. Puts the address that the gateway writes there once it listens, and None behind the last line."""
    for line in process.stderr or ():
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            urls.put(found[0])
    urls.put(None)


def roles(gateway: Running) -> Facts:
    """`METHOD /path` -> the role that opens it, found by calling it with each kind of credential."""
    return {route: _role_of(gateway, route) for routes in ROUTES.values() for route in routes}


def _role_of(gateway: Running, route: str) -> str:
    told = {kind: gateway.call(route, kind if kind != "none" else None) for kind in ("none", *KEYS)}
    if any(answer.status_code == 405 or _is_no_route(answer) for answer in told.values()):
        return "no route"
    opened = frozenset(kind for kind, answer in told.items() if answer.status_code not in {401, 403})
    return ROLE_OF[opened]


ROLE_OF: Final = {
    frozenset({"none", *KEYS}): "public",
    frozenset({"inference", "admin"}): "inference",
    frozenset({"admin"}): "admin",
    frozenset({"join"}): "join",
    frozenset(): "worker",
}
"""Credentials that open a route -> its role; a route that none of them opens wants a worker's own credential."""


def _is_no_route(answer: httpx.Response) -> bool:
    return answer.status_code == 404 and answer.json()["error"]["message"].startswith("There is nothing at")


def _code(answer: httpx.Response) -> str | None:
    try:
        code: str | None = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code


REFUSALS: Final[Mapping[str, tuple[str, str | None, dict[str, Any]]]] = {
    "no key": ("GET /v1/models", None, {}),
    "role too low": ("GET /api/status", "inference", {}),
    "wrong join token": ("POST /api/node/register", "admin", {"json": {}}),
    "no node credential": ("GET /api/artifacts/" + "0" * 64, "admin", {}),
    "no such path": ("GET /v1/nothing", "inference", {}),
    "no such page": ("GET /api/nothing", "admin", {}),
    "no such method": ("DELETE /v1/models", "inference", {}),
    "no such model": (
        "POST /v1/chat/completions",
        "inference",
        {"json": {"model": "x", "messages": [{"role": "user", "content": "a"}]}},
    ),
    "no such model to show": ("GET /v1/models/x", "inference", {}),
    "no such node": ("GET /api/nodes/absent", "admin", {}),
    "no such replica": ("GET /api/replicas/absent", "admin", {}),
    "no such decision": ("GET /api/decisions/absent", "admin", {}),
    "not JSON": (
        "POST /v1/chat/completions",
        "inference",
        {"content": b"{", "headers": {"content-type": "application/json"}},
    ),
    "wrong media type": (
        "POST /v1/chat/completions",
        "inference",
        {"content": b"a", "headers": {"content-type": "text/plain"}},
    ),
    "missing field": ("POST /v1/chat/completions", "inference", {"json": {"model": "tiny"}}),
    "unknown field": ("POST /v1/completions", "inference", {"json": {"model": "tiny", "prompt": "a", "no_such": 1}}),
    "value out of range": (
        "POST /v1/completions",
        "inference",
        {"json": {"model": "tiny", "prompt": "a", "temperature": 9}},
    ),
    "model of the file": ("DELETE /api/models/tiny", "admin", {}),
}
"""Situation -> the call that meets it."""


def errors(gateway: Running) -> Facts:
    """Situation -> status, type, code and param of the answer."""
    found: Facts = {}
    for situation, (route, key, options) in REFUSALS.items():
        headers = {**options.get("headers", {}), **({"authorization": f"Bearer {KEYS[key]}"} if key else {})}
        method, path = route.split(" ", 1)
        answer = httpx.request(method, gateway.url + path, timeout=CALL_SECONDS, **{**options, "headers": headers})
        error = answer.json()["error"]
        found[situation] = [answer.status_code, error["type"], error["code"], error["param"]]
    return found


def error_codes() -> Facts:
    """Error codes that the interface names: each is written somewhere in the code as a string."""
    wanted = json.loads((Path(__file__).parent / "error_codes.json").read_text())
    strings: set[str] = set()
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
    return {code: code in strings for code in wanted}


def metrics(gateway: Running) -> Facts:
    """Metric -> its type, and the labels of its series where it has any after two calls."""
    text = gateway.call("GET /metrics", "admin").text
    found: Facts = {}
    for name, kind in re.findall(r"^# TYPE (gateway_\w+) (\w+)$", text, re.MULTILINE):
        series = re.findall(rf"^{name}(?:_bucket|_sum|_count)?{{(.*)}} ", text, re.MULTILINE)
        labels = sorted({label for each in series for label in re.findall(r"(\w+)=\"", each)} - {"le"})
        found[name] = [kind, labels]
    return found


def documents(gateway: Running) -> Facts:
    """Documents of the API -> names of their fields."""
    status = gateway.call("GET /api/status", "admin").json()
    found = {f"status.{name}": sorted(rows[0]) for name, rows in status.items() if isinstance(rows, list)}
    found["status"] = sorted(status)
    for name in ("models/tiny", "models/tiny/load-status", "nodes", "models", "replicas", "events"):
        found[name] = sorted(gateway.call(f"GET /api/{name}", "admin").json())
    answer = gateway.chat()
    found["chat.completion"] = sorted(answer.json())
    found["chat.completion.choice"] = sorted(answer.json()["choices"][0])
    found["chat.completion.usage"] = sorted(answer.json()["usage"])
    found["chat.headers"] = sorted(name for name in answer.headers if name.startswith("x-"))
    chunks = [
        json.loads(line[6:]) for line in gateway.chat(stream=True).text.splitlines() if line.startswith("data: {")
    ]
    found["chat.completion.chunk"] = sorted(chunks[0])
    found["model.list"] = sorted(gateway.call("GET /v1/models", "inference").json())
    found["model"] = sorted(gateway.call("GET /v1/models/tiny", "inference").json())
    return found


def sqlite_columns(gateway: Running) -> Facts:
    """`table.column` -> its type, in the embedded registry's file."""
    (path,) = gateway.folder.glob("data/registry.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            f"{table}.{column[1]}": column[2].lower()
            for table in tables
            if not table.startswith("sqlite_")
            for column in connection.execute(f"PRAGMA table_info({table})")
        }


def postgres_columns(url: str) -> Facts:
    """`table.column` -> its type, in a migrated PostgreSQL database."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(
                "SELECT table_name, column_name, data_type FROM information_schema.columns "
                "WHERE table_schema = current_schema() ORDER BY 1, 2"
            )
        finally:
            await connection.close()

    return {f"{table}.{column}": kind for table, column, kind in asyncio.run(ask())}


def migrate(url: str) -> None:
    """Makes the registry's tables, as an operator would."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(f"[registry]\nurl = {json.dumps(url)}\n")
        argv = [sys.executable, "-m", "gateway", "migrate"]
        subprocess.run(argv, check=True, cwd=folder, timeout=CALL_SECONDS, env=_environment())


def of_running(gateway: Running) -> dict[str, Facts]:
    """Every section that needs a gateway."""
    gateway.chat()
    return {
        "documents": documents(gateway),
        "metrics": metrics(gateway),
        "roles": roles(gateway),
        "errors": errors(gateway),
        "sqlite_columns": sqlite_columns(gateway),
    }


# -- the wire


def protocols() -> Facts:
    """Methods, and `message.field` -> number, type and label, of both .proto files."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.pb"
        files = sorted(str(path) for path in (ROOT / "proto").glob("*.proto"))
        argv = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}", *files]
        subprocess.run(argv, check=True, timeout=CALL_SECONDS)
        described = FileDescriptorSet.FromString(out.read_bytes())
    found: Facts = {}
    for file in described.file:
        for service in file.service:
            for method in service.method:
                streams = [method.client_streaming, method.server_streaming]
                found[f"{file.package}.{service.name}/{method.name}"] = [method.input_type, method.output_type, streams]
        for message in file.message_type:
            _describe(f"{file.package}.{message.name}", message, found)
    return found


def _describe(name: str, message: Any, found: Facts) -> None:
    for field in message.field:
        found[f"{name}.{field.name}"] = [field.number, field.type, field.type_name, field.label]
    for nested in message.nested_type:
        _describe(f"{name}.{nested.name}", nested, found)


def without_gateway() -> dict[str, Facts]:
    """Every section that needs no running gateway."""
    return {
        "command_line": command_line(),
        "configuration": configuration(),
        "error_codes": error_codes(),
        "protocols": protocols(),
    }


def main(path: str, postgres_url: str) -> None:
    """Records everything; `postgres_url` names an empty database."""
    migrate(postgres_url)
    with running_gateway() as gateway:
        found = {**without_gateway(), **of_running(gateway), "postgres_columns": postgres_columns(postgres_url)}
    Path(path).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
