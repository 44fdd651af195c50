"""How many functions of ours one request runs, and in how many files: what a reader has to follow.

Of a whole gateway with its listener, whose fleet is one in-memory backend. The warm figure is of functions that each of
several requests has run, without what loops in the background did meanwhile; the cold one is all that ran until the
answer, since those loops load the model.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Final, NamedTuple

import trio
import trio.testing

import gateway
from tests.fakes.whole_gateway import Installation, open_installation

PACKAGE: Final = Path(gateway.__file__).parent
PARTS_OF_FUNCTIONS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>"})
TRANSPORTS: Final = ("api/http/listener/", "backends/grpc/", "concurrency.py")
"""The code that carries bytes and decides nothing: it stands where others use a library for HTTP and one for gRPC. On a
warm path only these two wait at `concurrency.ParkingSpot`."""
WARM_REQUESTS: Final = 5
ROOMS_OF_LOOPS: Final = ("composition", "control", "observability", "registry", "routing", "worker")
LOOPS: Final = tuple(f"{PACKAGE}/{room}/" for room in ROOMS_OF_LOOPS)
"""Where the long-lived tasks begin that have nothing to do with a warm request."""


class Function(NamedTuple):
    file: str
    name: str


@dataclass(frozen=True)
class RequestPath:
    """The functions that a request has run."""

    functions: frozenset[Function]

    @property
    def of_transports(self) -> "RequestPath":
        """The part in `TRANSPORTS`."""
        return RequestPath(frozenset(each for each in self.functions if each.file.startswith(TRANSPORTS)))

    @property
    def besides_transports(self) -> "RequestPath":
        """The part that a reader has to follow to know what the gateway does with a request."""
        return RequestPath(self.functions - self.of_transports.functions)

    @property
    def files(self) -> frozenset[str]:
        return frozenset(each.file for each in self.functions)


async def measure_paths(folder: Path) -> tuple[RequestPath, RequestPath]:
    """Of a warm and of a cold unary chat."""
    async with open_installation(folder) as house:
        cold = await _run(house)
        await trio.testing.wait_all_tasks_blocked(0.2)  # the cold load's last writes are done
        loops = frozenset(_loops(trio.lowlevel.current_root_task()))
        several = [await _run(house, loops) for _ in range(WARM_REQUESTS)]
        return RequestPath(frozenset.intersection(*several)), RequestPath(cold)


def _loops(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    if task is None:
        return
    if task.coro.cr_code.co_filename.startswith(LOOPS):
        yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _loops(child)


async def _run(house: Installation, ignored: Collection[trio.lowlevel.Task] = ()) -> frozenset[Function]:
    with _recording(ignored) as seen:
        response = await house.chat()
    assert response.status_code == 200
    return frozenset(_ours(seen))


@contextmanager
def _recording(ignored: Collection[trio.lowlevel.Task]) -> Iterator[set[CodeType]]:
    """Yields what is called meanwhile, except by these tasks."""
    seen = set[CodeType]()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and _task() not in ignored:
            seen.add(code)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def _task() -> trio.lowlevel.Task | None:
    try:
        return trio.lowlevel.current_task()
    except RuntimeError:
        return None  # Trio's own work between two tasks


def _ours(seen: set[CodeType]) -> Iterator[Function]:
    for code in seen:
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE) and "pb" not in path.parts and code.co_name not in PARTS_OF_FUNCTIONS:
            yield Function(str(path.relative_to(PACKAGE)), code.co_qualname)


def run_request_path(*, every: bool) -> None:
    """`every`: each function of the warm request, too."""
    with TemporaryDirectory() as folder:
        warm, cold = trio.run(measure_paths, Path(folder))
    for name, path in (("warm", warm), ("cold", cold)):
        own, carried = path.besides_transports, path.of_transports
        print(
            f"{name}: {len(own.functions)} functions in {len(own.files)} files, and {len(carried.functions)} in "
            f"{len(carried.files)} of the HTTP listener and the gRPC client"
        )
    if every:
        for each in sorted(warm.functions):
            print(f"  {each.file} {each.name}")
