"""The SQLite registry among real processes: one owner at a time, and kill -9 loses nothing acknowledged."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.domain.ids import GatewayId
from gateway.registry.embedded.sqlite import open_sqlite_registry
from gateway.registry.protocol import RegistryLocked

HOLDER = """
import sys, trio
from gateway.registry.embedded.sqlite import open_sqlite_registry

async def main():
    async with open_sqlite_registry(sys.argv[1]):
        print("open", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""

BACKEND = """
print("running", flush=True)
input()
"""

# Each round places a pair of replicas and forgets the pair before it, then prints the version that was acknowledged.
WRITER = """
import itertools, os, sys, trio
from gateway.domain.ids import new_id
from gateway.registry.protocol import ControlWrite
from gateway.registry.embedded.sqlite import open_sqlite_registry
from tests.contract.samples import hello, join, replica

async def main():
    async with open_sqlite_registry(sys.argv[1]) as registry:
        await join(registry, hello(), f"gateway-{os.getpid()}")
        epoch = await registry.acquire_or_renew(f"gateway-{os.getpid()}", 10)
        while True:
            old = tuple((await registry.read_state()).replicas)
            pair = replica(new_id(), slot=0), replica(new_id(), slot=1)
            await registry.apply(epoch, ControlWrite(create=pair, delete=old))
            print(registry.statistics().version, *(row.id for row in pair), flush=True)

trio.run(main)
"""


@contextmanager
def child(code: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process. It gets every descriptor of this one that may be inherited."""
    command = [sys.executable, "-c", code, url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


async def test_a_second_process_learns_who_has_the_file_and_takes_over_when_that_one_is_killed(url: str) -> None:
    with child(HOLDER, url) as holder:
        assert lines(holder, 1) == ["open\n"]
        with pytest.raises(RegistryLocked) as refused:
            async with open_sqlite_registry(url):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        async with open_sqlite_registry(url) as registry:
            assert await registry.acquire_or_renew(GatewayId("successor"), 10) == 1
    path = url.removeprefix("sqlite:///")
    assert str(refused.value) == (
        f"registry {path} is in use by another gateway process (pid {holder.pid}); "
        "one embedded registry serves one gateway; use a PostgreSQL registry for several"
    )


async def test_the_lock_ends_with_its_process_not_with_the_processes_that_it_started(url: str) -> None:
    with ExitStack() as running:
        async with open_sqlite_registry(url):
            backend = running.enter_context(child(BACKEND, url))
            assert lines(backend, 1) == ["running\n"]
        async with open_sqlite_registry(url):
            assert backend.poll() is None


@pytest.mark.parametrize("rounds_until_kill", [1, 5, 60])
async def test_l12_a_writer_killed_in_its_loop_loses_no_acknowledged_write(url: str, rounds_until_kill: int) -> None:
    previous_version = 0
    for generation in (1, 2):
        with child(WRITER, url) as writer:
            first = lines(writer, rounds_until_kill)
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None
            acknowledged = [line for line in (*first, *writer.stdout) if line.endswith("\n")]
        version, *pair = acknowledged[-1].split()
        async with open_sqlite_registry(url) as registry:
            state = await registry.read_state()
            # The write after the last acknowledged one may have happened too, but wholly.
            assert state.version - int(version) in (0, 1)
            assert len(state.replicas) == 2
            assert (set(state.replicas) == set(pair)) == (state.version == int(version))
            assert await registry.acquire_or_renew(GatewayId(f"reader-{generation}"), 10) == 2 * generation
        assert int(version) > previous_version
        previous_version = state.version
