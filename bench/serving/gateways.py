"""How the upstream alone is started, this checkout's gateway, and that of another checkout."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.serving.programs import ROOT, Programs
from bench.serving.servers import MODEL, Command

CONFIG: Final = """
[log]
level = "warning"
{registry}
[backends.bench]
command = {command}
refuses_when_full = true
env = {environment}
[[models]]
name = "{model}"
backend = "bench"
parallel = 4096
min_replicas = 1
"""


def direct(programs: Programs, port: int) -> Command:
    """The upstream without anything in front of it."""

    def make(_port: int, _folder: Path) -> Sequence[str]:
        return (*programs.upstream, "--http", f"127.0.0.1:{port}")

    return Command("direct", programs.language, make, programs.environment())


def ours(programs: Programs) -> Command:
    """The gateway of this checkout."""
    return _gateway("ours", ROOT, programs)


def several(programs: Programs, count: int, registry: str) -> Command:
    """The gateway of this checkout in several processes, which use all cores and the PostgreSQL at `registry`."""
    options = ("--processes", str(count))
    return _gateway(f"ours x {count}", ROOT, programs, registry=registry, options=options, on_all_cores=True)


def other(programs: Programs, path: Path) -> Command:
    """The gateway at the path: a checkout, or an executable. Raises `SystemExit` if it is neither."""
    if (path / "gateway" / "__main__.py").is_file():
        return _gateway("against", path.resolve(), programs)
    if path.is_file():
        return Command(
            "against",
            str(path),
            lambda port, folder: (str(path.resolve()), *_serve(programs, port, folder)),
            is_gateway=True,
        )
    raise SystemExit(f"--against {path}: there is neither a checkout of the gateway nor a program.")


def _gateway(
    name: str,
    checkout: Path,
    programs: Programs,
    *,
    registry: str = "",
    options: Sequence[str] = (),
    on_all_cores: bool = False,
) -> Command:
    """Runs a checkout's code with this interpreter and what is installed for it."""

    def make(port: int, folder: Path) -> Sequence[str]:
        """Returns the command."""
        return (sys.executable, "-m", "gateway", *_serve(programs, port, folder, registry), *options)

    environment = {"PYTHONPATH": str(checkout)}
    return Command(name, _version(checkout), make, environment, is_gateway=True, on_all_cores=on_all_cores)


def _serve(programs: Programs, port: int, folder: Path, registry: str = "") -> Sequence[str]:
    """Writes the configuration. `registry` is the url of its registry, if that is not in the folder."""
    config = CONFIG.format(
        registry=f"[registry]\nurl = '{registry}'" if registry else "",
        model=MODEL,
        command=_toml_list(programs.upstream),
        environment=_toml_table(programs.environment()),
    )
    (folder / "config.toml").write_text(config)
    return ("serve", "--port", str(port))


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{each}'" for each in values) + "]"


def _toml_table(values: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = '{value}'" for name, value in values.items()) + " }"


def _version(checkout: Path) -> str:
    """The commit whose code Python really imports there. Raises `SystemExit` if it imports another checkout's."""
    where = "import gateway, pathlib; print(pathlib.Path(gateway.__file__).parents[1])"
    found = _output([sys.executable, "-c", where], checkout)
    if Path(found) != checkout:
        raise SystemExit(f"Python imports the gateway from {found}, although {checkout} was to be measured.")
    return _output(["git", "describe", "--always", "--dirty"], checkout) or "unknown"


def _output(command: Sequence[str], checkout: Path) -> str:
    environment = {"PYTHONPATH": str(checkout), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()
