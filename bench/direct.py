"""The same load on the backend itself, over gRPC, as a floor to compare with."""

import asyncio
import time
from pathlib import Path

from grpclib.client import Channel

from bench.http_load import Load
from bench.report import Figures
from gateway.backends.metadata import bearer, replica_token
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.domain.ids import ReplicaId
from tests.integration.harness import GatewayProcess


def measure_direct(gateway: GatewayProcess, load: Load) -> Figures:
    """Calls the replica that the gateway has started, with the token that only the fleet knows."""
    [replica] = gateway.status()["replicas"]
    secret = Path(gateway.folder / "data" / "cluster_secret").read_text().strip().encode()
    token = replica_token(secret, ReplicaId(replica["id"]))
    return asyncio.run(_measure(replica["address"], token, load))


async def _measure(address: str, token: str, load: Load) -> Figures:
    host, _, port = address.rpartition(":")
    latencies: list[float] = []
    firsts: list[float] = []
    channel = Channel(host, int(port))
    began = time.perf_counter()
    try:
        runs = (_run(BackendStub(channel), token, load, latencies, firsts) for _ in range(load.connections))
        await asyncio.gather(*runs)
    finally:
        channel.close()
    elapsed = time.perf_counter() - began
    return Figures(f"direct,  {load.name}", latencies, elapsed, len(latencies) * load.tokens, firsts)


async def _run(stub: BackendStub, token: str, load: Load, latencies: list[float], firsts: list[float]) -> None:
    request, metadata = pb.PredictOptions(Prompt="hello"), bearer(token)
    until = time.perf_counter() + load.seconds
    while (began := time.perf_counter()) < until:
        if load.stream:
            async with stub.PredictStream.open(metadata=metadata) as stream:
                await stream.send_message(request, end=True)
                await stream.recv_message()
                firsts.append(time.perf_counter() - began)
                async for _ in stream:
                    pass
        else:
            await stub.Predict(request, metadata=metadata)
            firsts.append(time.perf_counter() - began)
        latencies.append(time.perf_counter() - began)
