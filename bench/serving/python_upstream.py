"""The upstream in Python, for machines without a C compiler: the options and the answers of `native/upstream.c`.

gRPC is served by gRPC's C core, HTTP/1.1 by a few lines on asyncio.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from bench.serving.processes import pin_this_process
from gateway.backends.metadata import FINISH_REASON
from gateway.backends.pb import backend_pb2 as pb

TEXT: Final = "The quick brown fox jumps over the lazy dog and runs away. "
TEXT_TOKENS: Final = 12
PROMPT_TOKENS: Final = 5
STOP: Final = ((FINISH_REASON, "stop"),)


async def _tokens(request: bytes) -> AsyncIterator[str]:
    """The text of each token; the request says how many there are, and at which rate."""
    count, rate = (_number(name, request) for name in (b"tokens", b"rate"))
    due = time.monotonic()
    for _ in range(max(1, count)):
        if rate:
            await asyncio.sleep(due - time.monotonic())
            due += 1 / rate
        yield f"t{time.monotonic_ns() // 1000} "


def _number(name: bytes, request: bytes) -> int:
    found = re.search(name + rb"=(\d+)", request)
    return int(found[1]) if found else 0


# gRPC


async def _health(_request: bytes, _context: Any) -> pb.Reply:
    return pb.Reply(message=b"OK")


async def _load_model(_request: bytes, _context: Any) -> pb.Result:
    return pb.Result(success=True)


async def _predict(_request: bytes, context: Any) -> pb.Reply:
    context.set_trailing_metadata(STOP)
    return pb.Reply(message=TEXT.encode(), tokens=TEXT_TOKENS, prompt_tokens=PROMPT_TOKENS)


async def _predict_stream(request: bytes, context: Any) -> AsyncIterator[pb.Reply]:
    context.set_trailing_metadata(STOP)
    sent = 0
    async for text in _tokens(request):
        sent += 1
        yield pb.Reply(message=text.encode(), tokens=sent, prompt_tokens=PROMPT_TOKENS)


async def _serve_grpc(address: str) -> None:
    def serialize(reply: Any) -> bytes:
        message: bytes = reply.SerializeToString()
        return message

    unary = {"Health": _health, "LoadModel": _load_model, "Predict": _predict}
    methods = {
        name: grpc.unary_unary_rpc_method_handler(call, response_serializer=serialize) for name, call in unary.items()
    }
    methods["PredictStream"] = grpc.unary_stream_rpc_method_handler(_predict_stream, response_serializer=serialize)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("backend.Backend", methods),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


# OpenAI over HTTP/1.1

HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(_length(head))
            await _answer_request(head, body, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # The client has left.
    finally:
        writer.close()


def _length(head: bytes) -> int:
    found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


async def _answer_request(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    if head.startswith(b"GET /v1/models"):
        writer.write(_json({"object": "list", "data": [{"id": "bench", "object": "model", "created": 1}]}))
    elif not head.startswith(b"POST"):
        writer.write(_json({"status": "ok", "model_path": "bench", "is_generation": True}))
    elif json.loads(body).get("stream"):
        await _answer_stream(body, writer)
    else:
        writer.write(_json(_completion()))


async def _answer_stream(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    async for text in _tokens(body):
        writer.write(_event({"content": text}, None))
    writer.write(_event({}, "stop") + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n")


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def _event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    fields = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [choice],
    }
    return _chunk(f"data: {json.dumps(fields, separators=(',', ':'))}\n\n")


def _completion() -> dict[str, object]:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": TEXT_TOKENS,
        "total_tokens": PROMPT_TOKENS + TEXT_TOKENS,
    }
    fields: dict[str, object] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench"}
    return {**fields, "choices": [choice], "usage": usage}


def _json(fields: dict[str, object]) -> bytes:
    body = json.dumps(fields).encode()
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _serve_http(address: str) -> None:
    host, _, port = address.rpartition(":")
    server = await asyncio.start_server(_answer, host, int(port), backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--addr")
    either.add_argument("--http")
    options = parser.parse_args()
    pin_this_process()
    asyncio.run(_serve_grpc(options.addr) if options.addr else _serve_http(options.http))


if __name__ == "__main__":
    main()
