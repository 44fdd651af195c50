"""A backend with `SLOTS` slots whose calls take as long as their prompt says, in seconds.

`python -m bench.slot_backend --addr HOST:PORT`; with REFUSES=1 it refuses a call that finds no free slot, else it lets
it wait. Its answers are JSON: which process it was, how long the call has waited in it, how many calls it has refused.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from bench.workload import SLOTS
from gateway.backends.metadata import FINISH_REASON, REFUSED, REFUSED_FULL
from gateway.backends.pb import backend_pb2 as pb

REFUSES: Final = os.environ.get("REFUSES") == "1"


class SlotBackend:
    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(SLOTS)
        self._refused = 0

    async def health(self, _request: pb.HealthMessage, _context: Any) -> pb.Reply:
        return pb.Reply(message=b"OK")

    async def load_model(self, _request: pb.ModelOptions, _context: Any) -> pb.Result:
        return pb.Result(success=True)

    async def predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        if REFUSES and self._slots.locked():
            self._refused += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ((REFUSED, REFUSED_FULL),))
        came_at = time.perf_counter()
        async with self._slots:
            inside_seconds = time.perf_counter() - came_at
            await asyncio.sleep(float(request.Prompt))
        context.set_trailing_metadata(((FINISH_REASON, "stop"),))
        said = {"pid": os.getpid(), "inside_seconds": inside_seconds, "refused": self._refused}
        return pb.Reply(message=json.dumps(said).encode(), tokens=1, prompt_tokens=1)


def _handler(method: Callable[[Any, Any], Awaitable[Any]], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, lambda reply: reply.SerializeToString())


async def serve(address: str) -> None:
    backend = SlotBackend()
    methods = {
        "Health": _handler(backend.health, pb.HealthMessage),
        "LoadModel": _handler(backend.load_model, pb.ModelOptions),
        "Predict": _handler(backend.predict, pb.PredictOptions),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("backend.Backend", methods),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", required=True)
    asyncio.run(serve(parser.parse_args().addr))
