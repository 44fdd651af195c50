"""A backend that answers at once, on gRPC's C core: as little of the measured time as possible is its own.

`python -m bench.instant_backend --addr HOST:PORT`; TOKENS says how many pieces a streamed answer has.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from gateway.backends.metadata import FINISH_REASON
from gateway.backends.pb import backend_pb2 as pb

TOKENS = int(os.environ.get("TOKENS", "1"))
PIECES = [pb.Reply(message=f"tok{index} ".encode(), tokens=index + 1, prompt_tokens=5) for index in range(TOKENS)]
WHOLE = pb.Reply(message=b"".join(piece.message for piece in PIECES), tokens=TOKENS, prompt_tokens=5)


async def health(_request: pb.HealthMessage, _context: Any) -> pb.Reply:
    return pb.Reply(message=b"OK")


async def load_model(_request: pb.ModelOptions, _context: Any) -> pb.Result:
    return pb.Result(success=True)


async def predict(_request: pb.PredictOptions, context: Any) -> pb.Reply:
    context.set_trailing_metadata(((FINISH_REASON, "stop"),))
    return WHOLE


async def predict_stream(_request: pb.PredictOptions, context: Any) -> AsyncIterator[pb.Reply]:
    context.set_trailing_metadata(((FINISH_REASON, "stop"),))
    for piece in PIECES:
        yield piece


async def serve(address: str) -> None:
    def unary(function: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            function, request.FromString, lambda reply: reply.SerializeToString()
        )

    stream = grpc.unary_stream_rpc_method_handler(
        predict_stream, pb.PredictOptions.FromString, lambda reply: reply.SerializeToString()
    )
    methods = {
        "Health": unary(health, pb.HealthMessage),
        "LoadModel": unary(load_model, pb.ModelOptions),
        "Predict": unary(predict, pb.PredictOptions),
        "PredictStream": stream,
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
