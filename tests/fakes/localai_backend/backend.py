"""A backend as those of LocalAI that are written in Python: grpcio, sync handlers, one thread for all of them.

It knows nothing of the gateway. `install.py` puts it beside its stubs, `run.sh --addr HOST:PORT` starts it. One thread
means that Health waits while anything else runs. A call whose client has left goes on to its end. There are neither
trailers nor token counts, and most calls are UNIMPLEMENTED.

Settings come on the ways on which they come to such a backend. As environment:
- BACKEND_EVENTS: file to which each event is appended, one line of JSON;
- BACKEND_IMPORTS_UNTIL: the imports last until this file exists, as they do where torch is imported;
- BACKEND_BROKEN: said on stderr before it ends with code 3;
- BACKEND_GRACE: seconds for which its open calls may go on after SIGTERM, while it takes no new ones.

As `options` of the model:
- `load_error`: LoadModel says that it failed, with this message;
- `hold`: after its first word a generation waits until this file exists;
- `free`: what Free does, `unload` or `block`; it is UNIMPLEMENTED unless set.
"""

# ruff: noqa: N802 - the methods are named by the proto

import argparse
import hmac
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import backend_pb2  # type: ignore[import-not-found]
import backend_pb2_grpc  # type: ignore[import-not-found]
import grpc

MAX_WORKERS = int(os.environ.get("PYTHON_GRPC_MAX_WORKERS", "1"))
MESSAGE_BYTES_MAX = 50 * 1024 * 1024
GRACE_SECONDS = float(os.environ.get("BACKEND_GRACE", "5"))
PARENT_WATCH_SECONDS = 2.0
EXIT_BROKEN = 3


def write_event(event: str) -> None:
    """In one write, so that lines of several processes do not mix."""
    if path := os.environ.get("BACKEND_EVENTS"):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, (json.dumps({"event": event, "pid": os.getpid()}) + "\n").encode())
        os.close(file)


def wait_file(path: str | None) -> None:
    while path and not Path(path).exists():
        time.sleep(0.02)


class BackendServicer(backend_pb2_grpc.BackendServicer):  # type: ignore[misc]
    """A model that repeats what it is told, word by word."""

    def __init__(self) -> None:
        self.loaded = False
        self.options: dict[str, str] = {}

    def Health(self, request: Any, context: Any) -> Any:
        return backend_pb2.Reply(message=b"OK")

    def LoadModel(self, request: Any, context: Any) -> Any:
        write_event("LoadModel")
        self.options = dict(option.split(":", 1) for option in request.Options)
        if "load_error" in self.options:
            return backend_pb2.Result(success=False, message=self.options["load_error"])
        self.loaded = True
        return backend_pb2.Result(success=True, message="Model loaded successfully")

    def Free(self, request: Any, context: Any) -> Any:
        write_event("Free")
        match self.options.get("free"):
            case "unload":
                self.loaded = False
                return backend_pb2.Result(success=True)
            case "block":
                threading.Event().wait()
        return super().Free(request, context)

    def Predict(self, request: Any, context: Any) -> Any:
        return backend_pb2.Reply(message=b"".join(reply.message for reply in self.PredictStream(request, context)))

    def PredictStream(self, request: Any, context: Any) -> Iterator[Any]:
        """The generating thread asks nobody whether the words are still wanted, and is waited for."""
        self.check_loaded(context)
        write_event("generation begins")
        words: SimpleQueue[str | None] = SimpleQueue()
        generating = threading.Thread(target=self.generate, args=(request, words.put))
        generating.start()
        try:
            while (word := words.get()) is not None:
                yield backend_pb2.Reply(message=word.encode())
        finally:
            generating.join()
            write_event("generation ends")

    def generate(self, request: Any, put: Callable[[str | None], None]) -> None:
        text = request.Messages[-1].content if request.UseTokenizerTemplate else request.Prompt
        for index, word in enumerate(text.split()[: request.Tokens or None]):
            if index:
                wait_file(self.options.get("hold"))
            put(f" {word}" if index else word)
        put(None)

    def Embedding(self, request: Any, context: Any) -> Any:
        self.check_loaded(context)
        text = request.Embeddings
        return backend_pb2.EmbeddingResult(embeddings=[len(text), len(text.split())])

    def check_loaded(self, context: Any) -> None:
        if not self.loaded:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "model not loaded")


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call, Health included, that does not bear the token."""

    def __init__(self, token: str) -> None:
        self.expected = f"Bearer {token}"
        self.refuse = grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "unauthorized")
        )

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        given = str(dict(details.invocation_metadata).get("authorization", ""))
        return continuation(details) if hmac.compare_digest(given, self.expected) else self.refuse


def interceptors() -> list[TokenInterceptor]:
    token = os.environ.get("LOCALAI_GRPC_AUTH_TOKEN")
    return [TokenInterceptor(token)] if token else []


def watch_parent() -> None:
    """Ends this process when its parent has ended, unless LOCALAI_BACKEND_PARENT_WATCH says no."""
    parent = os.getppid()
    if os.environ.get("LOCALAI_BACKEND_PARENT_WATCH", "").lower() in {"false", "0", "no", "off"} or parent <= 1:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_WATCH_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def serve(address: str) -> None:
    limits = ("max_message_length", "max_send_message_length", "max_receive_message_length")
    server = grpc.server(
        ThreadPoolExecutor(max_workers=MAX_WORKERS),
        options=[(f"grpc.{limit}", MESSAGE_BYTES_MAX) for limit in limits],
        interceptors=interceptors(),
    )
    backend_pb2_grpc.add_BackendServicer_to_server(BackendServicer(), server)
    server.add_insecure_port(address)
    server.start()
    sys.stderr.write(f"Server started. Listening on: {address}\n")

    def stop(number: int, _frame: object) -> None:
        write_event(signal.Signals(number).name)
        server.stop(GRACE_SECONDS)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--addr", default="localhost:50051")
    address = parser.parse_args().addr
    write_event("start")
    watch_parent()
    wait_file(os.environ.get("BACKEND_IMPORTS_UNTIL"))
    if broken := os.environ.get("BACKEND_BROKEN"):
        sys.stderr.write(broken + "\n")
        sys.exit(EXIT_BROKEN)
    serve(address)


if __name__ == "__main__":
    main()
