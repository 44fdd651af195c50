"""The rounds: every server is measured in each of them, one after another, so that all see the same machine."""

import argparse
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import print_table
from bench.serving.gateways import direct, other, ours, several
from bench.serving.peers import METRICS_PORT_OFFSET, installed_peers
from bench.serving.processes import cores
from bench.serving.programs import Programs, open_programs
from bench.serving.sections import SECTIONS, Column, Effort, Figures, Section
from bench.serving.servers import Command, Server, open_server
from bench.serving.summary import differences, ratios, summarize
from tests.fakes.ports import free_port
from tests.fakes.postgres_server import open_postgres_server

Rounds = Mapping[str, Sequence[Figures]]
"""The figures of each round, by server."""


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    rounds: int = 5
    effort: Effort = field(default_factory=Effort)
    sections: Sequence[str] = ()
    """Their names; none for all."""
    against: Path | None = None
    """Another checkout, or a gateway's executable."""
    peers: Path | None = None
    """A folder with environments in which peers may be installed; None leaves all peers out."""
    processes: int = 0
    """How many processes one more gateway has, which needs PostgreSQL; 0 for no such gateway."""
    json: Path | None = None
    """A file for the figures of each round."""

    def chosen(self) -> Sequence[Section]:
        """Returns the sections to run."""
        return [each for each in SECTIONS if not self.sections or each.name in self.sections]


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Adds the options of `serving` to a command line."""
    names = [each.name for each in SECTIONS]
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; one more runs before them")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the usual seconds of each measurement")
    parser.add_argument("--section", action="append", choices=names, default=[], help="only this one; may be repeated")
    parser.add_argument("--against", type=Path, help="a checkout or executable to measure in the same rounds")
    parser.add_argument("--peers", type=Path, help="a folder with environments in which peers are installed")
    parser.add_argument("--processes", type=int, default=0, help="measure a gateway of so many processes as well")
    parser.add_argument("--json", type=Path, help="a file for the figures of each round")


def read_options(found: argparse.Namespace) -> Options:
    """Returns the options of a command line."""
    effort = Effort(found.effort)
    return Options(found.rounds, effort, found.section, found.against, found.peers, found.processes, found.json)


def run_serving(options: Options, *, compiler: str | None = None) -> Mapping[str, Rounds]:
    """Prints the table of each section once it is done, and returns the figures. `compiler`: see `open_programs`."""
    server_core, load_core = cores()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {load_core})
    results: dict[str, Rounds] = {}
    try:
        with (
            open_programs(load_core, compiler=compiler) as programs,
            tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder,
            _open_registry(options) as registry,
        ):
            bench = _Bench(options, programs, server_core, Path(folder), registry)
            bench.print_versions()
            for section, rounds in bench.run():
                results[section.name] = rounds
                print_section(section, rounds, options.rounds)
    finally:
        os.sched_setaffinity(0, before)
    if options.json is not None:
        options.json.write_text(json.dumps(results))
    return results


@contextmanager
def _open_registry(options: Options) -> Iterator[str]:
    """Yields the url of an empty PostgreSQL database, or nothing if no gateway needs one."""
    if not options.processes:
        yield ""
        return
    with open_postgres_server() as server, server.open_database() as url:
        yield url


class _Bench:
    def __init__(self, options: Options, programs: Programs, core: int, folder: Path, registry: str) -> None:
        self._options = options
        self._programs = programs
        self._core = core
        self._folder = folder
        self._registry = registry
        self._started = 0
        self._upstream_port = free_port()
        self._commands = list(self._all_commands())

    def _all_commands(self) -> Iterator[Command]:
        """`direct` comes first, because peers need its upstream."""
        yield direct(self._programs, self._upstream_port)
        yield ours(self._programs)
        if self._options.processes:
            yield several(self._programs, self._options.processes, self._registry)
        if self._options.against is not None:
            yield other(self._programs, self._options.against)
        if self._options.peers is not None:
            yield from installed_peers(self._options.peers, f"http://127.0.0.1:{self._upstream_port}")

    def print_versions(self) -> None:
        versions = ", ".join(f"{each.name} {each.version}" for each in self._commands)
        print(f"{versions}; server on core {self._core}, {self._programs.language} load on core {self._programs.core}")

    def run(self) -> Iterator[tuple[Section, Rounds]]:
        """Yields each section with its rounds."""
        chosen = self._options.chosen()
        kept = [each for each in chosen if not each.fresh]
        if kept:
            with ExitStack() as stack:
                servers = [found for each in self._commands if (found := self._open(each, stack))]
                for section in kept:
                    yield section, self._rounds(section, servers)
        for section in chosen:
            if section.fresh:
                yield section, self._fresh_rounds(section)

    def _open(self, command: Command, stack: ExitStack) -> Server | None:
        """Returns None, and says why, if a peer does not start."""
        core = self._programs.core if command.name == "direct" else self._core
        port = self._upstream_port if command.name == "direct" else self._free_port()
        self._started += 1
        folder = self._folder / f"{command.name}-{self._started}"
        try:
            return stack.enter_context(open_server(command, port, core, folder))
        except (OSError, RuntimeError) as error:
            if command.is_gateway or command.name == "direct":
                raise
            print(f"{command.name} is left out: {error}")
            return None

    def _free_port(self) -> int:
        """One whose neighbour, for the metrics of peers, is a port of nobody's."""
        while (port := free_port()) in range(self._upstream_port - METRICS_PORT_OFFSET, self._upstream_port + 1):
            pass
        return port

    def _rounds(self, section: Section, servers: Sequence[Server]) -> Rounds:
        """Each round begins with another server. The first one is not counted."""
        rounds: dict[str, list[Figures]] = {each.name: [] for each in servers}
        for number in range(self._options.rounds + 1):
            first = number % len(servers)
            for server in (*servers[first:], *servers[:first]):
                found = section.measure(server, self._programs, self._options.effort)
                if number:
                    rounds[server.name].append(found)
        return rounds

    def _fresh_rounds(self, section: Section) -> Rounds:
        rounds: dict[str, list[Figures]] = defaultdict(list)
        for _ in range(self._options.rounds):
            for command in self._commands:
                with ExitStack() as stack:
                    if command.name != "direct" and self._upstream_is_needed():
                        self._open(self._commands[0], stack)
                    if server := self._open(command, stack):
                        rounds[server.name].append(section.measure(server, self._programs, self._options.effort))
        return rounds

    def _upstream_is_needed(self) -> bool:
        return self._options.peers is not None


def print_section(section: Section, rounds: Rounds, count: int) -> None:
    """Prints the table: medians over the rounds, with minimum and maximum in brackets."""
    header = ["", *(column.title for column in section.columns)]
    rows = [[name, *(_cell(column, name, rounds) for column in section.columns)] for name in rounds]
    print_table(f"{section.title}; medians of {count} rounds (minimum-maximum)", header, rows)
    if "against" in rounds:
        _print_ratio(section.columns[0], rounds)


def _print_ratio(column: Column, rounds: Rounds) -> None:
    ours_values, base = ([figures[column.key] for figures in rounds[name]] for name in ("ours", "against"))
    if found := ratios(ours_values, base):
        print(f"\n{column.title}: ours is {summarize(found).show(2)} times `against`, by the round")


def _cell(column: Column, name: str, rounds: Rounds) -> str:
    values = [figures[column.key] for figures in rounds[name]]
    if column.above_direct:
        known = differences(values, [figures[column.key] for figures in rounds["direct"]]) if name != "direct" else []
    else:
        known = [value for value in values if value is not None]
    return summarize(known).show(column.digits) if known else "-"
