"""A worker as a process, to be killed: `python -m tests.fakes.worker_program FOLDER`, with SCRIPT for its backend.

Runs one replica and prints each report as a JSON line: `{"observed": "ready", "pid": 1}`.
"""

import json
import sys
from pathlib import Path

import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.domain.session import Report
from gateway.worker.process.spawn import spawn_process
from tests.fakes.worker_harness import desired_replica, open_worker, scripted, settings_in


async def run_worker(folder: Path) -> None:
    async with (
        open_bridge() as bridge,
        open_worker(settings_in(folder, scripted()), spawn_process, GrpcBackendControl(bridge)) as worker,
    ):
        await worker.want(desired_replica("a"))
        async for message in worker.from_worker:
            if isinstance(message, Report):
                sys.stdout.write(json.dumps({"observed": message.observed, "pid": message.pid}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    trio.run(run_worker, Path(sys.argv[1]))
